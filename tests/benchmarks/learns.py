"""Held-out masked-LM loss after a given training time on two cores, compared with transformers' Trainer.

Both sides start from the same weights (4 layers of 256) and train on the same examples of books, with static masks and
the same AdamW, batch size and peak learning rate. Each has its own random order with rows of similar length together:
the Trainer's sampler sorts every 50 batches; Cloze also shuffles the batches. The learning rate warms up for the first
3 to 5 % of the time and then decays linearly to 0. Time is wall time from the first step on.

Cloze runs with Ray and DeepSpeed, one worker with two threads. Its checkpoints count as training time, the Trainer's
saved weights do not. The Trainer uses fp32 or bf16, depending on which is faster in a few steps. It has default memory
settings; Cloze's workers keep freed memory. All losses are computed after training by one function, in fp32 and on the
same masks: on held-out chapters of the books, and on the test split of Wikitext-2, which is not trained on. Results
stay in the folder; the same command resumes from there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, read_manifest
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import Document, document, document_table
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import processor_name
from cloze.training.pretrain.data_loader import ExampleDataset, collate
from cloze.training.pretrain.example_arrays import ExampleArrays
from cloze.training.pretrain.objective import Objective
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCAB_SIZE
from tests.benchmarks._show import show

HELDOUT_FRACTION = 0.02  # of the chapters: about as many examples as Wikitext-2
CURVE_EXAMPLES = 512  # of each held-out set, for a point of the curve; the final loss is over all
EVAL_BATCH_SIZE = 64
SIDES = ("cloze", "trainer")

BATCH_SIZE = 32
WARMUP_FRACTION = 0.05  # of the time
STEPS_PER_SECOND = 1.6  # Cloze's approximate speed, as its warm-up is set in steps
MODEL = {  # no dropout, as no example is repeated
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OPTIMIZER = {"learning_rate": 1e-3, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=learns", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--books", default=examples.BOOKS, help="glob of text files")
    parser.add_argument("--wikitext", default="../shared/data/wikitext2/wiki.test.raw")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/learns"), help="folder for examples, weights and results"
    )
    options = parser.parse_args(arguments)
    folder, seeds = options.folder.resolve(), [int(seed) for seed in options.seeds.split(",")]
    check_settings(folder, {"books": options.books, "wikitext": options.wikitext, "minutes": options.minutes})
    artifacts = build_artifacts(folder, options.books, Path(options.wikitext))
    train = len(ExampleDataset(artifacts["books"], "train"))
    print(
        f"{train:,} training examples; held-out: {', '.join(f'{k} {v:,}' for k, v in heldout_sizes(artifacts).items())}"
    )
    results = {
        f"{side}_seed{seed}": train_and_evaluate(side, seed, options.minutes, folder, artifacts)
        for seed in seeds
        for side in SIDES
    }
    cpu = processor_name(torch.device("cpu"))
    about = {"benchmark": "learns", "processor": cpu, "cores": os.cpu_count(), "minutes": options.minutes}
    about |= {"examples": {"train": train, **heldout_sizes(artifacts)}, "batch": BATCH_SIZE, "optimizer": OPTIMIZER}
    (folder / "learns.json").write_text(json.dumps({**about, "runs": results}, indent=1))
    for seed in seeds:
        show_curves(seed, *(results[f"{side}_seed{seed}"]["curve"] for side in SIDES))
    figures = {
        f"{run}_{name}": one[name]
        for run, one in results.items()
        for name in ("steps", "sequences", "books", "wikitext2")
    }
    show(f"{options.minutes:g} minutes on {cpu}", figures, {**about, "runs": results}, "{:,.5g}".format)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raises SystemExit if the folder has results of other settings."""
    settings |= {"model": MODEL, "optimizer": OPTIMIZER, "batch": BATCH_SIZE, "heldout": HELDOUT_FRACTION}
    file = folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{folder}: has results of other settings; delete it, or use another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))


