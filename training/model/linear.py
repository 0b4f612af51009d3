"""Linear layers that compute fp32 products with oneDNN where it is faster than PyTorch's default.

PyTorch multiplies fp32 matrices with MKL, which uses AVX-512 only on Intel processors. PyTorch also ships oneDNN (for
16-bit products), which uses AVX-512 on AMD processors too: fp32 products then take half the time.
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cloze.training.model.cpuinfo import cpuinfo


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, up to fp32 rounding: input [.., in], weight [out, in] -> [.., out]."""
    if torch.compiler.is_compiling():
        return functional.linear(input, weight, bias)
    is_fp32 = input.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(input.device.type)
    if is_fp32 and input.device.type == "cpu" and input.numel() and _onednn_is_faster():
        return cast(Tensor, _OneDnnLinear.apply(input, weight, bias))
    return functional.linear(input, weight, bias)


@cache
def _onednn_is_faster() -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False  # _linear_pointwise is a private operator: it may disappear from PyTorch
    return cpuinfo("model name").startswith("AMD") and torch.backends.cpu.get_cpu_capability() == "AVX512"


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _onednn_linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        flat = grad_output.reshape(-1, grad_output.shape[-1])
        return (  # the second factor must be dense: with strides, oneDNN is hundreds of times slower
            _onednn_linear(grad_output, weight.t()) if needs_input else None,
            _onednn_linear(flat.t(), input.reshape(-1, input.shape[-1]).contiguous().t()) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
        )


def _onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
