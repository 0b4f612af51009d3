"""What the driver and the workers learn from each other through the monitor."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.elastic import ElasticSize, Placement
from cloze.training.cluster.heartbeat import GroupMonitor, Progress, ReportProgress, monitored, new_monitor
from cloze.training.cluster.ray_train import RestartPolicy, run_workers


def test_a_stop_request_is_for_one_group_only():
    monitor = GroupMonitor(3, "starting 2 workers")
    assert monitor.status() == (3, "starting 2 workers", 0, False)
    assert not monitor.report(4, "loss 2.5")
    monitor.request_stop()
    assert monitor.report(5, "loss 2.4")
    monitor.start_group("starting 4 workers")
    assert monitor.status() == (5, "starting 4 workers", 3, False)
    assert not monitor.report(6, "loss 2.3")


def test_workers_are_handed_out_to_be_killed_once():
    monitor = GroupMonitor(0, "")
    monitor.add_worker("first")
    monitor.add_worker("second")
    assert monitor.take_workers("no progress") == ["first", "second"]
    assert monitor.take_workers("no progress") == []
    assert monitor.status().note == "no progress"


def test_a_worker_that_reports_nothing_is_killed_and_another_one_continues(ray_session: None, tmp_path: Path) -> None:
    def hang_once(folder: Path, report_progress: ReportProgress) -> None:
        report_progress(1, "")
        if not (folder / "hung").exists():
            (folder / "hung").touch()
            time.sleep(600)

    notes: list[str] = []
    out = Output(Location(str(tmp_path / "out")), "stage", 1, "0", lambda *progress: notes.append(progress[-1]))
    restart = RestartPolicy(max_failures=1, step_timeout=2.0)
    run_workers(hang_once, tmp_path, Placement(1, 1, False), restart, Progress(out, 10, "steps"))
    assert "no progress reported for 2 s, restarting the workers" in notes
    assert "starting 1 worker, after 1 failure" in notes


@pytest.mark.parametrize(("signalled", "shown"), [(True, "saving and stopping"), (False, "saving and starting more")])
def test_the_driver_requests_to_stop_after_a_signal_and_for_a_larger_group(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool, shown: str
) -> None:
    import ray

    notes: list[Any] = []
    out = Output(Location(str(tmp_path)), "stage", 1, "0", lambda *progress: notes.append(progress[-1]))
    size = ElasticSize(Placement(1, 1, False, (1, 2)))
    size.can_grow = not signalled
    stop = threading.Event()
    monitor = new_monitor(0, "step 3")
    with monitored(monitor, Progress(out, 10, "steps"), None, stop, size):
        if signalled:
            stop.set()
        else:  # a group without a report may not be placed yet: its own resources seem free
            deadline = time.monotonic() + 30
            while not notes and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1.2)
            assert notes and not any(shown in note for note in notes)
        deadline = time.monotonic() + 30
        while not ray.get(monitor.report.remote(4, "step 4")) and time.monotonic() < deadline:
            time.sleep(0.1)
        while not any(note.startswith(f"step 4, {shown}") for note in notes) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert any(note.startswith(f"step 4, {shown}") for note in notes)
