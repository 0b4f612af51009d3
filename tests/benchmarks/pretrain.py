"""Training steps beside transformers' BertForPreTraining: sequences a CPU second on two cores, length 128.

`ratio` (4 layers of 256, batch 16) and `ratio_base` (BERT-base, batch 8) are over transformers as it comes (SDPA,
AdamW, fp32), on full rows with 20 predictions; `ratio_same_precision` has both sides in bf16 on a processor that has
it, `ratio_fp32` both in fp32 (with ATEN_CPU_CAPABILITY=avx2 our products stay with MKL, as on a processor without
AVX-512), `ratio_real` the small model on examples of books, padded to the longest of a batch on both sides. Our step is
the engine's arithmetic with torch alone. `engine_overhead` is the share of that rate which the pretrain stage keeps
through Ray and DeepSpeed on the same examples, by the clock once memory has settled, rows of metrics included: let
nothing else run beside it. The stage's workers have malloc keep what a step frees and torch take large pages, which
torch alone does not; `engine_overhead_same_memory` is over one that does.

With --device cuda: BERT-base at length 128 and BERT-large at 512 on one GPU, full rows, both sides in bf16 with the
same batch at once; sequences a second by the clock, and MFU, the share of the card's peak that the model's own products
(each masked position once in the head, backward twice the forward) take up, wherever the peak is known.
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
from cloze.training.model.hardware import data_sheet_flops, has_bf16, processor_name
from cloze.training.model.optim import OptimizerConfig, adamw, parameter_groups
from cloze.training.model.totals import Totals
from cloze.training.pretrain.data_loader import Batch, DynamicMasking, ExampleDataset, collate
from cloze.training.pretrain.objective import Objective
from cloze.training.pretrain.phase_data import Prefetcher
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCAB_SIZE, VOCABULARY
from tests.benchmarks._show import show

OPTIMIZER = OptimizerConfig(learning_rate=1e-4)
GROUP = 64  # rows of like length together
WARM, TIMED = 20, 120  # steps, until memory has settled, and then
Step = Callable[[Batch], None]


class Shape(NamedTuple):
    layers: int
    hidden: int
    heads: int
    batch: int
    steps: int  # that are timed
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
SMALL, BASE = Shape(4, 256, 4, 16, 12), Shape(12, 768, 12, 8, 4)
ON_GPU = {
    "base_128": Shape(12, 768, 12, 256, 40),
    "large_512": Shape(24, 1024, 16, 32, 20, length=512, predictions=80),
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=pretrain", description=__doc__)
    parser.add_argument("--books", default=examples.BOOKS, help="text files, by a glob")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no GPU here; leave it out")
        device = torch.device("cuda")
        about = {"benchmark": "pretrain", "device": processor_name(device), "torch": torch.__version__}
        show(f"pretraining on one {processor_name(device)}", on_gpu(device, options.repeats), about, "{:,.3g}".format)
        return
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = examples.documents(options.books, folder, heldout_fraction=0.1)
        _examples.made(folder, examples.shards(examples.megabytes(documents, 0, 4.7)), dupe_factor=2)
        figures = measure(folder, options.repeats)
    show(
        f"pretraining on {processor_name(CPU)}",
        figures,
        {"benchmark": "pretrain", "cores": os.cpu_count(), "bf16": has_bf16(CPU)},
        "{:,.3g}".format,
    )


def on_gpu(device: torch.device, repeats: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    peak = data_sheet_flops(processor_name(device), "bf16")
    for name, shape in ON_GPU.items():
        of_one = Totals(tokens=shape.length, squares=shape.length**2, masked=shape.predictions)
        flops = BertConfig.model_validate(shape.config()).training_flops(of_one, VOCAB_SIZE)
        given = full_rows(shape.batch, shape.length, shape.predictions).to(device)
        for side, make in (("cloze", ours), ("transformers", theirs)):
            step = make(shape, True, device)
            speed = median(clocked(step, given, shape, device) for _ in range(repeats))
            figures[f"{side}_{name}"] = speed
            if peak:
                figures[f"mfu_{side}_{name}"] = speed * flops / peak
        figures[f"ratio_{name}"] = figures[f"cloze_{name}"] / figures[f"transformers_{name}"]
    return figures


def clocked(step: Step, given: Batch, shape: Shape, device: torch.device) -> float:
    """Sequences a second: the clock is read when the device has done all that it was told."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        step(given)
    wait()
    start = time.monotonic()
    for _ in range(shape.steps):
        step(given)
    wait()
    return shape.batch * shape.steps / (time.monotonic() - start)


