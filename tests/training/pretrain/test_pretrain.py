"""Pretraining with Ray Train and DeepSpeed: exact after any kill, on one, two or a changing number of workers."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.training.checkpoints.checkpoint import newest_checkpoint
from cloze.training.pretrain.baselines import training_counts, unigram_baseline
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.stage import final_checkpoint
from tests.paths import REPOSITORY
from tests.training.pretraining_drivers import command
from tests.training.small_examples import PIECES
from tests.training.small_pretraining import (
    config,
    elastic_config,
    last,
    rows,
    same_bits,
    single_worker,
    small_inputs,
    spot_config,
    steps_of,
    trained,
)

PHASE = {"max_seq_length": 16, "max_predictions_per_seq": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return small_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def uninterrupted(ray_session: None, inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return trained(tmp_path_factory.mktemp("uninterrupted"), inputs, config())


def test_training_writes_metrics_of_each_step_and_of_the_held_out_split(
    uninterrupted: Artifact, inputs: dict[str, Artifact]
) -> None:
    found = rows(uninterrupted)
    assert [row["step"] for row in found if row["split"] == "train"] == list(range(1, 9))
    assert [row["step"] for row in found if row["split"] == "heldout"] == [4, 8]
    assert all(row["examples"] == 12 for row in found if row["split"] == "heldout")
    facts = uninterrupted.manifest.facts
    assert facts["checkpoint"]["digest"] == newest_checkpoint(uninterrupted.location).digest
    assert facts["metrics"]["train"]["step"] == 8
    assert facts["peak"]["origin"] == "measured" and facts["peak"]["flops"] > 1e9  # of both workers
    assert facts["metrics"]["heldout"].items() >= found[-1].items()
    unigram = unigram_baseline(
        training_counts(ExampleDataset(inputs["examples-16"], "train"), PIECES),
        ExampleDataset(inputs["examples-16"], "heldout").sample(0, 12, 12),
    )
    assert (found[-1]["mlm_loss_baseline"], found[-1]["mlm_accuracy_baseline"]) == unigram  # worker 0's
    assert (found[-1]["pairs"], found[-1]["pairs_1"], found[-1]["nsp_accuracy_baseline"]) == (12, 6, 0.5)
    losses = {row["step"]: row["loss"] for row in found if row["split"] == "heldout"}
    assert facts["checkpoint"]["heldout_loss"] == losses[8]
    assert facts["best"]["heldout_loss"] == min(losses.values())
    assert not any(folder.name.startswith("scratch") for folder in uninterrupted.location.folders())


def test_a_training_that_another_run_has_finished_is_not_repeated(
    uninterrupted: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """The other run was killed before it could write the manifest of the stage."""

    def never(rank: int, step: int) -> None:
        raise AssertionError

    shutil.copytree(Path(uninterrupted.location.path, "checkpoints"), tmp_path / "checkpoints")
    found = trained(tmp_path, inputs, config(), on_step=never)
    assert final_checkpoint(found).digest == final_checkpoint(uninterrupted).digest
    assert rows(found) == rows(uninterrupted)


def test_a_killed_worker_leaves_the_same_bits_and_the_same_metrics(
    uninterrupted: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    killed, shared = tmp_path / "killed", tmp_path / "shared"

    def kill_once(rank: int, step: int) -> None:
        if "/cloze-windows-" in Path("/proc/self/maps").read_text():
            shared.touch()
        if rank == 1 and step == 5 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    again = trained(tmp_path / "out", inputs, config(), on_step=kill_once)
    assert killed.exists()
    assert shared.exists()  # a worker has mapped examples that the other one has read
    assert same_bits(final_checkpoint(uninterrupted), final_checkpoint(again))
    assert rows(uninterrupted) == rows(again)
    assert final_checkpoint(uninterrupted).digest == final_checkpoint(again).digest


@pytest.mark.campaign
def test_a_worker_that_hangs_is_killed_and_training_continues_to_the_same_bits(
    uninterrupted: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    hung = tmp_path / "hung"

    def hang_once(rank: int, step: int) -> None:
        if rank == 1 and step == 5 and not hung.exists():
            hung.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    began = time.monotonic()
    again = trained(tmp_path / "out", inputs, config(step_timeout=8.0), on_step=hang_once)
    assert time.monotonic() - began < 120
    assert same_bits(final_checkpoint(uninterrupted), final_checkpoint(again))
    assert rows(uninterrupted) == rows(again)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(hung.read_text())).wait(timeout=10)
    assert not psutil.pid_exists(int(hung.read_text()))


@pytest.mark.slow
def test_a_terminated_driver_saves_the_last_step_and_the_run_resumes_to_the_same_bits(
    uninterrupted: Artifact, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    started = command("local", inputs, tmp_path, config(checkpoint_every=100))
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as driver:
        while not (tmp_path / "steps/3").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        workers = psutil.Process(driver.pid).children(recursive=True)
        os.kill(driver.pid, signal.SIGTERM)
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 130  # as KeyboardInterrupt ends the command line
    assert not psutil.wait_procs(workers, timeout=10)[1]
    (step,) = steps_of(tmp_path)
    assert output == f"pretrain: step {step} is saved\n"
    assert 3 <= step < 8 and step == max(int(file.name) for file in (tmp_path / "steps").iterdir())
    again = trained(tmp_path, inputs, config(checkpoint_every=100))
    assert same_bits(final_checkpoint(uninterrupted), final_checkpoint(again))
    assert rows(uninterrupted) == rows(again)


@pytest.mark.campaign
def test_two_workers_roll_back_together_and_after_a_kill_the_batch_stays_skipped(
    ray_session: None, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    def spoil_once(rank: int, step: int) -> None:
        from cloze.training.pretrain.engine import Engine
        from cloze.training.pretrain.objective import StepResult

        real, spoiled = Engine.step, tmp_path / f"spoiled-{rank}"

        def spoiling(engine: Engine, *given: Any) -> StepResult:
            done = real(engine, *given)
            if engine.updates != 4 or spoiled.exists():
                return done
            spoiled.touch()
            done.sums[0] = float("nan")
            return done

        if step == 1:
            Engine.step = spoiling
        if step == 5 and rank == 1 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    found = trained(tmp_path / "out", inputs, config(), on_step=spoil_once)
    assert (tmp_path / "killed").exists() and (tmp_path / "spoiled-1").exists()
    listed = found.location / "skipped.jsonl"
    assert [json.loads(line)["batch"] for line in listed.read_text().splitlines()] == [3]
    assert found.manifest.facts["skipped"] == 1 and "skipped.jsonl" in found.manifest.files
    (tmp_path / "skipping").mkdir()
    (tmp_path / "skipping/skipped.jsonl").write_bytes(listed.read_bytes())
    skipping = trained(tmp_path / "skipping", inputs, config())
    assert same_bits(final_checkpoint(found), final_checkpoint(skipping))


def on_nodes(driver: str, inputs: dict[str, Artifact], out: Path, settings: PretrainConfig, **environment: str) -> None:
    """Run pretraining with its own cluster."""
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_V2_ENABLED": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command(driver, inputs, out, settings), env=os.environ | environment, check=True)


@pytest.mark.campaign
@pytest.mark.usefixtures("single_process_group")
def test_a_preempted_node_costs_only_the_steps_after_its_notice(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    out = tmp_path / "out"
    on_nodes("spot", inputs, out, spot_config(), RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1")
    first, second = sorted(
        ([int(step) for step in file.read_text().split()] for file in (out / "steps").iterdir()), key=min
    )
    saved = second[0] - 1
    assert first == list(range(1, first[-1] + 1)) and second == list(range(saved + 1, 41))
    assert 3 <= saved < first[-1] and saved in steps_of(out)  # none was due before the last
    single_worker(spot_config(), inputs, tmp_path / "alone").train()
    assert same_bits(last(out), last(tmp_path / "alone"))


@pytest.mark.campaign
@pytest.mark.usefixtures("single_process_group")
def test_training_continues_with_the_workers_that_fit_and_the_same_losses(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    """A node is lost without notice, and later another one is added: two workers, one, and two again."""
    out = tmp_path / "out"
    fast_checks = {
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }  # to notice a lost node
    on_nodes("elastic", inputs, out, elastic_config(), **fast_checks)
    log = [tuple(map(int, line.split())) for line in (out / "steps/workers").read_text().splitlines()]
    counts = [workers for _, workers in log]
    assert [now for before, now in zip([0, *counts], counts, strict=False) if now != before] == [2, 1, 2]
    worker = single_worker(elastic_config(), inputs, tmp_path / "alone")
    worker.train()
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses, expected = (
        [row["loss"] for row in either if row["split"] == "train"] for either in (found, worker.state.metrics.rows)
    )
    assert len(losses) == 50
    assert losses == pytest.approx(expected, abs=1e-5)


def test_more_positions_than_the_model_has_are_an_error() -> None:
    with pytest.raises(ValueError, match="max_seq_length 32 is more than the model's 16 positions"):
        config(phases=[{"max_seq_length": 32, "max_predictions_per_seq": 3, "steps": 8}])


def test_too_few_examples_for_a_batch_is_an_error_of_one_line(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains 40 examples, fewer than global_batch_size 64"):
        trained(tmp_path, inputs, config(global_batch_size=64))
    phases = [PHASE | {"steps": 4}, PHASE | {"steps": 4, "global_batch_size": 64}]
    with pytest.raises(UserError, match=r"contains 40 examples, fewer than phases\.1\.global_batch_size 64; lower it"):
        trained(tmp_path, inputs, config(phases=phases))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": "2h"}, r"phases\.0\.steps is 8, but budget 2h already ends the phases; remove one of them"),
        ({"phases": [PHASE]}, r"phases\.0 has no end; set its steps, or set budget"),
        ({"phases": [PHASE | {"share": 0.5}]}, r"phases\.0\.share is set without budget; set budget, or replace"),
        ({"budget": "2h", "phases": [PHASE | {"share": 0.5}] * 3}, "add up to 1.5; set them so that they add up to 1"),
        (
            {"budget": "2h", "phases": [PHASE | {"share": 1.0}, PHASE]},
            r"phases\.1 has no share of budget 2h; set phases\.1\.share",
        ),
        ({"budget": "0m", "phases": [PHASE]}, "budget is 0m; give the time that training may take"),
        ({"budget": "2 hours"}, "is not a duration; give one such as 90s, 20m, 2h or 1d"),
        ({"budget": 90}, "is not a duration; give one"),
        ({"workers": [1, 2, 3]}, "is neither a number nor a range; give one such as 4, or"),
        ({"workers": [0, 4]}, "is neither a number nor a range"),
        ({"workers": "many"}, "is neither a number nor a range"),
        (
            {"workers": [1, 2], "gpus": 2},
            "gpus is 2, but workers is a range from 1 to 2; remove gpus, or",
        ),
        ({"workers": [5, 5]}, "no number from 5 to 5 divides global_batch_size 12; give another range"),
        ({"workers": [3, 2]}, "workers: \\[3, 2\\] is not a range"),
    ],
)
def test_phases_without_an_end_and_impossible_workers_are_an_error(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changed)
