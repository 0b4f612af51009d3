"""The fastest precision and the peak performance, measured and agreed on by all workers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from cloze.training.model import hardware
from cloze.training.model.architectures import ARCHITECTURES
from cloze.training.model.bert import BertConfig, Layer
from cloze.training.model.hardware import (
    cpu_threads,
    data_sheet_flops,
    fastest_precision,
    has_bf16,
    layer_seconds,
    peak_flops,
)
from cloze.training.model.optim import Precision

CPU = torch.device("cpu")
SHAPE = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


def test_bf16_is_detected_by_the_processors_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, fast in (("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("fpu avx512f avx512_bf16x", False)):
        monkeypatch.setattr(hardware, "cpuinfo", lambda key, flags=flags: flags)
        assert has_bf16(CPU) is fast


@pytest.mark.usefixtures("single_process_group")
@pytest.mark.parametrize(
    ("full", "half", "chosen"), [(1.2, 1.0, "bf16"), (1.0, 0.5, "bf16"), (1.05, 1.0, "fp32"), (0.5, 1.0, "fp32")]
)
def test_bf16_has_to_be_clearly_faster(full: float, half: float, chosen: str) -> None:
    assert (
        fastest_precision(CPU, lambda precisions: [{"fp32": full, "bf16": half}[name] for name in precisions]) == chosen
    )


def timing(monkeypatch: pytest.MonkeyPatch, layer: Any) -> None:
    """Use `layer` as the layer of BERT."""
    monkeypatch.setitem(ARCHITECTURES, "bert", replace(ARCHITECTURES["bert"], layer=layer))


def test_a_layer_is_timed_in_each_precision() -> None:
    full, half = layer_seconds(SHAPE, CPU, ("fp32", "bf16"))
    assert 0 < full < 1 and 0 < half < 1


def test_timing_on_a_cpu_uses_one_thread_and_restores_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()

    class Watched(Layer):
        def forward(self, hidden: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(hidden, visible)

    timing(monkeypatch, Watched)
    with cpu_threads(2):
        layer_seconds(SHAPE, CPU, ("fp32", "bf16"))
        assert set(seen) == {1} and torch.get_num_threads() == 2


def test_a_precision_that_is_far_too_slow_is_timed_only_on_a_small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(size: int, where: torch.device, dtype: torch.dtype) -> float:
        return 0.1 if dtype == torch.bfloat16 else 0.001

    monkeypatch.setattr(hardware, "_product_seconds", product)
    timing(monkeypatch, None)  # it is not even created
    assert layer_seconds(SHAPE, CPU, ("fp32", "bf16")) == [0.001, 0.1]


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("Tesla T4", "fp32", 8.1),
        ("Tesla T4", "fp16", 65),
        ("Tesla T4", "bf16", None),  # no bf16 instructions
        ("NVIDIA L40", "bf16", None),  # not listed
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
    ],
)
def test_a_data_sheet_is_found_by_the_gpus_name(name: str, precision: Precision, teraflops: float | None) -> None:
    assert data_sheet_flops(name, precision) == (teraflops and pytest.approx(teraflops * 1e12))


@pytest.mark.usefixtures("single_process_group")
def test_a_processors_peak_is_measured_and_grows_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    flops, origin = peak_flops(CPU, "fp32")
    assert origin == "measured" and 1e9 < flops < 1e13
    monkeypatch.setattr(hardware, "_seconds", lambda where, work: 0.5)
    lone = peak_flops(CPU, "fp32").flops
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert peak_flops(CPU, "fp32").flops == 3 * lone == 3 * 2 * 1024**3 / 0.5