def measure(folder: Path, repeats: int) -> dict[str, float]:
    bf16 = has_bf16(CPU)
    figures: dict[str, float] = {}
    for name, shape in (("", SMALL), ("_base", BASE)):
        full = cycle([full_rows(shape.batch)])
        sides = {"cloze": ours(shape, bf16), "transformers": theirs(shape, False), "same": theirs(shape, bf16)}
        sides |= {"fp32": ours(shape, False)}
        rates = {side: median(rate(step, full, shape) for _ in range(repeats)) for side, step in sides.items()}
        figures |= {f"cloze{name}": rates["cloze"], f"transformers{name}": rates["transformers"]}
        figures[f"ratio{name}"] = rates["cloze"] / rates["transformers"]
        figures[f"ratio_same_precision{name}"] = rates["cloze"] / rates["same"]
        figures[f"ratio_fp32{name}"] = rates["fp32"] / rates["transformers"]
    artifact = _examples.artifact(folder, "examples")
    real = {
        side: median(rate(step, batches(artifact, group, SMALL.batch), SMALL, steps=60) for _ in range(repeats))
        for side, step, group in (("cloze", ours(SMALL, bf16), GROUP), ("transformers", theirs(SMALL, False), 1))
    }
    figures["ratio_real"] = real["cloze"] / real["transformers"]
    return figures | kept_by_the_engine(folder, bf16, repeats)


