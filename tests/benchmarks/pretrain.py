"""Training steps compared with transformers' BertForPreTraining: sequences per CPU second on two cores, length 128.

`ratio` (4 layers of 256, batch 16) and `ratio_base` (BERT-base, batch 8) are Cloze's speed over transformers' with its
defaults (SDPA, AdamW, fp32), on full rows with 20 predictions. `ratio_same_precision` has both sides in bf16 if the
processor supports it, `ratio_fp32` both in fp32 (with ATEN_CPU_CAPABILITY=avx2, Cloze's matrix products use MKL, as on
a processor without AVX-512). `ratio_real` is the small model on examples of books, padded to the longest row of a batch
on both sides. Cloze's step here is the engine's computation in plain torch.

`engine_overhead` is the fraction of that speed that the pretrain stage reaches with Ray and DeepSpeed on the same
examples, in wall time after warm-up, with metrics logging; run it on an idle machine. The stage's workers configure
malloc to keep freed memory and torch to use huge pages. `engine_overhead_same_memory` is relative to plain torch with
the same memory settings.

On a GPU: `make gpu` (tests/gpu), with the functions of this file.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.text.masking import mask_rules
from cloze.training.cluster.ray_train import keep_freed_memory
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import has_bf16, processor_name
from cloze.training.model.optim import OptimizerConfig, adamw, parameter_groups
from cloze.training.pretrain.data_loader import Batch, DynamicMasking, ExampleDataset, collate
from cloze.training.pretrain.objective import Objective
from cloze.training.pretrain.prefetch import Prefetcher
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCAB_SIZE, vocabulary
from tests.benchmarks._show import show

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
GROUP_BY_LENGTH = 64  # see PretrainConfig
WARMUP_STEPS, TIMED_STEPS = 20, 120  # memory use is stable after the warm-up
Step = Callable[[Batch], None]


class Workload(NamedTuple):
    """A model and the batches that it is timed on."""

    layers: int
    hidden: int
    heads: int
    batch: int
    steps: int  # timed
    length: int = 128
    predictions: int = 20

    def config(self) -> dict[str, int]:
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * self.hidden,
        }


CPU = torch.device("cpu")
SMALL, BASE = Workload(4, 256, 4, 16, 12), Workload(12, 768, 12, 8, 4)
GPU_WORKLOADS = {
    "base_128": Workload(12, 768, 12, 256, 40),
    "large_512": Workload(24, 1024, 16, 32, 20, length=512, predictions=80),
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=pretrain", description=__doc__)
    parser.add_argument("--books", default=examples.BOOKS, help="glob of text files")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = examples.documents(options.books, folder, heldout_fraction=0.1)
        _examples.build_examples(folder, examples.shards(examples.megabytes(documents, 0, 4.7)), dupe_factor=2)
        figures = measure(folder, options.repeats)
    show(
        f"pretraining on {processor_name(CPU)}",
        figures,
        {"benchmark": "pretrain", "cores": os.cpu_count(), "bf16": has_bf16(CPU)},
        "{:,.3g}".format,
    )


def measure(folder: Path, repeats: int) -> dict[str, float]:
    bf16 = has_bf16(CPU)
    figures: dict[str, float] = {}
    for name, workload in (("", SMALL), ("_base", BASE)):
        full = cycle([full_rows(workload.batch)])
        sides = {
            "cloze": cloze_step(workload, bf16),
            "transformers": transformers_step(workload, False),
            "same": transformers_step(workload, bf16),
        }
        sides |= {"fp32": cloze_step(workload, False)}
        rates = {side: median(cpu_rate(step, full, workload) for _ in range(repeats)) for side, step in sides.items()}
        figures |= {f"cloze{name}": rates["cloze"], f"transformers{name}": rates["transformers"]}
        figures[f"ratio{name}"] = rates["cloze"] / rates["transformers"]
        figures[f"ratio_same_precision{name}"] = rates["cloze"] / rates["same"]
        figures[f"ratio_fp32{name}"] = rates["fp32"] / rates["transformers"]
    artifact = _examples.artifact(folder, "examples")
    real = {
        side: median(cpu_rate(step, batches(artifact, group, SMALL.batch), SMALL, steps=60) for _ in range(repeats))
        for side, step, group in (
            ("cloze", cloze_step(SMALL, bf16), GROUP_BY_LENGTH),
            ("transformers", transformers_step(SMALL, False), 1),
        )
    }
    figures["ratio_real"] = real["cloze"] / real["transformers"]
    return figures | engine_overhead(folder, bf16, repeats)


def full_rows(rows: int, length: int = 128, predictions: int = 20) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, VOCAB_SIZE, (rows, length))
    positions = np.concatenate([np.sort(rng.permutation(length)[:predictions]) + row * length for row in range(rows)])
    segment_b = np.broadcast_to(np.arange(length) >= length // 2, ids.shape)
    labels = rng.integers(1000, VOCAB_SIZE, len(positions))
    arrays = (ids, segment_b, np.ones_like(ids), positions, labels, rng.integers(0, 2, rows), np.ones(rows))
    return Batch(*(torch.from_numpy(array.astype(np.int64)) for array in arrays), padded=False)


def batches(artifact: Artifact, group: int, size: int) -> Iterator[Batch]:
    """Yields batches of real examples: with `group`, rows of similar length together; with group 1, in random order."""
    masking = DynamicMasking(0, mask_rules(vocabulary(), 0.15, 20))
    for rows in ExampleDataset(artifact, "train").batches(0, 0, size, group):
        yield collate(rows, masking)


def cloze_step(workload: Workload, bf16: bool) -> Step:
    model = BertForPreTraining(BertConfig.model_validate(workload.config()), VOCAB_SIZE).train()
    objective = Objective(model, "bf16" if bf16 else "fp32")
    optimizer = adamw(parameter_groups(model, OPTIMIZER.weight_decay), OPTIMIZER)

    def step(batch: Batch) -> None:
        counts = (torch.tensor(float(len(labels))) for labels in (batch.masked_lm_labels, batch.next_sentence_label))
        loss, _ = objective(batch, *counts)
        update(loss, model, optimizer)

    return step


def transformers_step(workload: Workload, bf16: bool, device: torch.device = CPU, compile: bool = False) -> Step:
    from transformers import BertConfig as TransformersConfig
    from transformers import BertForPreTraining as TransformersModel

    config = TransformersConfig(vocab_size=VOCAB_SIZE, attn_implementation="sdpa", **workload.config())
    model = TransformersModel(config).to(device).train()
    if compile:
        model.compile()
    fused = device.type == "cuda"  # on a CPU, torch's default
    optimizer = torch.optim.AdamW(model.parameters(), OPTIMIZER.learning_rate, fused=fused)

    def step(batch: Batch) -> None:
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.masked_lm_positions] = batch.masked_lm_labels
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(
                input_ids=batch.input_ids,
                token_type_ids=batch.token_type_ids,
                attention_mask=batch.attention_mask,
                labels=labels,
                next_sentence_label=batch.next_sentence_label,
            ).loss
        update(loss, model, optimizer)

    return step


def update(loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def cpu_rate(step: Step, batches: Iterator[Batch], workload: Workload, steps: int | None = None) -> float:
    """Returns sequences per CPU second, times two: sequences per second if both cores are always busy."""
    timed = list(islice(batches, (steps or workload.steps) + 2))
    warmup, timed = timed[:2], timed[2:]
    for one in warmup:
        step(one)
    start = time.process_time()
    for one in timed:
        step(one)
    return 2 * sum(len(one.input_ids) for one in timed) / (time.process_time() - start)


def engine_overhead(folder: Path, bf16: bool, repeats: int) -> dict[str, float]:
    """Returns the speed of the pretrain stage over that of plain torch.

    Each side is one process with two threads and has the same batches; the warm-up is not timed.
    """
    from cloze.infra.ray_session import ray_session

    with ray_session():
        stage = median(time_stage(folder, bf16, folder / f"pretrain-{repeat}") for repeat in range(repeats))
    context = get_context("spawn")  # a separate process, like a worker

    def plain_torch(keep_memory: bool) -> float:
        with ProcessPoolExecutor(1, context) as process:
            return process.submit(time_torch, folder, bf16, keep_memory).result()

    plain = median(plain_torch(False) for _ in range(repeats))
    with patch.dict(os.environ, THP_MEM_ALLOC_ENABLE="1"):
        same_memory = median(plain_torch(True) for _ in range(repeats))
    return {"engine_overhead": plain / stage, "engine_overhead_same_memory": same_memory / stage}


def time_stage(folder: Path, bf16: bool, output: Path) -> float:
    """Returns the seconds of TIMED_STEPS steps."""
    from cloze.pipeline.core.output import Output
    from cloze.pipeline.core.storage import Location
    from cloze.training.pretrain.config import PretrainConfig
    from cloze.training.pretrain.stage import run

    settings = {
        "model": SMALL.config(),
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20, "steps": WARMUP_STEPS + TIMED_STEPS}],
        "optimizer": {"learning_rate": OPTIMIZER.learning_rate},
        "precision": "bf16" if bf16 else "fp32",
        "global_batch_size": SMALL.batch,
        "micro_batch_size": SMALL.batch,
        "group_by_length": GROUP_BY_LENGTH,
        "workers": 1,
        "threads": 2,
        "log_every": WARMUP_STEPS,
        "eval_batches": 1,
    }
    inputs = {"vocab": _examples.artifact(folder, "vocab"), "examples-128": _examples.artifact(folder, "examples")}
    config = PretrainConfig.model_validate_json(json.dumps(settings))
    run(config, inputs, Output(Location(str(output)), "pretrain", 1, "0"))
    rows = json_lines.read(Location(str(output / "metrics.jsonl")))
    times = {row["step"]: row["time"] for row in rows if row["split"] == "train"}
    return times[WARMUP_STEPS + TIMED_STEPS] - times[WARMUP_STEPS]


def time_torch(folder: Path, bf16: bool, keep_memory: bool) -> float:
    """Returns the seconds of TIMED_STEPS steps; with `keep_memory`, malloc keeps freed memory."""
    torch.set_num_threads(2)
    if keep_memory:
        keep_freed_memory()
    step = cloze_step(SMALL, bf16)
    prefetched = Prefetcher(batches(_examples.artifact(folder, "examples"), GROUP_BY_LENGTH, SMALL.batch))
    for one in islice(prefetched, WARMUP_STEPS):
        step(one)
    start = time.monotonic()
    for one in islice(prefetched, TIMED_STEPS):
        step(one)
    prefetched.close()
    return time.monotonic() - start