def build_artifacts(folder: Path, books: str, wikitext: Path) -> dict[str, Artifact]:
    """Builds the examples of both texts, with static masks."""
    artifacts = {name: _examples.artifact(folder / name, "examples") for name in ("books", "wikitext2")}
    shards = {
        "books": lambda: examples.shards(examples.documents(books, folder, HELDOUT_FRACTION)),
        "wikitext2": lambda: [document_table(list(articles(wikitext.read_text())))],
    }
    for name, artifact in artifacts.items():
        if read_manifest(artifact.location) is None:
            shutil.rmtree(folder / name, ignore_errors=True)
            _examples.build_examples(folder / name, shards[name](), dupe_factor=1, masking="static")
    return artifacts


def articles(text: str) -> Iterator[Document]:
    """Yields Wikitext-2's articles, all held out. An article starts with a line ` = Title = `. Removes headings and
    turns @-@ into a hyphen."""
    lines, number = [line.strip() for line in text.split("\n")], 0

    def article(line: str) -> int:
        nonlocal number
        number += line.startswith("= ") and not line.startswith("= =") and line.endswith(" =")
        return number

    for key, group in groupby(lines, article):
        paragraphs = [line for line in group if line and not (line.startswith("= ") and line.endswith(" ="))]
        for mark in "-,.":
            paragraphs = [paragraph.replace(f" @{mark}@ ", mark) for paragraph in paragraphs]
        if paragraphs:
            yield document(paragraphs, doc_id=str(key), source="wikitext2", heldout_fraction=1.0)


def heldout_sizes(artifacts: dict[str, Artifact]) -> dict[str, int]:
    return {name: len(ExampleDataset(artifact, "heldout")) for name, artifact in artifacts.items()}


def train_and_evaluate(
    side: str, seed: int, minutes: float, folder: Path, artifacts: dict[str, Artifact]
) -> dict[str, Any]:
    """Returns a side's result from the folder, or trains and evaluates it. The Trainer saves at the times Cloze did."""
    file = folder / f"{side}-{seed}.json"
    if not file.exists():
        print(f"seed {seed}: {side} trains for {minutes:g} minutes", flush=True)
        if side == "cloze":
            run = train_cloze(seed, minutes, folder, artifacts["books"])
        else:
            save_minutes = [
                point["minutes"] for point in json.loads((folder / f"cloze-{seed}.json").read_text())["curve"]
            ]
            run = train_transformers(seed, minutes, folder, artifacts["books"], save_minutes)
        print(f"seed {seed}: {side} finished {run['steps']:,} steps; evaluating", flush=True)
        *_, (_, last) = points = run.pop("points")
        run["curve"] = [{"minutes": at, **heldout_losses(path, artifacts, CURVE_EXAMPLES)} for at, path in points]
        file.write_text(json.dumps({**run, **heldout_losses(last, artifacts)}))
    return json.loads(file.read_text())


def pretrain_settings(seed: int, minutes: float) -> dict[str, Any]:
    """Returns the configuration of the pretrain stage."""
    checkpoint_every = 10 * max(2, round(minutes))  # about ten points
    return {
        "model": MODEL,
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20}],
        "budget": f"{round(60 * minutes)}s",
        "optimizer": {
            **OPTIMIZER,
            "bias_correction": True,
            "warmup_steps": round(WARMUP_FRACTION * 60 * minutes * STEPS_PER_SECOND),
        },
        "global_batch_size": BATCH_SIZE,
        "micro_batch_size": BATCH_SIZE,
        "group_by_length": BATCH_SIZE,
        "gpus": 0,
        "workers": 1,
        "threads": 2,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
        "keep_checkpoints": 10_000,
        "log_every": 10,  # a row for every checkpoint
        "eval_every": 10**9,
        "eval_batches": 1,
    }


