"""The group of workers: its size from what the cluster has, and how it ends."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli import explain
from pipeline.artifacts import Output
from pipeline.config import UserError
from pipeline.storage import Location
from training import workers
from training.workers import Group, Tell, fit, largest

LAPTOP, GPU_NODE = [{"CPU": 4.0}], [{"CPU": 32.0, "GPU": 8.0}]
ASKED: dict[str, Any] = {"stage": "pretrain", "gpus": "auto", "workers": None, "threads": 1, "without_gpus": 2}


@pytest.mark.parametrize(
    ("nodes", "asked", "group"),
    [
        (LAPTOP, {}, Group(2, 1, False)),
        (LAPTOP, {"threads": 3}, Group(1, 3, False)),
        (LAPTOP, {"workers": 4}, Group(4, 1, False)),
        ([{"CPU": 1.0}], {"threads": 2}, Group(1, 1, False)),
        (GPU_NODE, {}, Group(8, 1, True)),
        (GPU_NODE, {"gpus": 2}, Group(2, 1, True)),
        (GPU_NODE, {"workers": 3}, Group(3, 1, True)),
        (GPU_NODE, {"gpus": 0}, Group(2, 1, False)),
        (LAPTOP, {"workers": [1, 2, 3, 4, 6]}, Group(4, 1, False)),
        (LAPTOP, {"workers": [1, 2, 5]}, Group(2, 1, False)),
        (LAPTOP, {"workers": [1, 2, 3], "threads": 2}, Group(2, 2, False)),
        (GPU_NODE, {"workers": [2, 4, 8, 16]}, Group(8, 1, True)),
        (GPU_NODE, {"workers": [2, 4]}, Group(4, 1, True)),
        ([{"CPU": 2.0, "GPU": 8.0}], {"workers": [1, 2, 4, 8]}, Group(2, 1, True)),
        (GPU_NODE, {"gpus": 2, "workers": 2}, Group(2, 1, True)),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], {"threads": 2}, Group(1, 1, True)),
        ([*LAPTOP, *LAPTOP], {"threads": 8, "workers": 2}, Group(2, 4, False)),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"threads": 2, "workers": [1, 2, 3]}, Group(2, 2, False)),
    ],
)
def test_there_is_a_worker_for_each_gpu_unless_told_otherwise(nodes, asked, group):
    assert Group.fitting(nodes, **ASKED | asked) == group


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (LAPTOP, {"gpus": 1}, "asks for 1 GPUs, there are 0; lower gpus or workers"),
        (GPU_NODE, {"workers": 9}, "asks for 9 GPUs, there are 8"),
        (
            LAPTOP,
            {"workers": 3, "threads": 2},
            "asks for 3 workers of 2 processor cores, the nodes have room for 2",
        ),
        (LAPTOP, {"workers": [6]}, "asks for 6 workers of 1 processor cores, the nodes have room for 4"),
        (GPU_NODE, {"workers": [16, 32]}, "asks for 16 GPUs, there are 8"),
        (GPU_NODE, {"gpus": 8, "workers": 2}, "gpus is 8 beside workers 2, and each has one; remove one of them"),
        ([{"GPU": 0.0}], {}, "asks for 1 workers of 1 processor cores, the nodes have room for 0"),
        # enough cores in all, but not where the GPUs are
        ([{"CPU": 12.0, "GPU": 8.0}, {"CPU": 8.0}], {"threads": 2}, "8 workers of 2 .* and a GPU, .* have room for 6"),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"threads": 2, "workers": 3}, "3 workers of 2 .* cores, .* have room for 2"),
    ],
)
def test_more_than_the_nodes_have_is_an_error_before_anything_starts(nodes, asked, message):
    with pytest.raises(UserError, match=f"^pretrain: .*{message}"):
        Group.fitting(nodes, **ASKED | asked)


def test_what_a_user_can_mend_ends_the_group_with_one_line_and_no_second_try(ray_session, tmp_path):
    def work(folder: Path, tell: Tell) -> None:
        with (folder / "tries").open("a") as file:
            file.write("x")
        raise UserError("the loss is nan; lower learning_rate")

    with pytest.raises(UserError, match=r"^the loss is nan; lower learning_rate$"):
        fit(work, tmp_path, Group(1, 1, False), Output(Location(str(tmp_path)), "stage", 1, "0"), 10, "steps")
    assert (tmp_path / "tries").read_text() == "x"
    assert not list(tmp_path.glob("scratch-*/work"))


def test_what_a_worker_could_not_read_or_write_is_said_in_one_line_after_the_last_try(ray_session, tmp_path):
    from ray.train.v2.api.exceptions import TrainingFailedError

    def work(folder: Path, tell: Tell) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = Output(Location(str(tmp_path)), "stage", 1, "0")
    with pytest.raises(TrainingFailedError) as error:
        fit(work, tmp_path, Group(1, 1, False), out, 10, "steps", max_failures=0)
    assert (explain(error.value) or "").startswith("no space is left on the device")
    assert not list(tmp_path.glob("scratch-*/work"))


def test_progress_begins_where_an_earlier_run_stopped_and_needs_nobody_to_read_it(ray_session, tmp_path):
    told: list[tuple[float, str]] = []

    def show(done: float, total: float, unit: str, note: str) -> None:
        told.append((done, note))
        raise BrokenPipeError

    def work(folder: Path, tell: Tell) -> None:
        import time

        for done in range(7, 12):
            tell(done, "")
            time.sleep(0.6)

    out = Output(Location(str(tmp_path)), "stage", 1, "0", show)
    fit(work, tmp_path, Group(1, 1, False), out, 12, "steps", done=7)
    assert told[0] == (7, "starting 1 worker") and told[-1][0] > 8
    assert not list(tmp_path.glob("scratch-*/work"))


def test_a_group_that_cannot_begin_is_a_failure_and_not_tried_for_ever(ray_session, tmp_path, monkeypatch):
    """Its argument can be read in no worker, as where a module is missing on a node."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    def again():
        with (tmp_path / "read").open("a") as file:
            if "RayTrainWorker" in Path("/proc/self/cmdline").read_text():
                file.write("x")
                raise ModuleNotFoundError("No module named 'mine'")
        return Unreadable()

    class Unreadable:
        def __reduce__(self):
            return again, ()

    monkeypatch.setattr(workers, "_PAUSE_SECONDS", 0.0)
    out = Output(Location(str(tmp_path)), "stage", 1, "0")
    with pytest.raises(TrainingFailedError, match="No module named 'mine'"):
        fit(lambda argument, tell: None, Unreadable(), Group(1, 1, False), out, 10, "steps", max_failures=1)
    assert (tmp_path / "read").read_text() == "xx"


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until somebody moves it."""
    clock = [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


@pytest.fixture
def free():
    """How many more workers there is room for."""
    return [0]


@pytest.fixture
def room(now, free):
    return workers._Room(Group(4, 1, True), [2, 4, 8], lambda group: free[0])


@pytest.mark.parametrize(
    ("there", "taken", "said"),
    [
        (9, 8, "starting 8 workers"),
        (7, 4, "starting 4 workers"),
        (2, 2, "starting 2 workers"),
        (1, 2, "waiting for room for 2 workers"),
    ],
)
def test_a_group_takes_the_room_there_is_and_asks_for_the_least_where_it_is_too_little(room, free, there, taken, said):
    free[0] = there
    assert room.taken() == said
    assert room.group == Group(taken, 1, True)
    assert room.taken(failures=2) == f"{said}, after 2 failures"


def test_a_group_of_one_size_stays_it(now):
    room = workers._Room(Group(1, 1, False), [], lambda group: 7)
    assert room.taken(failures=1) == "starting 1 worker, after 1 failure"
    now[0] += 1000
    assert not room.look()


def test_room_for_more_counts_when_it_was_seen_twice(room, now, free):
    free[0] = 4

    def looks(*rooms: int) -> list[bool]:
        found = []
        for free[0] in rooms:
            now[0] += workers._ROOM_SECONDS
            found.append(room.look())
        return found

    assert looks(4, 3, 4) == [False, False, False]
    assert not room.look()  # at once
    assert looks(4) == [True]
    free[0] = 0  # what comes after the wish to leave does not take it back
    assert room.look()
    free[0] = 8
    assert room.taken() == "starting 8 workers" and not room.more
    assert looks(0, 0, 8, 8) == [False] * 4


def test_the_largest_of_the_numbers_that_fits_is_taken():
    assert [largest([2, 4, 8], room) for room in (0, 1, 2, 3, 4, 7, 8, 99)] == [2, 2, 2, 2, 4, 4, 8, 8]
