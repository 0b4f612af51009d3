"""What so many minutes on two cores teach: the held-out masked-LM loss beside that of transformers' Trainer.

Both begin with the same weights (4 layers of 256) and train on the same examples of books, masked once and stored,
with the same AdamW, batch and peak rate; each has its own random order, with rows of like length together (the
Trainer's sampler sorts every 50 batches, Cloze draws the order of its batches too). The rate falls on a line to 0 at
the end of the time, and climbs for its first 3 to 5 %. The time is the clock's from the first step on. Cloze goes
through Ray and DeepSpeed, one worker of two threads; the checkpoints that it writes on the way count as training
time, those of the Trainer do not. The Trainer takes fp32 or bf16, whichever a few steps show to be the faster. It
runs as it comes; Cloze's workers keep the memory that a step frees. One function gives every loss after the training,
in fp32 on the same masks: on chapters of the books that are held out, and on Wikitext-2's test part, of which nothing
was seen. What is finished stays in the folder: the same command goes on from there.
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
from cloze.pipeline.core.artifacts import Artifact, Output, read_manifest
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import Document, document, document_table
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import processor_name
from cloze.training.pretrain.data_loader import ExampleArrays, ExampleDataset, collate
from cloze.training.pretrain.objective import Objective
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCAB_SIZE
from tests.benchmarks._show import show

HELDOUT = 0.02  # of the chapters: about as many examples as Wikitext-2 has
SAMPLE = 512  # examples of each held-out set for a point of the curve; its end has them all
EVAL_BATCH = 64
SIDES = ("cloze", "trainer")

BATCH = 32
WARMUP = 0.05  # of the time
STEPS_PER_SECOND = 1.6  # of Cloze, about: its warm-up is told in steps
MODEL = {  # no example comes twice: there is nothing that dropout could prevent
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
    parser.add_argument("--books", default=examples.BOOKS, help="text files, by a glob")
    parser.add_argument("--wikitext", default="../shared/data/wikitext2/wiki.test.raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/learns"), help="for examples, weights and results")
    options = parser.parse_args(arguments)
    folder, seeds = options.folder.resolve(), [int(seed) for seed in options.seeds.split(",")]
    settled(folder, {"books": options.books, "wikitext": options.wikitext, "minutes": options.minutes})
    artifacts = prepared(folder, options.books, Path(options.wikitext))
    train = len(ExampleDataset(artifacts["books"], "train"))
    print(f"{train:,} examples to train on; held out: {', '.join(f'{k} {v:,}' for k, v in sizes(artifacts).items())}")
    found = {
        f"{side}_seed{seed}": result(side, seed, options.minutes, folder, artifacts) for seed in seeds for side in SIDES
    }
    cpu = processor_name(torch.device("cpu"))
    about = {"benchmark": "learns", "processor": cpu, "cores": os.cpu_count(), "minutes": options.minutes}
    about |= {"examples": {"train": train, **sizes(artifacts)}, "batch": BATCH, "optimizer": OPTIMIZER}
    (folder / "learns.json").write_text(json.dumps({**about, "runs": found}, indent=1))
    for seed in seeds:
        show_curves(seed, *(found[f"{side}_seed{seed}"]["curve"] for side in SIDES))
    figures = {
        f"{run}_{name}": one[name]
        for run, one in found.items()
        for name in ("steps", "sequences", "books", "wikitext2")
    }
    show(f"{options.minutes:g} minutes on {cpu}", figures, {**about, "runs": found}, "{:,.5g}".format)


def settled(folder: Path, asked: dict[str, Any]) -> None:
    """Keep results of different settings apart: a folder belongs to those that it began with."""
    asked |= {"model": MODEL, "optimizer": OPTIMIZER, "batch": BATCH, "heldout": HELDOUT}
    file = folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != asked:
        raise SystemExit(f"{folder}: holds results of other settings; delete it, or name another with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked))


def prepared(folder: Path, books: str, wikitext: Path) -> dict[str, Artifact]:
    """The examples of both texts, masks stored."""
    artifacts = {name: _examples.artifact(folder / name, "examples") for name in ("books", "wikitext2")}
    shards = {
        "books": lambda: examples.shards(examples.documents(books, folder, HELDOUT)),
        "wikitext2": lambda: [document_table(list(articles(wikitext.read_text())))],
    }
    for name, artifact in artifacts.items():
        if read_manifest(artifact.location) is None:
            shutil.rmtree(folder / name, ignore_errors=True)
            _examples.made(folder / name, shards[name](), dupe_factor=1, masking="static")
    return artifacts


def articles(text: str) -> Iterator[Document]:
    """Wikitext-2's articles, all held out: a line ` = Title = ` begins one; headings go, and its @-@ is a hyphen."""
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


def sizes(artifacts: dict[str, Artifact]) -> dict[str, int]:
    return {name: len(ExampleDataset(artifact, "heldout")) for name, artifact in artifacts.items()}


