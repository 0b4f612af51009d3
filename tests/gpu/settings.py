"""The pretrainings of the checks: their settings, and a worker that keeps the ZeRO stage and records its batches."""

import hashlib
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from cloze.pipeline.core.output import Output
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
        "compile": False,
    }
    return PretrainConfig.model_validate_json(json.dumps(settings | changed))


def output(folder: Path) -> Output:
    """The pretrain artifact in a folder of its own."""
    return Output(Location(str(folder / "pretrain/0")), "pretrain", 1, "0")


def inputs(kit: Kit) -> dict[str, Any]:
    return {name: artifact(kit, name) for name in ("vocab", "examples-128")}


def setup_of(kit: Kit, config: PretrainConfig, folder: Path) -> PretrainSetup:
    return PretrainSetup(config, (artifact(kit, "examples-128"),), output(folder).location, pieces(kit))


def reference_config(kit: Kit, **changed: Any) -> PretrainConfig:
    """The run that is compared with the same one after a kill or a stop."""
    return pretrain_config(kit, steps=10, precision="fp32", zero_stage=1, **changed)


#: Precision and ZeRO stage.
VARIANTS = tuple((precision, stage) for precision in ("bf16", "fp16") for stage in (1, 3, 0, 2))


def variant_config(kit: Kit, precision: str, zero_stage: int) -> PretrainConfig:
    return pretrain_config(kit, steps=6, precision=precision, zero_stage=zero_stage)


def train_reference_and_variants(argument: tuple[PretrainSetup, StepHook | None], report: ReportProgress) -> None:
    """Train what the stage asks for, then the VARIANTS: so they start in one process, which takes seconds.

    Adds a line for each to variants.jsonl next to the artifact.
    """
    setup, _ = argument
    train_in_worker(argument, report)
    folder = Path(setup.location.path).parents[1]
    for precision, zero_stage in VARIANTS:
        phase = setup.config.phases[0].model_copy(update={"steps": 6})
        changed = {"precision": precision, "zero_stage": zero_stage, "phases": [phase]}
        config = setup.config.model_copy(update=changed)
        location = output(folder / f"{precision}-{zero_stage}").location
        found: dict[str, Any] = {"precision": precision, "zero_stage": zero_stage}
        try:
            trained = train_in_worker((replace(setup, config=config, location=location), None), report)
            found["rows"] = [row for row in trained.state.metrics.rows if row["split"] == "train"]
        except Exception as error:  # the next one may work
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {error}"
        with (folder / "variants.jsonl").open("a") as out:
            out.write(json.dumps(found) + "\n")


def train_in_worker(argument: tuple[PretrainSetup, StepHook | None], report: ReportProgress) -> PretrainTrainer:
    """In place of the stage's own: keeps the configured ZeRO stage with one worker, too, and checks the engine's."""
    setup, on_step = argument
    with recorded(setup):
        worker = PretrainTrainer(setup, report, on_step, is_preempted)
        found, configured = zero_stage_of(worker.engine), setup.config.zero_stage
        require(found == configured, f"the engine is at ZeRO {found} in place of {configured}")
        worker.train()
        return worker


def zero_stage_of(engine: Engine) -> int:
    """The stage that is in force: asked of DeepSpeed's engine, 0 for plain PyTorch."""
    backend: Any = engine._backend
    return 0 if isinstance(backend, TorchBackend) else backend._engine.zero_optimization_stage()


@contextmanager
def recorded(setup: PretrainSetup) -> Iterator[None]:
    """Inside, each batch adds a line to batches.jsonl next to the artifact: its step, and a digest of its tensors."""
    folder = Path(setup.location.path).parents[1]
    folder.mkdir(parents=True, exist_ok=True)

    class RecordingPhaseData(PhaseData):
        _step = 0

        def open(self, state: TrainState) -> None:
            self._step = state.step + 1
            super().open(state)

        def next(self) -> tuple[GlobalBatch, float]:
            batch, waited = super().next()
            with (folder / "batches.jsonl").open("a") as out:
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
