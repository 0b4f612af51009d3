"""Part 2, without Ray: the speed of the training step, of transformers', and of the matrix products alone."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cloze.training.model.batch_totals import Totals
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import data_sheet_flops, processor_name
from cloze.training.model.optim import OptimizerConfig
from tests.benchmarks._reference import VOCAB_SIZE
from tests.benchmarks.pretrain import GPU_WORKLOADS, Workload, full_rows, transformers_step
from tests.gpu.kit import Figures, Kit
from tests.gpu.training import engine, synchronize

REPEATS, SECONDS = 3, 1.2  # of timing each
#: Sequences per second of 40 % and of 50 % of an H100's bf16 peak.
MARKS = {"base_128": {"mark_40": 5650, "aim_50": 7070}, "large_512": {"mark_40": 388, "aim_50": 485}}
TINY = {"base_128": Workload(2, 64, 2, 4, 1, length=32, predictions=4)}
TINY |= {"large_512": Workload(3, 64, 2, 2, 1, length=64, predictions=8)}


def workload_of(kit: Kit, name: str) -> Workload:
    return TINY[name] if kit.tiny else GPU_WORKLOADS[name]


def step(kit: Kit, workload: str, compiled: bool, fused_loss: bool) -> Figures:
    """The engine's step on full rows, which come from pinned memory as the loader's do."""
    return timed(kit, workload, engine_step(kit, workload, compiled=compiled, fused_loss=fused_loss))


def engine_step(kit: Kit, workload: str, **variant: bool) -> Callable[[], None]:
    one = workload_of(kit, workload)
    model = BertForPreTraining(BertConfig.model_validate(one.config()), VOCAB_SIZE)
    trained = engine(kit, model, "bf16", optimizer=OptimizerConfig(learning_rate=1e-4), **variant)
    rows = full_rows(one.batch, one.length, one.predictions)
    rows = rows.pinned() if kit.device == "cuda" else rows
    number = 0

    def run() -> None:
        nonlocal number
        number += 1
        trained.step([rows], 1e-4, number)

    return run


def transformers(kit: Kit, workload: str, compile: bool) -> Figures:
    """The same rows, on the device from the start, through transformers' model as it comes or compiled."""
    one, device = workload_of(kit, workload), torch.device(kit.device)
    run, rows = transformers_step(one, True, device, compile), full_rows(one.batch, one.length, one.predictions)
    rows = rows.to(device)
    return timed(kit, workload, lambda: run(rows))


def timed(kit: Kit, workload: str, run: Callable[[], object]) -> dict[str, Any]:
    """Sequences per second: the median, least and most of the repeats; mfu, memory, the share of the marks."""
    start = time.perf_counter()
    run()
    synchronize(kit)
    first = time.perf_counter() - start
    if kit.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = repeated(kit, run)
    size = workload_of(kit, workload).batch
    speed = size / median(seconds)
    figures: dict[str, Any] = {"sequences_per_second": speed, "least": size / max(seconds), "most": size / min(seconds)}
    if peak := peak_flops(kit):
        figures["mfu"] = speed * flops(kit, workload) / peak
    figures |= {f"of_{name}": speed / mark for name, mark in MARKS[workload].items() if not kit.tiny}
    if kit.device == "cuda":
        figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return {**figures, "first_step_seconds": first}


def repeated(kit: Kit, run: Callable[[], object]) -> list[float]:
    """The seconds of one call, in REPEATS measurements of about SECONDS each, after a warm-up."""
    for _ in range(3):
        run()
    synchronize(kit)
    start = time.perf_counter()
    run()
    synchronize(kit)
    calls = 1 if kit.tiny else max(3, round(SECONDS / (time.perf_counter() - start)))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(kit)
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


def flops(kit: Kit, workload: str) -> float:
    """The model's own matrix products of one full row, forward and backward."""
    one = workload_of(kit, workload)
    row = Totals(tokens=one.length, squares=one.length**2, masked=one.predictions)
    return BertConfig.model_validate(one.config()).training_flops(row, VOCAB_SIZE)


