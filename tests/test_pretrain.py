"""Pretraining through Ray Train and DeepSpeed: exact after any kill, the same for any ZeRO stage and worker count."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_examples import PIECES, alone, examples_artifact, vocab_artifact  # noqa: F401 (alone: a fixture)

from pipeline.artifacts import Artifact, Output
from pipeline.config import UserError
from pipeline.storage import Location
from training import pretrain
from training.checkpoint import CheckpointRef, newest
from training.pretrain import PretrainConfig, Setup, Worker, final_checkpoint, run

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TIMED = {"sequences_per_second", "tokens_per_second", "wait", "seconds"}


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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("inputs")
    return {"vocab": vocab_artifact(root), "examples-16": examples_artifact(root)}


def output(folder: Path) -> Output:
    return Output(Location(str(folder)), "pretrain", 1, "0")


def rows(artifact: Artifact) -> list[dict[str, Any]]:
    lines = (artifact.location / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def trained(folder: Path, inputs: dict[str, Artifact], settings: PretrainConfig, **more: Any) -> Artifact:
    out = output(folder)
    run(settings, inputs, out, **more)
    return Artifact(out.location, "pretrain", "0")


@pytest.fixture(scope="module")
def uninterrupted(ray_session: None, inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trained(tmp_path_factory.mktemp("uninterrupted"), inputs, config())


def same_bits(one: Artifact, other: Artifact) -> bool:
    mine, theirs = final_checkpoint(one).tensors(), final_checkpoint(other).tensors()
    return all(torch.equal(mine[kind][name], theirs[kind][name]) for kind in mine for name in mine[kind])


def test_training_writes_metrics_of_each_step_and_of_the_held_out_split(uninterrupted: Artifact) -> None:
    found = rows(uninterrupted)
    assert [row["step"] for row in found if row["split"] == "train"] == list(range(1, 9))
    assert [row["step"] for row in found if row["split"] == "heldout"] == [4, 8]
    assert all(row["examples"] == 12 for row in found if row["split"] == "heldout")
    facts = uninterrupted.manifest.facts
    assert facts["checkpoint"]["digest"] == newest(uninterrupted.location).digest
    assert facts["metrics"]["train"]["step"] == 8
    assert not (uninterrupted.location / "ray").exists()


def test_a_killed_worker_leaves_the_same_bits_and_the_same_metrics(
    uninterrupted: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"

    def kill_once(rank: int, step: int) -> None:
        if rank == 1 and step == 5 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    again = trained(tmp_path / "out", inputs, config(), on_step=kill_once)
    assert killed.exists()
    assert same_bits(uninterrupted, again)
    assert rows(uninterrupted) == rows(again)
    assert final_checkpoint(uninterrupted).digest == final_checkpoint(again).digest


@pytest.fixture
def saved_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which a save was tried; those under `broken` fail."""
    tried: list[int] = []
    real = pretrain.save

    def save(artifact: Location, step: int, *rest: Any) -> CheckpointRef:
        tried.append(step)
        if step in (4, 6) and tried.count(step) < (2 if step == 6 else 99):
            raise OSError("No space left on device")
        return real(artifact, step, *rest)

    monkeypatch.setattr(pretrain, "save", save)
    monkeypatch.setattr(pretrain, "_PAUSE", 0.0)
    return tried


@pytest.mark.usefixtures("alone")
def test_a_full_disk_does_not_end_training(inputs: dict[str, Artifact], tmp_path: Path, saved_at: list[int]) -> None:
    notes: list[str] = []
    setup = Setup(config(keep_checkpoints=9), inputs, Location(str(tmp_path / "out")), PIECES)
    Worker(setup, lambda done, note: notes.append(note), None).train()
    assert saved_at == [2, 4, 4, 4, 6, 6, 8]  # at 4 it never came, at 6 at the second attempt
    assert {folder.name[:11] for folder in (tmp_path / "out/checkpoints").iterdir()} == {
        "step-000002",
        "step-000006",
        "step-000008",
    }
    failed = "checkpoint at step 4 not written (No space left on device), attempt 3"
    assert failed in notes
    assert [failed in note for note in notes if note.startswith("loss")] == [step in (5, 6) for step in range(1, 9)]


@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_no_number_ends_training_before_it_is_saved(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.engine import Engine, Step, Totals

    worker = Worker(Setup(config(), inputs, Location(str(tmp_path / "out")), PIECES), lambda done, note: None, None)
    real = Engine.step

    def step(engine: Engine, *given: Any) -> Step:
        done = real(engine, *given)
        return done if engine.updates < 4 else Step(done.totals + Totals(mlm_loss=float("nan")), done.grad_norm)

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(UserError, match=r"^pretrain: loss nan .* at step 4; lower pretrain\.optimizer\.learning_rate"):
        worker.train()
    assert [folder.name[:11] for folder in (tmp_path / "out/checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.usefixtures("alone")
def test_a_last_checkpoint_that_cannot_be_written_is_an_error_of_one_line(
    inputs: dict[str, Artifact], tmp_path: Path, saved_at: list[int]
) -> None:
    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 4}]
    setup = Setup(config(phases=phases), inputs, Location(str(tmp_path / "out")), PIECES)
    with pytest.raises(UserError, match="the last checkpoint cannot be written"):
        Worker(setup, lambda done, note: None, None).train()
    assert newest(setup.location).step == 2


@pytest.mark.usefixtures("alone")
def test_a_run_goes_on_inside_the_phase_where_it_stopped(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """Stopped in either phase, the run goes on inside it; masks are drawn in the first, stored in the second."""
    root = tmp_path / "inputs"
    both = {**inputs, "examples-12": examples_artifact(root, length=12, masked=False)}
    phases = [
        {"max_seq_length": length, "max_predictions_per_seq": 3, "steps": steps} for length, steps in ((12, 3), (16, 4))
    ]
    settings = config(phases=phases, checkpoint_every=1, model=config().model.model_dump() | DROPOUT)

    def outcome(folder: str, stop_after: int) -> list[dict[str, Any]]:
        setup = Setup(settings, both, Location(str(tmp_path / folder)), PIECES)

        def stop(rank: int, step: int) -> None:
            if step == stop_after:
                raise InterruptedError

        with contextlib.suppress(InterruptedError):
            Worker(setup, lambda done, note: None, stop).train()
        worker = Worker(setup, lambda done, note: None, None)
        assert worker.step == stop_after
        worker.train()
        return [{key: value for key, value in row.items() if key not in TIMED} for row in worker.recorder.rows]

    whole = outcome("whole", 7)
    assert outcome("first", 2) == outcome("edge", 3) == outcome("second", 5) == whole
    assert [row["step"] for row in whole if row["split"] == "heldout"] == [3, 4, 7]


def test_more_positions_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_length 32 is more than the model's 16 positions"):
        config(phases=[{"max_seq_length": 32, "max_predictions_per_seq": 3, "steps": 8}])


def test_too_few_examples_for_a_batch_is_an_error_of_one_line(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 40 examples, fewer than global_batch_size 64"):
        trained(tmp_path, inputs, config(global_batch_size=64))
