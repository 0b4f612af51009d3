"""The size of a worker group: from the resources of the cluster, and when it can grow."""

from types import SimpleNamespace
from typing import Any

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.training.cluster import elastic
from cloze.training.cluster.elastic import ElasticSize, Placement, largest_fitting

LAPTOP, GPU_NODE = [{"CPU": 4.0}], [{"CPU": 32.0, "GPU": 8.0}]
DEFAULTS: dict[str, Any] = {"stage": "pretrain", "gpus": "auto", "workers": None, "threads": 1, "without_gpus": 2}


@pytest.mark.parametrize(
    ("nodes", "settings", "placement"),
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
def test_there_is_one_worker_for_each_gpu_by_default(nodes, settings, placement):
    assert Placement.fitting(nodes, **DEFAULTS | settings) == placement


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        (LAPTOP, {"gpus": 1}, "1 GPUs requested, but the cluster has 0; lower gpus or workers"),
        (GPU_NODE, {"workers": 9}, "9 GPUs requested, but the cluster has 8"),
        (
            LAPTOP,
            {"workers": 3, "threads": 2},
            "3 workers with 2 processor cores requested, but the nodes have room for 2",
        ),
        (LAPTOP, {"workers": [6]}, "6 workers with 1 processor cores requested, but the nodes have room for 4"),
        (GPU_NODE, {"workers": [16, 32]}, "16 GPUs requested, but the cluster has 8"),
        (
            GPU_NODE,
            {"gpus": 8, "workers": 2},
            "gpus is 8 and workers is 2, but each worker has one GPU; remove one",
        ),
        ([{"GPU": 0.0}], {}, "1 workers with 1 processor cores requested, but the nodes have room for 0"),
        # enough cores in all, but not where the GPUs are
        (
            [{"CPU": 12.0, "GPU": 8.0}, {"CPU": 8.0}],
            {"threads": 2},
            "8 workers with 2 .* and a GPU .* have room for 6",
        ),
        (
            [{"CPU": 3.0}, {"CPU": 3.0}],
            {"threads": 2, "workers": 3},
            "3 workers with 2 .* cores .* have room for 2",
        ),
    ],
)
def test_more_than_the_nodes_have_is_an_error_before_anything_starts(nodes, settings, message):
    with pytest.raises(UserError, match=f"^pretrain: .*{message}"):
        Placement.fitting(nodes, **DEFAULTS | settings)


@pytest.fixture
def now(monkeypatch):
    """A clock that only the test moves."""
    clock = [0.0]
    monkeypatch.setattr(elastic, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


@pytest.fixture
def free():
    """How many more workers fit on the cluster."""
    return [0]


@pytest.fixture
def size(now, free):
    return ElasticSize(Placement(4, 1, True, (2, 4, 8)), lambda placement: free[0])


@pytest.mark.parametrize(
    ("free_slots", "workers", "note"),
    [
        (9, 8, "starting 8 workers"),
        (7, 4, "starting 4 workers"),
        (2, 2, "starting 2 workers"),
        (1, 2, "waiting for resources for 2 workers"),
    ],
)
def test_a_group_takes_the_largest_size_that_fits_or_waits_for_the_smallest(size, free, free_slots, workers, note):
    free[0] = free_slots
    assert size.resize() == note
    assert size.placement == Placement(workers, 1, True, (2, 4, 8))
    assert size.resize(failures=2) == f"{note}, after 2 failures"


def test_a_group_of_fixed_size_never_grows(now):
    size = ElasticSize(Placement(1, 1, False), lambda placement: 7)
    assert size.resize(failures=1) == "starting 1 worker, after 1 failure"
    now[0] += 1000
    assert not size.check_growth()


def test_a_group_can_grow_after_two_checks_in_a_row(size, now, free):
    free[0] = 4

    def check(*free_slots: int) -> list[bool]:
        answers = []
        for free[0] in free_slots:
            now[0] += elastic._CHECK_SECONDS
            answers.append(size.check_growth())
        return answers

    assert check(4, 3, 4) == [False, False, False]
    assert not size.check_growth()  # too soon after the last check
    assert check(4) == [True]
    free[0] = 0  # resources that are taken after the stop request do not withdraw it
    assert size.check_growth()
    free[0] = 8
    assert size.resize() == "starting 8 workers" and not size.can_grow
    assert check(0, 0, 8, 8) == [False] * 4


def test_the_largest_count_that_fits_is_chosen():
    assert [largest_fitting([2, 4, 8], slots) for slots in (0, 1, 2, 3, 4, 7, 8, 99)] == [2, 2, 2, 2, 4, 4, 8, 8]