def peak_flops(kit: Kit) -> float | None:
    return data_sheet_flops(processor_name(torch.device(kit.device)), "bf16") if kit.device == "cuda" else None


def ceiling(kit: Kit, workload: str) -> Figures:
    """The products of all layers and of the head at these shapes in bf16, forward and backward, and nothing else."""
    one = workload_of(kit, workload)
    tokens, hidden, masked = one.batch * one.length, one.hidden, one.batch * one.predictions
    decoder = -(-VOCAB_SIZE // 64) * 64  # rows of the padded word embeddings
    layer = [product(kit, tokens, hidden, 3 * hidden), product(kit, tokens, hidden, hidden)]
    layer += [product(kit, tokens, hidden, 4 * hidden), product(kit, tokens, 4 * hidden, hidden)]
    attention = attention_products(kit, one)
    head = [product(kit, masked, hidden, hidden), product(kit, masked, hidden, decoder)]
    seconds = {
        "layers_ms": 1000 * one.layers * best(kit, layer),
        "attention_ms": 1000 * one.layers * best(kit, [attention]),
        "head_ms": 1000 * best(kit, head),
    }
    speed = 1000 * one.batch / sum(seconds.values())
    figures = {"sequences_per_second": speed, **seconds}
    if peak := peak_flops(kit):
        figures["mfu"] = speed * flops(kit, workload) / peak
    return figures


def best(kit: Kit, products: list[Callable[[], object]]) -> float:
    """The median seconds of all products, one after the other."""

    def run() -> None:
        for one in products:
            one()

    return median(repeated(kit, run))


def product(kit: Kit, rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    """A linear layer: its output, the gradient of its input, and that of its weights."""
    x, weight, gradient = (random(kit, *shape) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
    return lambda: (x @ weight.T, gradient @ weight, gradient.T @ x)


def attention_products(kit: Kit, one: Workload) -> Callable[[], object]:
    """The products inside attention of all heads: two forward, four backward."""
    heads, size = one.batch * one.heads, one.hidden // one.heads
    query, key, value, context = (random(kit, heads, one.length, size) for _ in range(4))
    scores = random(kit, heads, one.length, one.length)
    return lambda: (
        query @ key.transpose(1, 2),
        scores @ value,
        context @ value.transpose(1, 2),
        scores.transpose(1, 2) @ context,
        scores @ key,
        scores.transpose(1, 2) @ query,
    )


def random(kit: Kit, *shape: int) -> Tensor:
    return torch.randn(*shape, device=kit.device, dtype=torch.bfloat16)


def kernels(kit: Kit, workload: str) -> Figures:
    """Three steps, compiled and with the fused loss, under the profiler; the table goes to kernels.txt."""
    run = engine_step(kit, workload, compiled=True, fused_loss=True)
    for _ in range(4):
        run()
    synchronize(kit)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kit.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            run()
        synchronize(kit)
    averages = profiler.key_averages()
    key = "self_device_time_total" if kit.device == "cuda" else "self_cpu_time_total"
    with Path(kit.out, "kernels.txt").open("a") as out:
        table = averages.table(sort_by=key, row_limit=60, max_name_column_width=100)
        out.write(f"\n===== {workload}, three steps\n{table}\n")
    times = {event.key: getattr(event, key) for event in averages if on_device(kit, event)}
    total = sum(times.values())
    costliest = sorted(times, key=lambda name: -times[name])[:10]
    return {
        "device_ms_per_step": total / 3000,
        "percent": {name[:70]: round(100 * times[name] / total, 1) for name in costliest},
    }


def on_device(kit: Kit, event: Any) -> bool:
    """Whether the event is a kernel on the device, rather than the operator that has started it."""
    return kit.device == "cpu" or "CUDA" in str(event.device_type)