def train_cloze(seed: int, minutes: float, folder: Path, artifact: Artifact) -> dict[str, Any]:
    """Runs the pretrain stage. `points` has the minutes since the first step and the weights file per checkpoint."""
    from cloze.infra.ray_session import ray_session
    from cloze.training.pretrain.config import PretrainConfig
    from cloze.training.pretrain.stage import run

    output = folder / f"runs-{seed}/cloze"
    if read_manifest(Location(str(output))) is None:
        shutil.rmtree(output, ignore_errors=True)  # an interrupted run does not count: training must be continuous
        config = PretrainConfig.model_validate_json(json.dumps(pretrain_settings(seed, minutes)))
        inputs = {"vocab": _examples.artifact(folder / "books", "vocab"), "examples-128": artifact}
        with ray_session():
            run(config, inputs, Output(Location(str(output)), "pretrain", 1, "0", ProgressPrinter()))
    rows = json_lines.read(Location(str(output / "metrics.jsonl")))
    train = [row for row in rows if row["split"] == "train"]
    start = train[0]["time"] - train[0]["seconds"]
    at = {row["step"]: (row["time"] - start) / 60 for row in train}
    kept = {int(file.parent.name.split("-")[1]): file for file in output.glob("checkpoints/step-*/model.safetensors")}
    *points, end = [(at[step], str(file)) for step, file in sorted(kept.items())]
    manifest = read_manifest(Location(str(output)))
    assert manifest
    return {
        "steps": train[-1]["step"],
        "sequences": train[-1]["step"] * BATCH_SIZE,
        "precision": manifest.facts["precision"],
        "points": [*((minute, file) for minute, file in points if minute < 0.95 * end[0]), end],
    }


class ProgressPrinter:
    """Prints a line of progress every 30 seconds."""

    def __init__(self) -> None:
        self.reported = time.monotonic()

    def __call__(self, done: float, total: float, unit: str, note: str) -> None:
        if time.monotonic() - self.reported > 30:
            self.reported = time.monotonic()
            print(f"  {done:.1f} {unit}, {note}", flush=True)


def train_transformers(
    seed: int, minutes: float, folder: Path, artifact: Artifact, save_minutes: list[float]
) -> dict[str, Any]:
    output = folder / f"runs-{seed}/trainer"
    record = output / "record.json"
    if not record.exists():
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        settings = {
            "seed": seed,
            "minutes": minutes,
            "save_minutes": save_minutes,
            "batch": BATCH_SIZE,
            "warmup": WARMUP_FRACTION,
        }
        settings |= {"model": MODEL, "optimizer": OPTIMIZER}
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks._trainer",
            str(output),
            artifact.location.uri,
            json.dumps(settings),
        ]
        subprocess.run(command, check=True)
    return json.loads(record.read_text())


@torch.no_grad()
def heldout_losses(weights: str | Path, artifacts: dict[str, Artifact], limit: int | None = None) -> dict[str, float]:
    """Returns held-out set -> mean loss per masked token, in fp32, over all examples or the same `limit` ones."""
    torch.set_num_threads(2)
    model = BertForPreTraining(BertConfig.model_validate(MODEL), VOCAB_SIZE).eval()
    model.load_state_dict(load_file(weights))
    objective, one, found = Objective(model, "fp32"), torch.ones(()), {}
    for name, artifact in artifacts.items():
        heldout = ExampleDataset(artifact, "heldout")
        (rows,) = heldout.sample(0, limit or len(heldout), len(heldout))
        sums = sum(objective(collate(group), one, one)[1] for group in by_length(rows))
        found[name] = float(sums[0] / sums[2])
    return found


def by_length(rows: ExampleArrays) -> Iterator[ExampleArrays]:
    """Yields batches sorted by length."""
    order = rows.input_ids.lengths.argsort(kind="stable")
    for start in range(0, len(rows), EVAL_BATCH_SIZE):
        yield rows.take(order[start : start + EVAL_BATCH_SIZE])


def show_curves(seed: int, cloze: list[dict[str, float]], trainer: list[dict[str, float]]) -> None:
    names = [name for name in cloze[0] if name != "minutes"]
    headers = [f"{name}, {side}" for name in names for side in SIDES]
    table = Table(
        "minutes", *headers, title=f"seed {seed}: held-out masked-LM loss on {CURVE_EXAMPLES} examples of each set"
    )
    shared = min(len(cloze), len(trainer)) - 1  # points before the end
    for one, other in zip([*cloze[:shared], cloze[-1]], [*trainer[:shared], trainer[-1]], strict=True):
        table.add_row(f"{one['minutes']:.1f}", *(f"{side[name]:.3f}" for name in names for side in (one, other)))
    Console().print(table)
