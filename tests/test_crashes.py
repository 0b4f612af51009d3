"""Pretraining that is killed at random steps, in the middle of saving, and as a whole: its losses are those of a run
that never was, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_examples import alone  # noqa: F401 (a fixture)
from small_pretraining import config, last, lone_worker, rows, same_bits, small_inputs, trained

from pipeline.artifacts import Artifact
from pipeline.storage import Location
from training import trainer
from training.pretrain import final_checkpoint

STEPS = 12
PHASES = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": STEPS}]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return small_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=[1, 3])
def whole(
    request: pytest.FixtureRequest,
    ray_session: None,
    inputs: dict[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, Artifact]:
    """The ZeRO stage, and two workers' run that nothing happened to; dropout is on, masks are drawn anew."""
    stage = request.param
    return stage, trained(tmp_path_factory.mktemp("whole"), inputs, config(zero_stage=stage, phases=PHASES))


def same(one: Artifact, other: Artifact) -> bool:
    return same_bits(final_checkpoint(one), final_checkpoint(other)) and rows(one) == rows(other)


@pytest.mark.slow
def test_workers_killed_at_random_steps_and_while_saving_leave_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    stage, uninterrupted = whole
    draw = random.Random()
    first, second = sorted(draw.sample(range(1, STEPS), 2))
    plan = {first: draw.randrange(2), second: draw.randrange(2)}
    saving = draw.randrange(1, STEPS // 2) * 2  # a checkpoint is written every second step

    def crash(rank: int, step: int) -> None:
        if plan.get(step) == rank and not (tmp_path / f"killed-{step}").exists():
            (tmp_path / f"killed-{step}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and not (tmp_path / "killed-saving").exists():
            real = Location.write_bytes

            def half_written(file: Location, data: Any) -> None:
                if f"/step-{saving:06d}-" in file.uri and not (tmp_path / "killed-saving").exists():
                    (tmp_path / "killed-saving").touch()
                    Path(file.path).parent.mkdir(parents=True, exist_ok=True)
                    Path(file.path).write_bytes(bytes(data)[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                real(file, data)

            Location.write_bytes = half_written

    told = f"killed after steps {plan} (by rank) and while saving step {saving}"
    print(told)
    again = trained(tmp_path / "out", inputs, config(zero_stage=stage, phases=PHASES), on_step=crash)
    assert len(list(tmp_path.glob("killed-*"))) == 3, told
    assert same(uninterrupted, again), told


def killed(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # Ray's end one another too
            process.kill()


DRIVER = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from infra.launch.local import ray_session
from pipeline.artifacts import Artifact
from pipeline.storage import Location
from small_pretraining import config, trained

root, folder = Location(sys.argv[1]), Path(sys.argv[2])

def slowly(rank, step):
    (folder / f"done-{{step}}").touch()
    time.sleep(0.3)

inputs = {{name: Artifact(root / name / "0", name, "0") for name in ("vocab", "examples-16")}}
with ray_session(num_cpus=2):
    settings = config(zero_stage=int(sys.argv[3]), phases={PHASES!r})
    trained(folder / "out", inputs, settings, on_step=slowly)
"""


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_after_its_driver_or_everything_was_killed_the_same_run_ends_with_the_same_losses_and_bits(
    whole: tuple[int, Artifact], inputs: dict[str, Artifact], tmp_path: Path, everything: bool
) -> None:
    stage, uninterrupted = whole
    step = random.Random().randrange(1, STEPS - 1)
    root = inputs["vocab"].location.path.removesuffix("/vocab/0")
    with subprocess.Popen([sys.executable, "-c", DRIVER, root, str(tmp_path), str(stage)]) as driver:
        deadline = time.monotonic() + 120
        while not (tmp_path / f"done-{step}").exists():
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if child.is_running() and child.name().startswith("ray::RayTrain")]
        assert len(workers) == 2
        killed(*(children if everything else ()), psutil.Process(driver.pid))
    left = psutil.wait_procs(workers, timeout=30)[1]
    assert not [worker for worker in left if worker.status() != psutil.STATUS_ZOMBIE]  # none outlives its driver
    killed(*children)  # two agents of Ray's do
    again = trained(tmp_path / "out", inputs, config(zero_stage=stage, phases=PHASES))
    assert same(uninterrupted, again), f"killed after step {step}"


@pytest.mark.usefixtures("alone")
def test_other_random_states_after_a_stop_are_seen(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of what is above: dropout that goes on with other draws leaves other bits."""
    for name in ("same", "disturbed"):
        lone_worker(config(), inputs, tmp_path / name, tell=lambda done, note: done >= 5).train()
    assert same_bits(last(tmp_path / "same"), last(tmp_path / "disturbed"))
    lone_worker(config(), inputs, tmp_path / "same").train()
    real = trainer._noise
    monkeypatch.setattr(trainer, "_noise", lambda seed, step, rank: real(seed + 1, step, rank))
    lone_worker(config(), inputs, tmp_path / "disturbed").train()
    assert not same_bits(last(tmp_path / "same"), last(tmp_path / "disturbed"))
