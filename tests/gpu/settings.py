"""The pretrainings of the checks: their configuration, and a worker that keeps the ZeRO stage and records its batches."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from cloze.pipeline.core.artifacts import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.cluster.ray_train import is_preempted
from cloze.training.pretrain import trainer
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.engine import Engine, TorchBackend
from cloze.training.pretrain.prefetch import GlobalBatch, PhaseData
from cloze.training.pretrain.train_state import PretrainSetup, TrainState
from cloze.training.pretrain.trainer import PretrainTrainer, StepHook
from tests.gpu.kit import Kit, require
from tests.gpu.training import artifact, pieces, shape


def pretrain_config(kit: Kit, steps: int, model: dict[str, Any] | None = None, **changed: Any) -> PretrainConfig:
    """One worker, two micro-batches a step, a row of metrics for each step; eager unless `changed`."""
    settings = {
        "model": model or shape(kit),
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20, "steps": steps}],
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "global_batch_size": 16 if kit.tiny else 64,
        "micro_batch_size": 8 if kit.tiny else 32,
        "group_by_length": 8 if kit.tiny else 32,
        "gpus": 1 if kit.device == "cuda" else 0,
        "workers": 1,
        "log_every": 1,
        "checkpoint_every": 2,
        "eval_every": 1000,
        "eval_batches": 1,
        "max_failures": 0,
        "step_timeout": 60.0,
    }
    if "compile" in PretrainConfig.model_fields:
        settings["compile"] = False
    return PretrainConfig.model_validate_json(json.dumps(settings | changed))


def output(folder: Path) -> Output:
    """The pretrain artifact in a folder of its own."""
    return Output(Location(str(folder / "pretrain/0")), "pretrain", 1, "0")


def inputs(kit: Kit) -> dict[str, Any]:
    return {name: artifact(kit, name) for name in ("vocab", "examples-128")}


def setup_of(kit: Kit, config: PretrainConfig, folder: Path) -> PretrainSetup:
    return PretrainSetup(config, (artifact(kit, "examples-128"),), output(folder).location, pieces(kit))


def train_in_worker(argument: tuple[PretrainSetup, StepHook | None], report_progress: ReportProgress) -> None:
    """In place of the stage's own: keeps the configured ZeRO stage with one worker, too, and checks the engine's."""
    setup, on_step = argument
    with recorded(setup):
        worker = PretrainTrainer(setup, report_progress, on_step, is_preempted)
        found, configured = zero_stage_of(worker.engine), setup.config.zero_stage
        require(found == configured, f"the engine is at ZeRO {found} in place of {configured}")
        worker.train()


def zero_stage_of(engine: Engine) -> int:
    """The stage that is in force: asked of DeepSpeed's engine, 0 for plain PyTorch."""
    backend: Any = engine._backend
    return 0 if isinstance(backend, TorchBackend) else backend._engine.zero_optimization_stage()


@contextmanager
def recorded(setup: PretrainSetup) -> Iterator[None]:
    """Inside, each batch adds a line to batches.jsonl next to the artifact: its step, and a digest of its tensors."""
    file = Path(setup.location.path).parents[1] / "batches.jsonl"

    class RecordingPhaseData(PhaseData):
        _step = 0

        def open(self, state: TrainState) -> None:
            self._step = state.step + 1
            super().open(state)

        def next(self) -> tuple[GlobalBatch, float]:
            batch, waited = super().next()
            with file.open("a") as out:
                out.write(json.dumps([self._step, digest(batch)]) + "\n")
            return batch, waited

    with patch.object(trainer, "PhaseData", RecordingPhaseData):
        yield


def digest(batch: GlobalBatch) -> str:
    """Of the examples' numbers and of all tensors, so also of the masks."""
    found = hashlib.sha256(json.dumps(batch.examples).encode())
    for micro_batch in batch.micro_batches:
        for tensor in micro_batch:
            found.update(tensor.cpu().numpy().tobytes() if isinstance(tensor, Tensor) else repr(tensor).encode())
    return found.hexdigest()


def batches_of(folder: Path) -> dict[int, set[str]]:
    """Step -> the digests of its batches: one, also if the step was repeated."""
    found: dict[int, set[str]] = {}
    for line in (folder / "batches.jsonl").read_text().splitlines():
        step, value = json.loads(line)
        found.setdefault(step, set()).add(value)
    return found
