"""A worker's device -> its name, its peak performance, and the precision in which all workers train fastest."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from cloze.training.model.architectures import architecture_of
from cloze.training.model.bert import BertConfig
from cloze.training.model.cpuinfo import cpuinfo
from cloze.training.model.linear import linear
from cloze.training.model.optim import DTYPES, Precision, autocast

#: Peak TFLOPS from GPU data sheets: dense 16-bit products, and fp32 without tensor cores. If several patterns match a
#: GPU's name, the first one applies.
_DATA_SHEETS = {
    r"H100 PCIe": (756.0, 51.0),
    r"B200": (2250.0, 75.0),
    r"H[12]00 NVL": (835.0, 60.0),
    r"H100|H200|GH200": (989.0, 67.0),
    r"A100\b": (312.0, 19.5),
    r"L40S": (362.0, 91.6),
    r"L4\b": (121.0, 30.3),
    r"A10G": (70.0, 35.0),
    r"A10\b": (125.0, 31.2),
    r"V100.*PCIE": (112.0, 14.0),
    r"V100": (125.0, 15.7),
    r"T4\b": (65.0, 8.1),
}
_PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices multiplied to measure a peak

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_MIN_SPEEDUP = 1.1  # of 16 bits over fp32; a smaller gain does not justify the rounding
_SEQUENCE_LENGTH = 128
_BATCH_SIZE = {"cpu": 8, "cuda": 64}  # of the timed layer: large enough that casting the weights is negligible
_MAX_ROUNDS, _BUDGET_SECONDS = 9, 1.0
_TOO_SLOW = 8  # times as slow: without bf16 instructions some processors are a hundred times slower


def worker_device() -> torch.device:
    """This worker's GPU if its process group uses NCCL, else the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the GPU or processor has bf16 instructions. Most devices without them are slower in bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not _BF16_FLAGS.isdisjoint(cpuinfo("flags").split())


def processor_name(device: torch.device) -> str:
    """The name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpuinfo("model name") or "CPU"


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of CPU threads of PyTorch, and restore the previous number on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PeakFlops(NamedTuple):
    """The peak performance of all workers' devices together."""

    flops: float  # floating-point operations per second
    origin: Literal["data sheet", "measured"]


def peak_flops(device: torch.device, precision: Precision) -> PeakFlops:
    """From the GPUs' data sheets, or measured if one of them is not listed. All workers must call it together."""
    listed = data_sheet_flops(processor_name(device), precision) if device.type == "cuda" else None
    unlisted = torch.tensor(int(listed is None), device=device)
    dist.all_reduce(unlisted)
    own_flops = _measured_flops(device, precision) if unlisted.item() or listed is None else listed
    flops = torch.tensor(own_flops, dtype=torch.float64, device=device)
    dist.all_reduce(flops)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the measurement does not count as memory of the training
    return PeakFlops(flops.item(), "measured" if unlisted.item() else "data sheet")


def data_sheet_flops(name: str, precision: Precision) -> float | None:
    """The peak FLOPS of a GPU in its data sheet, or None if it is not listed.

    None as well for a part of a GPU (MIG), and for bf16 on GPUs without bf16 instructions.
    """
    peaks = next((peaks for pattern, peaks in _DATA_SHEETS.items() if re.search(pattern, name)), None)
    if peaks is None or "MIG" in name or (precision == "bf16" and re.search(r"V100|T4\b", name)):
        return None
    return 1e12 * peaks[precision == "fp32"]


def _measured_flops(device: torch.device, precision: Precision) -> float:
    size, cores = _PEAK_SIZE[device.type], torch.get_num_threads() if device.type == "cpu" else 1
    return cores * 2 * size**3 / _product_seconds((size, size), device, DTYPES[precision])


def fastest_precision(device: torch.device, seconds: Callable[[Sequence[Precision]], Sequence[float]]) -> Precision:
    """16 bits if they are clearly faster on every worker, else fp32. All workers must call it together.

    16 bits means bf16, or fp16 if the GPU of some worker has no bf16. `seconds` returns how long the same work takes
    this worker in each precision: see layer_seconds.
    """
    lacks_bf16 = torch.tensor(int(device.type == "cuda" and not has_bf16(device)), device=device)
    dist.all_reduce(lacks_bf16)
    half: Precision = "fp16" if lacks_bf16.item() else "bf16"
    fp32_seconds, half_seconds = seconds(("fp32", half))
    speedup = torch.tensor(fp32_seconds / half_seconds, device=device)
    dist.all_reduce(speedup, dist.ReduceOp.MIN)
    return half if speedup.item() >= _MIN_SPEEDUP else "fp32"


@cpu_threads(1)
def layer_seconds(config: BertConfig, device: torch.device, precisions: Sequence[Precision]) -> list[float]:
    """The median time of the forward and backward pass of one encoder layer, in each precision.

    The precisions alternate, so that other load on the machine affects all of them. Timing ends after about a second,
    but not before three rounds. On a CPU it uses one thread: several threads busy-wait for each other, and if another
    process uses one of their cores, waiting is most of the time measured. If a small product alone shows that one of
    the precisions is too slow, the times are those of that product.
    """
    product = [_product_seconds((64, config.hidden_size), device, DTYPES[precision]) for precision in precisions]
    if max(product) > _TOO_SLOW * min(product):
        return product
    layer = architecture_of(config).layer(config).to(device).train()
    size = (_BATCH_SIZE[device.type], _SEQUENCE_LENGTH, config.hidden_size)
    hidden = torch.randn(*size, device=device, requires_grad=True)
    visible = torch.ones(len(hidden), 1, 1, _SEQUENCE_LENGTH, dtype=torch.bool, device=device)

    def forward_backward(precision: Precision) -> None:
        with autocast(device, precision):
            output = layer(hidden, visible)
        output.float().sum().backward()
        layer.zero_grad()

    rounds = list[list[float]]()
    while len(rounds) < 3 or (len(rounds) < _MAX_ROUNDS and sum(map(sum, rounds)) < _BUDGET_SECONDS):
        rounds.append(
            [_seconds(device, lambda precision=precision: forward_backward(precision)) for precision in precisions]
        )
    return [median(column) for column in zip(*rounds[1:], strict=True)]  # the first round is the warm-up


def _product_seconds(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> float:
    """The time of the product of a matrix [rows, columns] and a square one [columns, columns].

    The best of three, as the first is the warm-up; of fewer if they take long.
    """
    left, right = (torch.randn(rows, shape[1], device=device).to(dtype) for rows in shape)
    times = list[float]()
    while len(times) < 3 and sum(times) < _BUDGET_SECONDS / 4:
        times.append(_seconds(device, lambda: linear(left, right)))
    return min(times)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The time that `work` takes; on a CPU the processor time of this process, so that other load does not count."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
