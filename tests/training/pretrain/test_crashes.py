"""Pretraining that is killed at random steps, during a save, or completely: the result of a resumed run is the same as
that of an uninterrupted run, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.pretrain import prefetch, trainer
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.stage import final_checkpoint
from cloze.training.pretrain.trainer import StepHook
from tests.training.pretraining_drivers import command
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
FIRST = {"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": STEPS // 2}
PHASES = [FIRST, FIRST | {"global_batch_size": 8, "micro_batch_size": 2, "learning_rate": 5e-4}]  # another schedule


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Examples without stored masks: new masks are drawn in each epoch."""
    return small_inputs(tmp_path_factory.mktemp("inputs"), masked=False)


def settings(stage: int) -> PretrainConfig:
    """With dropout; at ZeRO 3 every weight is partitioned, even small ones."""
    partitioned = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return config(zero_stage=stage, phases=PHASES, deepspeed=partitioned)


@pytest.fixture(scope="module")
def whole(
    request: pytest.FixtureRequest,
    ray_session: None,
    inputs: dict[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, Artifact]:
    """The ZeRO stage, and an uninterrupted run of two workers."""
    stage = request.param
    return stage, trained(tmp_path_factory.mktemp("whole"), inputs, settings(stage))


def same(one: Artifact, other: Artifact) -> bool:
    return same_bits(final_checkpoint(one), final_checkpoint(other)) and rows(one) == rows(other)


def crashing(folder: Path, killed: dict[int, int], saving: int) -> StepHook:
    """Kill the rank of each step in `killed` after that step, and worker 0 while it saves step `saving`; each once."""

    def crash(rank: int, step: int) -> None:
        if killed.get(step) == rank and not (folder / f"killed-{step}").exists():
            (folder / f"killed-{step}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and not (folder / "killed-saving").exists():
            real = Location.write_bytes

            def half_written(file: Location, data: Any, *confirm: Any) -> None:
                if f"/step-{saving:06d}-" in file.uri and not (folder / "killed-saving").exists():
                    (folder / "killed-saving").touch()
                    half = Path(file.path).with_name(f".{file.name}.0f.tmp")  # the temporary name used by write_bytes
                    half.parent.mkdir(parents=True, exist_ok=True)
                    half.write_bytes(bytes(data)[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                real(file, data)

            Location.write_bytes = half_written

    return crash


def assert_crashed(folder: Path, times: int, saving: int, faults: str) -> None:
    assert len(list(folder.glob("killed-*"))) == times, faults
    assert not list(folder.glob(f"**/checkpoints/step-{saving:06d}-*/*.tmp")), faults


def kill_driver(step: int, everything: bool, inputs: dict[str, Artifact], folder: Path, stage: int) -> None:
    """Run pretraining in a process, and kill it after that step: only the process, or `everything` it started, too."""
    steps = folder / "steps"
    with subprocess.Popen(command("local", inputs, folder, settings(stage))) as driver:
        deadline = time.monotonic() + 300
        while not any(int(done.name) >= step for done in steps.glob("*")):  # it may continue beyond that step
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if child.is_running() and child.name().startswith("ray::RayTrain")]
        assert len(workers) == 2
        kill(*(children if everything else ()), psutil.Process(driver.pid))
    left = psutil.wait_procs(workers, timeout=30)[1]
    assert not [worker for worker in left if worker.status() != psutil.STATUS_ZOMBIE]  # no worker outlives its driver
    kill(*children)  # two agents of Ray do
    shutil.rmtree(steps)


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # Ray's processes also end each other
            process.kill()


@pytest.mark.campaign
@pytest.mark.parametrize("whole", [1, 3], indirect=True)
def test_workers_killed_at_random_steps_and_while_saving_leave_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    stage, uninterrupted = whole
    draw = random.Random()
    first, second = sorted(draw.sample(range(1, STEPS), 2))
    killed = {first: draw.randrange(2), second: draw.randrange(2)}
    saving = draw.randrange(1, STEPS // 2 - 1) * 2  # every second step; later checkpoints delete its remains
    faults = f"killed after steps {killed} (by rank) and while saving step {saving}"
    print(faults)
    again = trained(tmp_path / "out", inputs, settings(stage), on_step=crashing(tmp_path, killed, saving))
    assert_crashed(tmp_path, 3, saving, faults)
    assert same(uninterrupted, again), faults


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
@pytest.mark.parametrize(("module", "disturbed"), [(trainer, "keyed_seed"), (prefetch, "_dynamic_masking")])
def test_other_random_draws_after_a_stop_change_the_result(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, disturbed: str
) -> None:
    """The control of the tests above: other draws of dropout or masks lead to other losses and bits."""

    def resume(name: str) -> tuple[CheckpointRef, list[dict[str, Any]]]:
        worker = single_worker(config(), inputs, tmp_path / name)
        assert worker.state.step == 5
        worker.train()
        return last(tmp_path / name), untimed(worker.state.metrics.rows)

    for name in ("same", "disturbed"):
        single_worker(config(), inputs, tmp_path / name, report_progress=lambda done, note: done >= 5).train()
    assert same_bits(last(tmp_path / "same"), last(tmp_path / "disturbed"))
    ended, rows_of_same = resume("same")
    real = getattr(module, disturbed)
    monkeypatch.setattr(module, disturbed, lambda seed, *rest: real(seed + 1, *rest))
    other, rows_of_other = resume("disturbed")
    assert not same_bits(ended, other)
    pairs = list(zip(rows_of_same, rows_of_other, strict=True))
    assert [one["step"] for one, two in pairs if one != two and one["split"] == "train"] == [6, 7, 8]
