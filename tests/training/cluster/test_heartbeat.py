"""What driver and workers learn of each other at the board."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.artifacts import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster import heartbeat
from cloze.training.cluster.elastic import ElasticSize, Placement
from cloze.training.cluster.heartbeat import GroupMonitor, Progress, monitored, new_monitor
from cloze.training.cluster.ray_train import RestartPolicy, run_workers


def test_the_wish_to_leave_is_that_of_one_group():
    board = GroupMonitor(3, "starting 2 workers")
    assert board.told() == ((3, "starting 2 workers"), 0, False)
    assert not board.tell(4, "loss 2.5")
    board.leave()
    assert board.tell(5, "loss 2.4")
    board.start("starting 4 workers")
    assert board.told() == ((5, "starting 4 workers"), 3, False)
    assert not board.tell(6, "loss 2.3")


def test_workers_are_handed_out_to_be_ended_once():
    board = GroupMonitor(0, "")
    board.begin("first")
    board.begin("second")
    assert board.dismissed("nothing heard") == ["first", "second"]
    assert board.dismissed("nothing heard") == []
    assert board.told()[0] == (0, "nothing heard")


def test_a_worker_of_which_nothing_is_heard_is_ended_and_another_one_goes_on(ray_session: None, tmp_path: Path) -> None:
    def hang_once(folder: Path, tell: heartbeat.ReportProgress) -> None:
        tell(1, "")
        if not (folder / "hung").exists():
            (folder / "hung").touch()
            time.sleep(600)

    notes: list[str] = []
    out = Output(Location(str(tmp_path / "out")), "stage", 1, "0", lambda *told: notes.append(told[-1]))
    restart = RestartPolicy(max_failures=1, step_timeout=2.0)
    run_workers(hang_once, tmp_path, Placement(1, 1, False), restart, Progress(out, 10, "steps"))
    assert "nothing heard of the workers for 2 s, starting others" in notes
    assert "starting 1 worker, after 1 failure" in notes


@pytest.mark.parametrize(("signalled", "said"), [(True, "saving and leaving"), (False, "saving and starting more")])
def test_the_driver_asks_to_leave_after_a_signal_and_for_a_larger_group(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool, said: str
) -> None:
    import ray

    notes: list[Any] = []
    out = Output(Location(str(tmp_path)), "stage", 1, "0", lambda *told: notes.append(told[-1]))
    size = ElasticSize(Placement(1, 1, False, (1, 2)))
    size.can_grow = not signalled
    leave = threading.Event()
    board = new_monitor(0, "step 3")
    with monitored(board, Progress(out, 10, "steps"), None, leave, size):
        if signalled:
            leave.set()
        else:  # a group that has told nothing yet may not have been placed: its own room seems free
            time.sleep(1.2)
            assert notes and not any(said in note for note in notes)
        deadline = time.monotonic() + 30
        while not ray.get(board.tell.remote(4, "step 4")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.2)
    assert any(note.startswith(f"step 4, {said}") for note in notes)
