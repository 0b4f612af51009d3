"""A pretraining of eight steps on small examples: settings, inputs, and a worker in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef, newest_checkpoint
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.stage import run
from cloze.training.pretrain.trainer import PretrainSetup, PretrainTrainer, StepHook
from tests.training.small_examples import PIECES, examples_artifact, vocab_artifact

TIMED = {"sequences_per_second", "tokens_per_second", "mfu", "wait", "seconds", "time", "peak_memory"}


def config(**changed: Any) -> PretrainConfig:
    settings = {
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 16,
        },
        "phases": [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 8}],
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "global_batch_size": 12,
        "precision": "fp32",
        "micro_batch_size": 4,
        "workers": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "eval_every": 4,
        "eval_batches": 1,
    }
    return PretrainConfig.model_validate_json(json.dumps(settings | changed))


def spot_config() -> PretrainConfig:
    """Forty steps of one worker without ZeRO, with no checkpoint before the last."""
    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 40}]
    return config(workers=1, zero_stage=0, checkpoint_every=1000, eval_every=1000, keep_checkpoints=9, phases=phases)


def elastic_config() -> PretrainConfig:
    """Fifty steps of one or two workers, without dropout."""
    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 50}]
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return config(workers=[1, 2], model=config().model.model_dump() | no_dropout, phases=phases)


def small_inputs(root: Path, masked: bool = True) -> dict[str, Artifact]:
    return {"vocab": vocab_artifact(root), "examples-16": examples_artifact(root, masked=masked)}


def trained(folder: Path, inputs: dict[str, Artifact], settings: PretrainConfig, **more: Any) -> Artifact:
    """Run the stage; requires a Ray session."""
    out = Output(Location(str(folder)), "pretrain", 1, "0")
    run(settings, inputs, out, **more)
    return Artifact(out.location, "pretrain", "0")


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    return untimed(json_lines.read(artifact.location / "metrics.jsonl"))


def ignore_progress(done: float, note: str) -> bool:
    return False


def single_worker(
    settings: PretrainConfig,
    inputs: dict[str, Artifact],
    folder: Path,
    on_step: StepHook | None = None,
    report_progress: Callable[[float, str], bool] = ignore_progress,
    is_preempted: Callable[[], bool] = lambda: False,
) -> PretrainTrainer:
    """A worker without Ray; requires the fixture `single_process_group`."""
    examples = tuple(inputs[f"examples-{phase.max_seq_length}"] for phase in settings.phases)
    return PretrainTrainer(
        PretrainSetup(settings, examples, Location(str(folder)), PIECES), report_progress, on_step, is_preempted
    )


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def last(folder: Path) -> CheckpointRef:
    found = newest_checkpoint(Location(str(folder)))
    assert found
    return found


def same_bits(one: CheckpointRef, other: CheckpointRef) -> bool:
    first, second = one.tensors(), other.tensors()
    return all(torch.equal(first[kind][name], second[kind][name]) for kind in first for name in first[kind])


def steps_of(folder: Path) -> list[int]:
    """The steps of the existing checkpoints."""
    return sorted(int(found.name[5:11]) for found in (folder / "checkpoints").glob("step-*"))