def result(side: str, seed: int, minutes: float, folder: Path, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """A side's run and its losses, made now or before; the trainer's points stand where those of Cloze do."""
    file = folder / f"{side}-{seed}.json"
    if not file.exists():
        print(f"seed {seed}: {side} trains for {minutes:g} minutes", flush=True)
        if side == "cloze":
            found = ours(seed, minutes, folder, artifacts["books"])
        else:
            moments = [point["minutes"] for point in json.loads((folder / f"cloze-{seed}.json").read_text())["curve"]]
            found = theirs(seed, minutes, folder, artifacts["books"], moments)
        print(f"seed {seed}: {side} made {found['steps']:,} steps; its losses are taken", flush=True)
        *_, (_, last) = points = found.pop("points")
        found["curve"] = [{"minutes": at, **losses(path, artifacts, SAMPLE)} for at, path in points]
        file.write_text(json.dumps({**found, **losses(last, artifacts)}))
    return json.loads(file.read_text())


def settings(seed: int, minutes: float) -> dict[str, Any]:
    """Of the pretrain stage."""
    every = 10 * max(2, round(minutes))  # about ten points
    return {
        "model": MODEL,
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20}],
        "budget": f"{round(60 * minutes)}s",
        "optimizer": {
            **OPTIMIZER,
            "bias_correction": True,
            "warmup_steps": round(WARMUP * 60 * minutes * STEPS_PER_SECOND),
        },
        "global_batch_size": BATCH,
        "micro_batch_size": BATCH,
        "group_by_length": BATCH,
        "gpus": 0,
        "workers": 1,
        "threads": 2,
        "seed": seed,
        "checkpoint_every": every,
        "keep_checkpoints": 10_000,
        "log_every": 10,  # a row for every checkpoint
        "eval_every": 10**9,
        "eval_batches": 1,
    }


def ours(seed: int, minutes: float, folder: Path, artifact: Artifact) -> dict[str, Any]:
    """The pretrain stage as a run has it. Points: minutes since the first step, and the weights that there were."""
    from cloze.infra.ray_session import ray_session
    from cloze.training.pretrain.config import PretrainConfig
    from cloze.training.pretrain.stage import run

    to = folder / f"runs-{seed}/cloze"
    if read_manifest(Location(str(to))) is None:
        shutil.rmtree(to, ignore_errors=True)  # half a run is no run of so many minutes on end
        config = PretrainConfig.model_validate_json(json.dumps(settings(seed, minutes)))
        inputs = {"vocab": _examples.artifact(folder / "books", "vocab"), "examples-128": artifact}
        with ray_session():
            run(config, inputs, Output(Location(str(to)), "pretrain", 1, "0", Teller()))
    rows = json_lines.read(Location(str(to / "metrics.jsonl")))
    train = [row for row in rows if row["split"] == "train"]
    start = train[0]["time"] - train[0]["seconds"]
    at = {row["step"]: (row["time"] - start) / 60 for row in train}
    kept = {int(file.parent.name.split("-")[1]): file for file in to.glob("checkpoints/step-*/model.safetensors")}
    *points, end = [(at[step], str(file)) for step, file in sorted(kept.items())]
    manifest = read_manifest(Location(str(to)))
    assert manifest
    return {
        "steps": train[-1]["step"],
        "sequences": train[-1]["step"] * BATCH,
        "precision": manifest.facts["precision"],
        "points": [*((minute, file) for minute, file in points if minute < 0.95 * end[0]), end],
    }


class Teller:
    """A line of progress now and then."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def __call__(self, done: float, total: float, unit: str, note: str) -> None:
        if time.monotonic() - self.told > 30:
            self.told = time.monotonic()
            print(f"  {done:.1f} {unit}, {note}", flush=True)


def theirs(seed: int, minutes: float, folder: Path, artifact: Artifact, moments: list[float]) -> dict[str, Any]:
    to = folder / f"runs-{seed}/trainer"
    record = to / "record.json"
    if not record.exists():
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        asked = {"seed": seed, "minutes": minutes, "moments": moments, "batch": BATCH, "warmup": WARMUP}
        asked |= {"model": MODEL, "optimizer": OPTIMIZER}
        command = [sys.executable, "-m", "tests.benchmarks._trainer", str(to), artifact.location.uri, json.dumps(asked)]
        subprocess.run(command, check=True)
    return json.loads(record.read_text())


@torch.no_grad()
def losses(weights: str | Path, artifacts: dict[str, Artifact], some: int | None = None) -> dict[str, float]:
    """Name of a held-out set -> mean loss over its masked positions, in fp32: of all its examples, or the same some."""
    torch.set_num_threads(2)
    model = BertForPreTraining(BertConfig.model_validate(MODEL), VOCAB_SIZE).eval()
    model.load_state_dict(load_file(weights))
    objective, one, found = Objective(model, "fp32"), torch.ones(()), {}
    for name, artifact in artifacts.items():
        heldout = ExampleDataset(artifact, "heldout")
        (rows,) = heldout.sample(0, some or len(heldout), len(heldout))
        sums = sum(objective(collate(piece), one, one)[1] for piece in by_length(rows))
        found[name] = float(sums[0] / sums[2])
    return found


def by_length(rows: ExampleArrays) -> Iterator[ExampleArrays]:
    order = rows.input_ids.lengths.argsort(kind="stable")
    for start in range(0, len(rows), EVAL_BATCH):
        yield rows.take(order[start : start + EVAL_BATCH])


def show_curves(seed: int, cloze: list[dict[str, float]], trainer: list[dict[str, float]]) -> None:
    names = [name for name in cloze[0] if name != "minutes"]
    heads = [f"{name}, {side}" for name in names for side in SIDES]
    table = Table("minutes", *heads, title=f"seed {seed}: held-out masked-LM loss on {SAMPLE} examples of each set")
    shared = min(len(cloze), len(trainer)) - 1  # moments before the end
    for one, other in zip([*cloze[:shared], cloze[-1]], [*trainer[:shared], trainer[-1]], strict=True):
        table.add_row(f"{one['minutes']:.1f}", *(f"{side[name]:.3f}" for name in names for side in (one, other)))
    Console().print(table)
