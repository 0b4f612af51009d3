"""a worker's device -> its name, its peak, and the precision in which all workers train the fastest."""

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

#: What the data sheets of GPUs promise, in TFLOPS: dense products in 16 bits, and in fp32 without tensor cores. Of two
#: patterns that fit a name the first one counts.
_SHEETS = {
    r"H100 PCIe": (756.0, 51.0),
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
_PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns of what is multiplied to measure a peak

_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
_CLEARLY = 1.1  # times as fast: what is less is not worth the rounding
_LENGTH = 128
_SEQUENCES = {"cpu": 8, "cuda": 64}  # which are timed: so many that casting the weights is little beside them
_TURNS, _SECONDS = 9, 1.0
_HOPELESS = 8  # times as slow: without instructions for bf16 some processors are a hundred times


def worker_device() -> torch.device:
    """This worker's GPU if its process group works on GPUs, else the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the GPU, or the processor, has instructions for bf16; most that have not lose time by it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not _BF16_FLAGS.isdisjoint(cpuinfo("flags").split())


def processor(device: torch.device) -> str:
    """The name of the GPU, or of the processor, that does the work."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpuinfo("model name") or "CPU"


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Have torch compute with so many threads of the processor, and with as many as before after that."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Peak(NamedTuple):
    """The most that all workers' devices could do."""

    flops: float  # a second
    origin: Literal["data sheet", "measured"]


def peak(device: torch.device, precision: Precision) -> Peak:
    """By the GPUs' data sheets, or measured where one of them is unknown. All workers have to call it together."""
    listed = sheet_flops(processor(device), precision) if device.type == "cuda" else None
    unknown = torch.tensor(int(listed is None), device=device)
    dist.all_reduce(unknown)
    mine = _product_flops(device, precision) if unknown.item() or listed is None else listed
    flops = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.all_reduce(flops)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # what was timed is none of training's
    return Peak(flops.item(), "measured" if unknown.item() else "data sheet")


def sheet_flops(name: str, precision: Precision) -> float | None:
    """What a GPU's data sheet promises a second; None for one that is not listed, and where it says nothing.

    It says nothing of a part of a GPU (MIG), nor of bf16 where there are no instructions for it.
    """
    found = next((pair for pattern, pair in _SHEETS.items() if re.search(pattern, name)), None)
    if found is None or "MIG" in name or (precision == "bf16" and re.search(r"V100|T4\b", name)):
        return None
    return 1e12 * found[precision == "fp32"]


def _product_flops(device: torch.device, precision: Precision) -> float:
    size, cores = _PRODUCT[device.type], torch.get_num_threads() if device.type == "cpu" else 1
    return cores * 2 * size**3 / _product_seconds((size, size), device, DTYPES[precision])


def fastest(device: torch.device, seconds: Callable[[Sequence[Precision]], Sequence[float]]) -> Precision:
    """16 bits where every worker finds them clearly the faster, else fp32. All workers have to call it together.

    They are bf16, but fp16 where some GPU has no bf16. `seconds` is what the same work takes this worker in each
    precision: see layer_seconds.
    """
    older = torch.tensor(int(device.type == "cuda" and not has_bf16(device)), device=device)
    dist.all_reduce(older)
    short: Precision = "fp16" if older.item() else "bf16"
    full, half = seconds(("fp32", short))
    gain = torch.tensor(full / half, device=device)
    dist.all_reduce(gain, dist.ReduceOp.MIN)
    return short if gain.item() >= _CLEARLY else "fp32"


@cpu_threads(1)
def layer_seconds(config: BertConfig, device: torch.device, precisions: Sequence[Precision]) -> list[float]:
    """The median time of one encoder layer, forward and backward, in each precision.

    The precisions take turns, so that what else the machine does falls on all of them; it ends after about a second,
    or after three turns where they take longer. On a CPU all is timed on one thread: several spin while they wait for
    each other, and where something else has one of their cores that waiting is most of what would be timed. Where a
    small product alone shows one of the precisions to be hopeless, the times are those of that product.
    """
    small = [_product_seconds((64, config.hidden_size), device, DTYPES[precision]) for precision in precisions]
    if max(small) > _HOPELESS * min(small):
        return small
    layer = architecture_of(config).layer(config).to(device).train()
    hidden = torch.randn(_SEQUENCES[device.type], _LENGTH, config.hidden_size, device=device, requires_grad=True)
    visible = torch.ones(len(hidden), 1, 1, _LENGTH, dtype=torch.bool, device=device)

    def work(precision: Precision) -> None:
        with autocast(device, precision):
            output = layer(hidden, visible)
        output.float().sum().backward()
        layer.zero_grad()

    turns = list[list[float]]()
    while len(turns) < 3 or (len(turns) < _TURNS and sum(map(sum, turns)) < _SECONDS):
        turns.append([_seconds(device, lambda precision=precision: work(precision)) for precision in precisions])
    return [median(column) for column in zip(*turns[1:], strict=True)]  # the first one also warms up


def _product_seconds(shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> float:
    """Of rows and columns, times a square matrix. The best of three, as the first one also warms up; of fewer where
    they take long."""
    one, other = (torch.randn(rows, shape[1], device=device).to(dtype) for rows in shape)
    found = list[float]()
    while len(found) < 3 and sum(found) < _SECONDS / 4:
        found.append(_seconds(device, lambda: linear(one, other)))
    return min(found)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """On a processor the time that its cores compute for us, whatever else they do meanwhile."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
