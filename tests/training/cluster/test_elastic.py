"""How many workers a group has: from what the cluster has, and what may come later."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.training.cluster import elastic
from cloze.training.cluster.elastic import ElasticSize, Placement, largest_fitting

LAPTOP, GPU_NODE = [{"CPU": 4.0}], [{"CPU": 32.0, "GPU": 8.0}]
ASKED: dict[str, Any] = {"stage": "pretrain", "gpus": "auto", "workers": None, "threads": 1, "without_gpus": 2}


@pytest.mark.parametrize(
    ("nodes", "asked", "placement"),
    [
        (LAPTOP, {}, Placement(2, 1, False)),
        (LAPTOP, {"threads": 3}, Placement(1, 3, False)),
        (LAPTOP, {"workers": 4}, Placement(4, 1, False)),
        ([{"CPU": 1.0}], {"threads": 2}, Placement(1, 1, False)),
        (GPU_NODE, {}, Placement(8, 1, True)),
        (GPU_NODE, {"gpus": 2}, Placement(2, 1, True)),
        (GPU_NODE, {"workers": 3}, Placement(3, 1, True)),
        (GPU_NODE, {"gpus": 0}, Placement(2, 1, False)),
        (LAPTOP, {"workers": [1, 2, 3, 4, 6]}, Placement(4, 1, False, (1, 2, 3, 4, 6))),
        (LAPTOP, {"workers": [1, 2, 5]}, Placement(2, 1, False, (1, 2, 5))),
        (LAPTOP, {"workers": [1, 2, 3], "threads": 2}, Placement(2, 2, False, (1, 2, 3))),
        (GPU_NODE, {"workers": [2, 4, 8, 16]}, Placement(8, 1, True, (2, 4, 8, 16))),
        (GPU_NODE, {"workers": [2, 4]}, Placement(4, 1, True, (2, 4))),
        ([{"CPU": 2.0, "GPU": 8.0}], {"workers": [1, 2, 4, 8]}, Placement(2, 1, True, (1, 2, 4, 8))),
        (GPU_NODE, {"gpus": 2, "workers": 2}, Placement(2, 1, True)),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], {"threads": 2}, Placement(1, 1, True)),
        ([*LAPTOP, *LAPTOP], {"threads": 8, "workers": 2}, Placement(2, 4, False)),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"threads": 2, "workers": [1, 2, 3]}, Placement(2, 2, False, (1, 2, 3))),
    ],
)
def test_there_is_a_worker_for_each_gpu_unless_told_otherwise(nodes, asked, placement):
    assert Placement.fitting(nodes, **ASKED | asked) == placement


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
        Placement.fitting(nodes, **ASKED | asked)


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until somebody moves it."""
    clock = [0.0]
    monkeypatch.setattr(elastic, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


@pytest.fixture
def free():
    """How many more workers there is room for."""
    return [0]


@pytest.fixture
def size(now, free):
    return ElasticSize(Placement(4, 1, True, (2, 4, 8)), lambda placement: free[0])


@pytest.mark.parametrize(
    ("there", "taken", "said"),
    [
        (9, 8, "starting 8 workers"),
        (7, 4, "starting 4 workers"),
        (2, 2, "starting 2 workers"),
        (1, 2, "waiting for room for 2 workers"),
    ],
)
def test_a_group_takes_the_room_there_is_and_asks_for_the_least_where_it_is_too_little(size, free, there, taken, said):
    free[0] = there
    assert size.resize() == said
    assert size.placement == Placement(taken, 1, True, (2, 4, 8))
    assert size.resize(failures=2) == f"{said}, after 2 failures"


def test_a_group_of_one_size_stays_it(now):
    size = ElasticSize(Placement(1, 1, False), lambda placement: 7)
    assert size.resize(failures=1) == "starting 1 worker, after 1 failure"
    now[0] += 1000
    assert not size.check_growth()


def test_room_for_more_counts_when_it_was_seen_twice(size, now, free):
    free[0] = 4

    def looks(*rooms: int) -> list[bool]:
        found = []
        for free[0] in rooms:
            now[0] += elastic._CHECK_SECONDS
            found.append(size.check_growth())
        return found

    assert looks(4, 3, 4) == [False, False, False]
    assert not size.check_growth()  # at once
    assert looks(4) == [True]
    free[0] = 0  # what comes after the wish to leave does not take it back
    assert size.check_growth()
    free[0] = 8
    assert size.resize() == "starting 8 workers" and not size.can_grow
    assert looks(0, 0, 8, 8) == [False] * 4


def test_the_largest_of_the_numbers_that_fits_is_taken():
    assert [largest_fitting([2, 4, 8], room) for room in (0, 1, 2, 3, 4, 7, 8, 99)] == [2, 2, 2, 2, 4, 4, 8, 8]