def full_rows(rows: int, length: int = 128, predictions: int = 20) -> Batch:
    draw = np.random.default_rng(0)
    ids = draw.integers(1000, VOCAB_SIZE, (rows, length))
    positions = np.concatenate([np.sort(draw.permutation(length)[:predictions]) + row * length for row in range(rows)])
    second = np.broadcast_to(np.arange(length) >= length // 2, ids.shape)
    labels = draw.integers(1000, VOCAB_SIZE, len(positions))
    arrays = (ids, second, np.ones_like(ids), positions, labels, draw.integers(0, 2, rows), np.ones(rows))
    return Batch(*(torch.from_numpy(array.astype(np.int64)) for array in arrays), padded=False)


def batches(artifact: Artifact, group: int, size: int) -> Iterator[Batch]:
    """Real examples: with rows of like length together as Cloze has them, or, in groups of one, in random order."""
    masking = DynamicMasking(0, mask_rules(VOCABULARY.read_text().split("\n")[:-1], 0.15, 20))
    for rows in ExampleDataset(artifact, "train").batches(0, 0, size, group):
        yield collate(rows, masking)


def ours(shape: Shape, bf16: bool, device: torch.device = CPU) -> Step:
    model = BertForPreTraining(BertConfig.model_validate(shape.config()), VOCAB_SIZE).to(device).train()
    objective = Objective(model, "bf16" if bf16 else "fp32")
    optimizer = adamw(parameter_groups(model, OPTIMIZER.weight_decay), OPTIMIZER)

    def step(given: Batch) -> None:
        counts = (torch.tensor(float(len(labels))) for labels in (given.masked_lm_labels, given.next_sentence_label))
        loss, _ = objective(given, *counts)
        update(loss, model, optimizer)

    return step


def theirs(shape: Shape, bf16: bool, device: torch.device = CPU) -> Step:
    from transformers import BertConfig as TheirConfig
    from transformers import BertForPreTraining as TheirModel

    config = TheirConfig(vocab_size=VOCAB_SIZE, attn_implementation="sdpa", **shape.config())
    model = TheirModel(config).to(device).train()
    fused = device.type == "cuda"  # on a CPU AdamW is as torch comes
    optimizer = torch.optim.AdamW(model.parameters(), OPTIMIZER.learning_rate, fused=fused)

    def step(given: Batch) -> None:
        labels = torch.full_like(given.input_ids, -100)
        labels.view(-1)[given.masked_lm_positions] = given.masked_lm_labels
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(
                input_ids=given.input_ids,
                token_type_ids=given.token_type_ids,
                attention_mask=given.attention_mask,
                labels=labels,
                next_sentence_label=given.next_sentence_label,
            ).loss
        update(loss, model, optimizer)

    return step


def update(loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def rate(step: Step, given: Iterator[Batch], shape: Shape, steps: int | None = None) -> float:
    """Sequences a CPU second, times two: sequences a second where both cores are busy all the time."""
    made = list(islice(given, (steps or shape.steps) + 2))
    for warm in made[:2]:
        step(warm)
    start = time.process_time()
    for one in made[2:]:
        step(one)
    return 2 * sum(len(one.input_ids) for one in made[2:]) / (time.process_time() - start)


def kept_by_the_engine(folder: Path, bf16: bool, repeats: int) -> dict[str, float]:
    """Sequences a second of the pretrain stage over those of torch alone: one process of two threads each, the same
    batches, the first of them left out."""
    from cloze.infra.ray_session import ray_session

    with ray_session():
        stage = median(of_the_stage(folder, bf16, folder / f"pretrain-{turn}") for turn in range(repeats))
    own = get_context("spawn")  # each in a process of its own, as a worker is

    def alone(keep: bool) -> float:
        with ProcessPoolExecutor(1, own) as process:
            return process.submit(of_torch, folder, bf16, keep).result()

    plain = median(alone(False) for _ in range(repeats))
    with patch.dict(os.environ, THP_MEM_ALLOC_ENABLE="1"):
        same_memory = median(alone(True) for _ in range(repeats))
    return {"engine_overhead": plain / stage, "engine_overhead_same_memory": same_memory / stage}


def of_the_stage(folder: Path, bf16: bool, to: Path) -> float:
    """Seconds of TIMED steps."""
    from cloze.pipeline.core.artifacts import Output
    from cloze.pipeline.core.storage import Location
    from cloze.training.pretrain.config import PretrainConfig
    from cloze.training.pretrain.stage import run

    settings = {
        "model": SMALL.config(),
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20, "steps": WARM + TIMED}],
        "optimizer": {"learning_rate": OPTIMIZER.learning_rate},
        "precision": "bf16" if bf16 else "fp32",
        "global_batch_size": SMALL.batch,
        "micro_batch_size": SMALL.batch,
        "group_by_length": GROUP,
        "workers": 1,
        "threads": 2,
        "log_every": WARM,
        "eval_batches": 1,
    }
    inputs = {"vocab": _examples.artifact(folder, "vocab"), "examples-128": _examples.artifact(folder, "examples")}
    config = PretrainConfig.model_validate_json(json.dumps(settings))
    run(config, inputs, Output(Location(str(to)), "pretrain", 1, "0"))
    rows = json_lines.read(Location(str(to / "metrics.jsonl")))
    times = {row["step"]: row["time"] for row in rows if row["split"] == "train"}
    return times[WARM + TIMED] - times[WARM]


def of_torch(folder: Path, bf16: bool, keep: bool) -> float:
    """Seconds of TIMED steps; `keep` has this process keep what a step frees."""
    torch.set_num_threads(2)
    if keep:
        keep_freed_memory()
    step = ours(SMALL, bf16)
    given = Prefetcher(batches(_examples.artifact(folder, "examples"), GROUP, SMALL.batch))
    for warm in islice(given, WARM):
        step(warm)
    start = time.monotonic()
    for one in islice(given, TIMED):
        step(one)
    given.close()
    return time.monotonic() - start
