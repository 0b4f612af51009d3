"""Labelled files -> a task trained in this process from a tiny checkpoint, for the tests of tasks."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, tokenizer_config_json
from cloze.training.checkpoints import checkpoint
from cloze.training.checkpoints.checkpoint import SavedConfig
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.finetune.encode import stage as encode_stage
from cloze.training.finetune.encoders.pretrained_encoder import from_checkpoint
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.stage import run
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import Task
from cloze.training.finetune.tasks.task_config import TaskConfig
from cloze.training.finetune.trial_runs import run_job
from cloze.training.finetune.trials import FinetuneSetup, unfinished_jobs
from cloze.training.model.bert import BertConfig, BertForPreTraining

# Its weights are larger than usual and hidden dropout is 0, so that one layer learns within seconds.
MODEL = BertConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    initializer_range=0.1,
)
#: Settings with which a tiny model learns a tiny task.
SETTINGS = {
    "name": "tiny",
    "max_seq_length": 32,
    "learning_rate": 0.005,
    "batch_size": 8,
    "epochs": 8,
    "precision": "fp32",
    "threads": 1,
    "seed": 3,
}


def task_of_files(settings: TaskConfig, files: Mapping[str, Path]) -> Any:
    """The task of a file for each split, or of one file as "data"."""
    return task_of(settings).read(settings, {name: Location(str(path)) for name, path in files.items()})


def train_in_process(setup: FinetuneSetup, report_progress: ReportProgress = lambda done, note: False) -> None:
    """Run all jobs one after another in this process, which has a process group of its own."""
    try:
        for job in unfinished_jobs(setup):
            run_job(setup, job.argument, report_progress)
    finally:
        torch.use_deterministic_algorithms(False)


class MortalOutput(Output):
    """Kills the worker that first commits a part whose name starts with `doomed`. Logs name and process of each."""

    doomed = ""

    def commit(self, name: str, *arguments: Any, **more: Any) -> Any:
        log = Path(self.location.path).with_suffix(".log")
        log.parent.mkdir(exist_ok=True)
        first_time = not log.exists() or name not in log.read_text().split()
        with log.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        if name.startswith(self.doomed) and first_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().commit(name, *arguments, **more)


def encoded(settings: TaskConfig, inputs: Mapping[str, Any], folder: Path) -> Artifact:
    """The artifact of the task's encoded examples."""
    out = Output(Location(str(folder)), "encode", 1, "e")
    read = {name: item for name, item in inputs.items() if name not in ("checkpoint", "init", "encoded")}
    encode_stage.run(encode_stage.encode_config(settings), read, out)
    return Artifact(out.location, out.stage, out.fingerprint)


@dataclass
class Trained:
    """A finished fine-tuning of a task."""

    task: Task
    config: TaskConfig
    manifest: Manifest
    folder: Path

    def predictions(self, name: str = "pretrained") -> list[dict[str, Any]]:
        return json_lines.read(Location(str(self.folder / f"predictions/{name}.jsonl")))

    @property
    def model_folder(self) -> str:
        return str(self.folder / "model")

    def load(self) -> FineTunedModel:
        return FineTunedModel.from_folder(Location(self.model_folder), self.config)

    def score(self, metric: str, name: str = "pretrained") -> float:
        return self.manifest.facts["scores"][name][metric]


def setup_of(
    settings: TaskConfig, files: Mapping[str, Path], pieces: Sequence[str], root: Path, model: BertConfig = MODEL
) -> tuple[FinetuneSetup, dict[str, Any]]:
    """A setup, and the inputs of its stage: a checkpoint with random weights, whose vocabulary has these pieces."""
    vocab = [*SPECIAL_TOKENS, *pieces]
    (root / "vocab").mkdir()
    (root / "vocab/vocab.txt").write_text("".join(f"{piece}\n" for piece in vocab))
    build_tokenizer(vocab).save(str(root / "vocab/tokenizer.json"))
    (root / "vocab/tokenizer_config.json").write_text(tokenizer_config_json())
    weights = BertForPreTraining(model, len(vocab), seed=11).state_dict()
    saved = SavedConfig(model=model, vocab_size=len(vocab), nsp=True)
    reference = checkpoint.save_checkpoint(
        Location(str(root / "pretrain")), 5, {"model": weights}, checkpoint.CheckpointPayload(saved, {})
    )
    inputs: dict[str, Any] = {
        "checkpoint": reference,
        "vocab": Artifact(Location(str(root / "vocab")), "vocab", "v"),
        **{name: source_file(Location(str(path)), Location(str(root / "cache"))) for name, path in files.items()},
    }
    task = task_of_files(settings, files)
    encoder = from_checkpoint(reference, inputs["vocab"].location)
    out = Output(Location(str(root / "out")), "finetune-tiny", 1, "0")
    return FinetuneSetup(settings, task, task.encode(encoder.tokenizer()).splits, encoder, out), inputs


def train(
    settings: TaskConfig, files: Mapping[str, Path], pieces: Sequence[str], root: Path, model: BertConfig = MODEL
) -> Trained:
    """Fine-tune on the files in this process: see `setup_of`."""
    setup, inputs = setup_of(settings, files, pieces, root, model)
    train_in_process(setup)
    inputs["encoded"] = encoded(settings, inputs, root / "encoded")
    return Trained(setup.task, settings, run(settings, inputs, setup.out), root / "out")
