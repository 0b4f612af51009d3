"""Pretraining that is killed at random steps, in the middle of saving, and as a whole: its losses are those of a run
that never was, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.pretrain import trainer
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.stage import final_checkpoint
from cloze.training.pretrain.trainer import StepHook
from tests.training.pretraining_drivers import command
from tests.training.small_examples import single_process_group  # noqa: F401 (a fixture)
from tests.training.small_pretraining import (
    config,
    last,
    rows,
    same_bits,
    single_worker,
    small_inputs,
    trained,
    untimed,
)

STEPS = 12
PHASES = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": STEPS}]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Stored without masks: they are drawn anew for each epoch."""
    return small_inputs(tmp_path_factory.mktemp("inputs"), masked=False)


def settings(stage: int) -> PretrainConfig:
    """With dropout; at ZeRO 3 every weight is parted, however small."""
    parted = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return config(zero_stage=stage, phases=PHASES, deepspeed=parted)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest,
    ray_session: None,
    inputs: dict[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, Artifact]:
    """The ZeRO stage, and two workers' run that nothing happened to."""
    stage = request.param
    return stage, trained(tmp_path_factory.mktemp("whole"), inputs, settings(stage))


def same(one: Artifact, other: Artifact) -> bool:
    return same_bits(final_checkpoint(one), final_checkpoint(other)) and rows(one) == rows(other)


def crashing(folder: Path, killed: dict[int, int], saving: int) -> StepHook:
    """Kills, once each, the rank of each step in `killed` after that step, and worker 0 amid saving step `saving`."""

    def crash(rank: int, step: int) -> None:
        if killed.get(step) == rank and not (folder / f"killed-{step}").exists():
            (folder / f"killed-{step}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and not (folder / "killed-saving").exists():
            real = Location.write_bytes

            def half_written(file: Location, data: Any) -> None:
                if f"/step-{saving:06d}-" in file.uri and not (folder / "killed-saving").exists():
                    (folder / "killed-saving").touch()
                    half = Path(file.path).with_name(f".{file.name}.0f.tmp")  # as write_bytes has it until it is whole
                    half.parent.mkdir(parents=True, exist_ok=True)
                    half.write_bytes(bytes(data)[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                real(file, data)

            Location.write_bytes = half_written

    return crash


def assert_crashed(folder: Path, times: int, saving: int, told: str) -> None:
    assert len(list(folder.glob("killed-*"))) == times, told
    assert not list(folder.glob(f"**/checkpoints/step-{saving:06d}-*/*.tmp")), told


def kill_driver(step: int, everything: bool, inputs: dict[str, Artifact], folder: Path, stage: int) -> None:
    """Pretraining in a process of its own, which is killed after that step: alone, or `everything` it has started."""
    steps = folder / "steps"
    with subprocess.Popen(command("local", inputs, folder, settings(stage))) as driver:
        deadline = time.monotonic() + 300
        while not any(int(done.name) >= step for done in steps.glob("*")):  # it may go on beyond that step
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if child.is_running() and child.name().startswith("ray::RayTrain")]
        assert len(workers) == 2
        kill(*(children if everything else ()), psutil.Process(driver.pid))
    left = psutil.wait_procs(workers, timeout=30)[1]
    assert not [worker for worker in left if worker.status() != psutil.STATUS_ZOMBIE]  # none outlives its driver
    kill(*children)  # two agents of Ray's do
    shutil.rmtree(steps)


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # Ray's end one another too
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [3], indirect=True)
def test_one_run_whose_driver_and_everything_and_a_worker_were_killed_ends_with_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """One fault of each kind, one after the other: the campaign has them apart, at random steps of any ZeRO stage."""
    stage, uninterrupted = whole
    draw = random.Random()
    driver, everything = sorted(draw.sample(range(1, 5), 2))
    saving, killed = 8, {draw.randrange(9, STEPS): draw.randrange(2)}
    told = f"driver {driver}, everything {everything}, then while saving step {saving} and {killed} (by rank)"
    print(told)
    kill_driver(driver, False, inputs, tmp_path, stage)
    kill_driver(everything, True, inputs, tmp_path, stage)
    again = trained(tmp_path, inputs, settings(stage), on_step=crashing(tmp_path, killed, saving))
    assert_crashed(tmp_path, 2, saving, told)
    assert same(uninterrupted, again), told


@pytest.mark.campaign
@pytest.mark.parametrize("whole", [1, 3], indirect=True)
def test_workers_killed_at_random_steps_and_while_saving_leave_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    stage, uninterrupted = whole
    draw = random.Random()
    first, second = sorted(draw.sample(range(1, STEPS), 2))
    killed = {first: draw.randrange(2), second: draw.randrange(2)}
    saving = draw.randrange(1, STEPS // 2 - 1) * 2  # every second step; later ones take away what is left of it
    told = f"killed after steps {killed} (by rank) and while saving step {saving}"
    print(told)
    again = trained(tmp_path / "out", inputs, settings(stage), on_step=crashing(tmp_path, killed, saving))
    assert_crashed(tmp_path, 3, saving, told)
    assert same(uninterrupted, again), told


@pytest.mark.campaign
@pytest.mark.parametrize("whole", [1, 3], indirect=True)
@pytest.mark.parametrize("everything", [False, True])
def test_after_its_driver_or_everything_was_killed_the_same_run_ends_with_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path, everything: bool
) -> None:
    stage, uninterrupted = whole
    step = random.Random().randrange(1, STEPS - 1)
    print(f"killed after step {step}")
    kill_driver(step, everything, inputs, tmp_path, stage)
    again = trained(tmp_path, inputs, settings(stage))
    assert same(uninterrupted, again), f"killed after step {step}"


@pytest.mark.usefixtures("single_process_group")
@pytest.mark.parametrize("disturbed", ["keyed_seed", "_masking"])
def test_other_random_states_after_a_stop_are_seen(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: str
) -> None:
    """The control of what is above: dropout or masks that go on with other draws leave other losses and bits."""

    def goes_on(name: str) -> tuple[CheckpointRef, list[dict[str, Any]]]:
        worker = single_worker(config(), inputs, tmp_path / name)
        assert worker.state.step == 5
        worker.train()
        return last(tmp_path / name), untimed(worker.state.metrics.rows)

    for name in ("same", "disturbed"):
        single_worker(config(), inputs, tmp_path / name, report_progress=lambda done, note: done >= 5).train()
    assert same_bits(last(tmp_path / "same"), last(tmp_path / "disturbed"))
    ended, rows_of_same = goes_on("same")
    real = getattr(trainer, disturbed)
    monkeypatch.setattr(trainer, disturbed, lambda seed, *rest: real(seed + 1, *rest))
    other, rows_of_other = goes_on("disturbed")
    assert not same_bits(ended, other)
    pairs = list(zip(rows_of_same, rows_of_other, strict=True))
    assert [one["step"] for one, two in pairs if one != two and one["split"] == "train"] == [6, 7, 8]
