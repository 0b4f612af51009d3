"""Hidden states of masked positions -> their masked-LM loss, computed in chunks of rows without keeping logits.

The logits of a large batch take more memory than the rest of the head: 5,120 positions times 30,522 pieces are 625 MB
in fp32, written and read several times. Here each chunk's logits become the chunk's loss and, at once, the gradient of
the logits, which the two products of the backward pass use before the next chunk is computed. The loss is the sum over
positions, so its gradient is known up to the factor that the backward pass receives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cloze.pipeline.core.schema import IGNORE_INDEX

CHUNK_ROWS = 1024  # masked positions: 62 MB of 16-bit logits and as much of their gradients with 30,522 pieces
_FP16_SCALE = 8.0  # gradients of logits begin at 1 / vocabulary, which is below the smallest normal fp16 number


class MaskedLMSums(NamedTuple):
    """Sums over masked positions: the cross-entropy in nats, and the number of right predictions. Scalars."""

    loss: Tensor
    correct: Tensor


#: Logits [n, vocab] and labels [n] -> the loss and the number of right predictions, and the gradient of the logits.
SoftmaxStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def softmax_step(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk: see SoftmaxStep. The softmax is computed in fp32, the gradient has the type of `logits`."""
    values = logits.float()  # [n, vocab]; a loss of bf16 logits has a resolution of 1/128
    log_sum = values.logsumexp(-1, keepdim=True)  # [n, 1]
    counted = (labels != IGNORE_INDEX)[:, None]  # [n, 1]
    label = labels.clamp(min=0)[:, None]  # [n, 1]
    loss = ((log_sum - values.gather(1, label)) * counted).sum()
    correct = (values.argmax(-1) == labels).sum()
    is_label = torch.arange(values.shape[1], device=values.device) == label  # [n, vocab]
    gradient = ((values - log_sum).exp() - is_label.float()) * counted
    if logits.dtype == torch.float16:
        gradient = gradient * _FP16_SCALE
    return loss, correct, gradient.to(logits.dtype)


def masked_lm_sums(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, softmax: SoftmaxStep = softmax_step
) -> MaskedLMSums:
    """hidden [n, size], decoder weight [vocab, size], bias [vocab], labels [n] -> sums over the masked positions.

    Positions with the label IGNORE_INDEX are ignored. Products use the 16-bit type of autocast, if it is enabled.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    needs_gradient = torch.is_grad_enabled()
    found = _MaskedLMSums.apply(hidden, weight, bias, labels, dtype, softmax, needs_gradient)
    return MaskedLMSums(*cast(tuple[Tensor, Tensor], found))


class _MaskedLMSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        dtype: torch.dtype,
        softmax: SoftmaxStep,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):  # the types are chosen here
            decoder, offset = weight.to(dtype), bias.to(dtype)
            loss = torch.zeros((), device=hidden.device)
            correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
            hidden_parts = list[Tensor]()
            weight_gradient, bias_gradient = (
                torch.zeros_like(parameter, dtype=torch.float32) if needs_gradient else torch.empty(0)
                for parameter in (weight, bias)
            )
            for rows, row_labels in zip(hidden.to(dtype).split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True):
                chunk_loss, chunk_correct, gradient = softmax(functional.linear(rows, decoder, offset), row_labels)
                loss += chunk_loss
                correct += chunk_correct
                if needs_gradient:
                    hidden_parts.append(gradient @ decoder)  # [rows, size]
                    weight_gradient += gradient.t() @ rows  # [vocab, size]
                    bias_gradient += gradient.sum(0, dtype=torch.float32)
        if needs_gradient:
            gradients = (torch.cat(hidden_parts), weight_gradient, bias_gradient)
            ctx.save_for_backward(*gradients)
            ctx.types = hidden.dtype, weight.dtype, bias.dtype
            ctx.scale = _FP16_SCALE if dtype == torch.float16 else 1.0
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        factor = loss_gradient / ctx.scale  # fp32: in 16 bits its rounding would scale all gradients alike
        scaled = (
            (gradient.float() * factor).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return (*scaled, None, None, None, None)
