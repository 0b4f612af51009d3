"""Jobs that several worker groups take from one queue."""

import time
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.elastic import Placement
from cloze.training.cluster.heartbeat import Progress, ReportProgress
from cloze.training.cluster.job_queue import Job, JobQueue, SummedProgress, run_jobs

ALONE = Placement(1, 1, False)
A, B, LAST = Job("a", "a", 5), Job("b", "b", 7), Job("last", "last", 1, after=("a", "b", "finished before"))


def test_a_job_waits_for_those_before_it_and_the_group_that_ends_the_last_of_these_takes_it():
    queue = JobQueue([A, B, LAST])
    assert queue.next(0) == (A, 0)
    assert queue.next(1) == (B, 0)
    assert queue.next(0) is None
    assert queue.next(1) == (LAST, 7)
    assert queue.next(1) is None


def test_a_killed_group_takes_its_job_again_and_keeps_what_it_has_done():
    queue = JobQueue([A, B, LAST])
    queue.next(0)
    assert queue.next(0) == (B, 5)
    queue.put_back(0)
    assert queue.next(0) == (B, 5)
    queue.put_back(0)
    assert queue.next(1) == (B, 0)
    assert queue.next(0) is None


def test_a_group_that_waits_for_nodes_is_needed_while_a_job_can_begin_or_it_has_begun_one():
    queue = JobQueue([A, LAST])
    assert queue.has_job(0) and queue.has_job(1)
    queue.next(0)
    assert (queue.has_job(0), queue.has_job(1)) == (True, False)
    queue.put_back(0)
    assert queue.has_job(1)


def progress(folder: Path, shown: list[Any], total: float) -> Progress:
    show = lambda *report: shown.append(report)  # noqa: E731
    return Progress(Output(Location(str(folder / "out")), "stage", 1, "0", show), total, "steps", done=1)


def test_the_progress_is_the_sum_of_the_groups_with_the_note_of_the_last_report(tmp_path):
    shown: list[Any] = []
    groups = SummedProgress(progress(tmp_path, shown, 21), 2)
    groups.of_group(0).show(5, "a")
    groups.of_group(1).show(7, "b")
    groups.of_group(0).show(6, "c")
    assert shown == [(6, 21, "steps", "a"), (13, 21, "steps", "b"), (14, 21, "steps", "c")]


def test_the_error_of_one_group_ends_the_others(ray_session, tmp_path):
    def work(folder: Path, name: str, report_progress: ReportProgress) -> None:
        (folder / name).touch()
        while not (folder / "a").exists() or not (folder / "b").exists():
            time.sleep(0.1)
        if name == "a":
            raise UserError("the loss is nan")
        time.sleep(600)
        (folder / "survived").touch()

    began = time.monotonic()
    with pytest.raises(UserError, match=r"^the loss is nan$"):
        run_jobs(work, tmp_path, [A, B, LAST], ALONE, progress(tmp_path, [], 14))
    assert time.monotonic() - began < 120
    assert not (tmp_path / "last").exists() and not list(tmp_path.glob("out/scratch*"))
