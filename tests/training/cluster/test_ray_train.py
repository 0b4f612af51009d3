"""A worker group: how it ends, and what the user reads about it."""

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloze.infra.cli import explain
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.signals import keyboard_interrupt_on
from cloze.pipeline.core.storage import Location
from cloze.training.cluster import ray_train
from cloze.training.cluster.elastic import Placement
from cloze.training.cluster.heartbeat import Progress, ReportProgress
from cloze.training.cluster.ray_train import RestartPolicy, run_workers

ALONE = Placement(1, 1, False)


def progress(folder: Path, show: Any = None, total: float = 10, done: float = 0) -> Progress:
    return Progress(Output(Location(str(folder)), "stage", 1, "0", show), total, "steps", done)


def test_an_error_that_only_the_user_can_fix_ends_the_group_without_a_second_try(ray_session, tmp_path):
    def work(folder: Path, report_progress: ReportProgress) -> None:
        with (folder / "tries").open("a") as file:
            file.write("x")
        raise UserError("the loss is nan; lower learning_rate")

    with pytest.raises(UserError, match=r"^the loss is nan; lower learning_rate$"):
        run_workers(work, tmp_path, ALONE, RestartPolicy(), progress(tmp_path))
    assert (tmp_path / "tries").read_text() == "x"
    assert not list(tmp_path.glob("scratch/*"))


def test_an_io_error_of_a_worker_is_reported_in_one_line_after_the_last_try(ray_session, tmp_path):
    from ray.train.v2.api.exceptions import TrainingFailedError

    def work(folder: Path, report_progress: ReportProgress) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingFailedError) as error:
        run_workers(work, tmp_path, ALONE, RestartPolicy(max_failures=0), progress(tmp_path))
    assert (explain(error.value) or "").startswith("no space is left on the device")
    assert not list(tmp_path.glob("scratch/*"))


def test_progress_starts_where_an_earlier_run_stopped_and_survives_a_closed_log(ray_session, tmp_path):
    shown: list[tuple[float, str]] = []

    def show(done: float, total: float, unit: str, note: str) -> None:
        shown.append((done, note))
        raise BrokenPipeError

    def work(folder: Path, report_progress: ReportProgress) -> None:
        import time

        for done in range(7, 12):
            report_progress(done, "")
            time.sleep(0.6)

    run_workers(work, tmp_path, ALONE, RestartPolicy(), progress(tmp_path, show, total=12, done=7))
    assert shown[0] == (7, "starting 1 worker") and shown[-1][0] > 8
    assert not list(tmp_path.glob("scratch/*"))


def test_workers_that_save_for_too_long_after_sigterm_are_killed(ray_session, tmp_path, monkeypatch):
    def work(folder: Path, report_progress: ReportProgress) -> None:
        (folder / "worker").write_text(str(os.getpid()))
        while not report_progress(1, ""):
            time.sleep(0.1)
        (folder / "saving").touch()
        time.sleep(600)

    def terminate_once(done: float, *_: object) -> None:
        if done and not sent:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    sent = list[float]()
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "7")
    with keyboard_interrupt_on(signal.SIGTERM), pytest.raises(KeyboardInterrupt):
        run_workers(work, tmp_path, ALONE, RestartPolicy(can_stop=True), progress(tmp_path, terminate_once))
    assert (tmp_path / "saving").exists() and time.monotonic() - sent[0] < 30
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "worker").read_text())).wait(timeout=10)


def test_a_group_that_cannot_start_is_a_failure_and_not_retried_indefinitely(ray_session, tmp_path, monkeypatch):
    """Its argument cannot be unpickled in a worker, as when a module is missing on a node."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    def unpickle():
        with (tmp_path / "read").open("a") as file:
            if "RayTrainWorker" in Path("/proc/self/cmdline").read_text():
                file.write("x")
                raise ModuleNotFoundError("No module named 'mine'")
        return Unreadable()

    class Unreadable:
        def __reduce__(self):
            return unpickle, ()

    monkeypatch.setattr(ray_train, "_RESTART_DELAY", 0.0)
    with pytest.raises(TrainingFailedError, match="No module named 'mine'"):
        run_workers(lambda argument, report_progress: None, Unreadable(), ALONE, RestartPolicy(1), progress(tmp_path))
    assert (tmp_path / "read").read_text() == "xx"
