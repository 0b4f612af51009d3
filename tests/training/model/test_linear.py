"""fp32 products by oneDNN: the same results and gradients as PyTorch's, and only on AMD processors with AVX-512."""

import pytest
import torch
from torch.nn import functional

from cloze.training.model import linear as linear_module
from cloze.training.model.linear import Linear, linear

needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN here")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Use oneDNN on any processor; returns the strides of the weights that it multiplies."""
    strides = list[tuple[int, ...]]()
    real = linear_module._onednn_linear

    def record(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        strides.append(tuple(sorted(weight.stride())))
        return real(input, weight, bias)

    monkeypatch.setattr(linear_module, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear_module, "_onednn_linear", record)
    return strides


DRAW = torch.Generator().manual_seed(1)
ROWS = {
    "a batch": torch.randn(3, 7, 24, generator=DRAW),
    "rows": torch.randn(5, 24, generator=DRAW),
    "one row": torch.randn(1, 24, generator=DRAW),
    "one vector": torch.randn(24, generator=DRAW),
    "every other row": torch.randn(10, 24, generator=DRAW)[::2],
    "first of each": torch.randn(5, 7, 24, generator=DRAW)[:, 0],
    "transposed": torch.randn(24, 6, generator=DRAW).t(),
    "transposed batch": torch.randn(3, 24, 7, generator=DRAW).transpose(1, 2),
    "no row": torch.randn(0, 24),
}


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ROWS)
def test_outputs_and_gradients_are_those_of_pytorch(kind: str, bias: bool, onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias)
    found = list[list[torch.Tensor | None]]()
    for multiply in (functional.linear, linear):
        given = ROWS[kind].detach().requires_grad_()
        layer.zero_grad()
        output = multiply(given, layer.weight, layer.bias)
        (output * torch.linspace(-1, 1, 40)).sum().backward()
        found.append([output, given.grad, layer.weight.grad, layer.bias.grad if bias else None])
    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None and actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert onednn == ([] if kind == "no row" else 3 * [(1, 24)])  # the second factor is always dense


@needs_onednn
def test_a_tensor_without_gradient_costs_no_product(onednn: list[tuple[int, ...]]) -> None:
    layer = Linear(24, 40)
    layer.weight.requires_grad_(False)
    layer(ROWS["rows"]).sum().backward()
    assert len(onednn) == 1 and layer.weight.grad is None and layer.bias.grad is not None


@needs_onednn
def test_other_types_than_fp32_use_pytorch(onednn: list[tuple[int, ...]]) -> None:
    layer, given = Linear(24, 40), ROWS["rows"]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(given).dtype == torch.bfloat16
    assert layer.double()(given.double()).dtype == torch.float64
    assert not onednn


@needs_onednn
@pytest.mark.parametrize(
    ("name", "instructions", "available", "faster"),
    [
        ("AMD EPYC 9R14", "AVX512", True, True),
        ("AMD EPYC 9R14", "AVX512", False, False),
        ("AMD EPYC 7R13", "AVX2", True, False),
        ("Intel Xeon", "AVX512", True, False),
    ],
)
def test_onednn_is_used_where_mkl_does_not_use_avx512(
    name: str, instructions: str, available: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(linear_module, "cpuinfo", {"model name": name}.__getitem__)
    assert linear_module._onednn_is_faster.__wrapped__() is faster
