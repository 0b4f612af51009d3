"""Linear layers whose fp32 products are oneDNN's where these are faster than torch's own."""

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cloze.training.model.cpuinfo import cpuinfo

if TYPE_CHECKING:
    pass


class Linear(nn.Linear):
    """torch's own layer, through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, to fp32's rounding."""
    plain = rows.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(rows.device.type)
    if plain and rows.device.type == "cpu" and rows.numel() and _onednn_is_faster():
        return cast(Tensor, _Product.apply(rows, weight, bias))
    return functional.linear(rows, weight, bias)


@cache
def _onednn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False  # the latter is none of torch's promises
    return cpuinfo("model name").startswith("AMD") and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (  # oneDNN takes its second factor as it lies, and is hundreds of times slower with gaps in it
            _multiply(gradient, weight.t()) if of_rows else None,
            _multiply(flat.t(), rows.reshape(-1, rows.shape[-1]).contiguous().t()) if of_weight else None,
            flat.sum(0) if of_bias else None,
        )


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
