"""A micro-batch -> its part of the loss and its sums; the result of a step; the interface of the backends."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze.training.model.batch_totals import Totals
from cloze.training.model.optim import Precision, autocast
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class StepResult:
    """The result of a step: sums over the global batch, and the norm of the gradients before clipping.

    Both may still be computed by the device: reading `totals` or `grad_norm` waits for it. If an fp16 gradient has
    overflowed in any worker, the weights are unchanged and the next step has a lower loss scale.
    """

    sums: Tensor  # in the order of Totals
    norm: Tensor | float
    overflowed: bool = False

    @cached_property
    def totals(self) -> Totals:
        return Totals(*self.sums.tolist())

    @cached_property
    def grad_norm(self) -> float:
        return float(self.norm)


class Objective(nn.Module):
    """A micro-batch -> its part of the global batch's loss, and its sums in the order of Totals."""

    def __init__(self, model: nn.Module, precision: Precision, *, fused_loss: bool = False) -> None:
        """With `fused_loss` the model computes the sums of the masked-LM loss itself (see masked_lm_loss.py), without
        keeping logits; those of a batch with distractors are needed."""
        super().__init__()
        self.model = model
        self.precision: Precision = precision
        self.fused_loss = fused_loss

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`masked` and `labels` are the numbers of masked positions and next-sentence labels in the global batch."""
        is_fused = self.fused_loss and batch.distractors is None
        labels_given = {"masked_lm_labels": batch.masked_lm_labels} if is_fused else {}
        with autocast(batch.input_ids.device, self.precision):
            masked_lm, nsp_logits = self.model(
                batch.input_ids,
                batch.token_type_ids,
                batch.attention_mask if batch.padded else None,
                batch.masked_lm_positions,
                **labels_given,
            )  # [n, vocab] or, with labels, sums; [b, 2], or None without a head for pairs
        if is_fused:
            mlm_loss, mlm_correct = masked_lm
        else:
            mlm_loss = functional.cross_entropy(masked_lm, batch.masked_lm_labels, reduction="sum")
            mlm_correct = (masked_lm.detach().argmax(-1) == batch.masked_lm_labels).sum()
        nsp_loss, answers = torch.zeros_like(mlm_loss), torch.zeros_like(batch.next_sentence_label)
        if nsp_logits is not None:
            nsp_loss = functional.cross_entropy(
                nsp_logits, batch.next_sentence_label, reduction="sum", ignore_index=IGNORE_INDEX
            )
            answers = nsp_logits.argmax(-1)
        with torch.no_grad():
            labelled = batch.next_sentence_label != IGNORE_INDEX
            real = batch.attention_mask * batch.counted[:, None]
            choices = choices_correct = torch.zeros_like(mlm_loss)
            if batch.distractors is not None:
                choices, choices_correct = choice_sums(masked_lm, batch.masked_lm_labels, batch.distractors)
            sums = (  # a number known to Python is filled in on the device: a copy would wait for it
                mlm_loss,
                mlm_correct,
                (batch.masked_lm_labels != IGNORE_INDEX).sum(),
                nsp_loss,
                (answers == batch.next_sentence_label).sum(),
                labelled.sum(),
                (batch.next_sentence_label == 1).sum(),
                (answers * labelled).sum(),
                batch.counted.sum(),
                real.sum(),
                mlm_loss.new_full((), real.numel(), dtype=torch.float64),
                real.sum(1).square().sum(),
                choices,
                choices_correct,
            )
            totals = torch.stack([value.to(torch.float64) for value in sums])
        return mlm_loss / masked + nsp_loss / labels, totals


def choice_sums(logits: Tensor, labels: Tensor, distractors: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, vocab], true pieces [n] and distractors [n] -> the number of positions with a distractor, and of those
    with a higher logit of the true piece; a tie is half of one."""
    pairs = torch.stack((labels, distractors), 1)  # [n, 2]
    true, other = logits.gather(1, pairs.clamp(min=0)).unbind(1)  # each [n]
    is_choice = distractors != IGNORE_INDEX
    return is_choice.sum(), (is_choice * ((true > other) + 0.5 * (true == other))).sum()


class Backend(Protocol):
    """How the gradients of all workers become one update.

    A step calls `start_step`, then `forward` and `backward` for each micro-batch, then `optimizer_step`. A `kind` of
    tensor is one of checkpoint.KINDS: "model" (the weights) or one of the optimizer's two moments.
    """

    def start_step(self, learning_rate: float, loss_scale: float | None) -> None:
        """`loss_scale` multiplies losses and divides gradients; None unless the precision is fp16."""
        ...

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The output of Objective for a micro-batch."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradients of a micro-batch; `is_last` for the last one of the step."""
        ...

    def optimizer_step(self) -> Tensor | float:
        """Clip and update. Returns the norm of the gradients summed over all workers, without the loss scale.

        Scaled gradients that are not finite update nothing.
        """
        ...

    def read_tensor(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The complete tensor of a parameter. All workers must call it together; the same holds for `write_tensor`."""
        ...

    def write_tensor(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None: ...

    def set_update_count(self, updates: int) -> None:
        """Set the number of updates that the optimizer has made."""
        ...
