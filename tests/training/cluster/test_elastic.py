"""The size of a worker group: from the resources of the cluster, and when it can grow."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import MAX_CPUS, MAX_GPUS, NODE_TYPES, NodeType, cluster_cpus, without_gpu_nodes
from cloze.training.cluster import elastic
from cloze.training.cluster.elastic import Capacity, ElasticSize, Placement, capacity, largest_fitting

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
    assert Placement.fitting(Capacity(nodes), **DEFAULTS | settings) == placement


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
        Placement.fitting(Capacity(nodes), **DEFAULTS | settings)


#: What a cluster can scale to: two machines with 16 CPUs, and two with 4 GPUs.
TYPES = (NodeType("cpu", 16, 0, 2), NodeType("gpu", 8, 4, 2))


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Capacity]:
    """Returns the capacity of a cluster with these nodes, for a job with these limits."""

    def capacity_with(
        nodes: list[Any], cpus: int | None, gpus: int | None, types: tuple[NodeType, ...] = ()
    ) -> Capacity:
        for name, value in ((MAX_CPUS, cpus), (MAX_GPUS, gpus)):
            if value is not None:
                monkeypatch.setenv(name, str(value))
        if types:
            monkeypatch.setenv(NODE_TYPES, json.dumps([kind._asdict() for kind in types]))
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        return capacity()

    return capacity_with


@pytest.mark.parametrize(
    ("nodes", "limits", "settings", "placement"),
    [
        # no node is there yet
        ([], (32, 8, TYPES), {}, Placement(8, 1, True, scales=True)),
        ([], (32, 8, TYPES), {"gpus": 3}, Placement(3, 1, True, scales=True)),
        ([], (32, 8, TYPES), {"workers": 3}, Placement(3, 1, True, scales=True)),
        ([], (32, 8, TYPES), {"workers": [2, 4, 16]}, Placement(4, 1, True, (2, 4, 16), scales=True)),
        ([], (32, 8, TYPES), {"threads": 2}, Placement(8, 2, True, scales=True)),
        ([], (32, 8, TYPES), {"threads": 4, "gpus": 4}, Placement(4, 4, True, scales=True)),
        ([], (32, 8, TYPES), {"threads": 99, "gpus": 2}, Placement(2, 8, True, scales=True)),
        ([], (32, 6, TYPES), {}, Placement(6, 1, True, scales=True)),  # max_gpus is lower than the types' sum
        ([], (32, 8, TYPES), {"gpus": 0}, Placement(2, 1, False, scales=True)),
        ([], (32, 8, TYPES), {"gpus": 0, "threads": 99}, Placement(2, 16, False, scales=True)),
        # without node_types the cores of GPU nodes are unknown
        ([], (None, 8), {}, Placement(8, 1, True, scales=True)),
        ([], (None, 8), {"threads": 6}, Placement(8, 6, True, scales=True)),
        ([{"CPU": 8.0, "GPU": 8.0}], (None, 16), {}, Placement(16, 1, True, scales=True)),
        ([{"CPU": 4.0}], (16, None), {}, Placement(2, 1, False, scales=True)),
        ([], (16, 0), {"workers": 4}, Placement(4, 1, False, scales=True)),
        ([], (16, 0, TYPES[1:]), {"workers": 4}, Placement(4, 1, False, scales=True)),  # no other machines
        # nothing is missing: the nodes are as they are
        ([{"CPU": 8.0, "GPU": 8.0}], (None, 8), {"threads": 99, "gpus": 1}, Placement(1, 8, True, scales=True)),
    ],
)
def test_on_a_cluster_that_scales_a_worker_is_requested_for_each_gpu_that_there_can_be(
    scaling, nodes, limits, settings, placement
):
    assert Placement.fitting(scaling(nodes, *limits), **DEFAULTS | settings) == placement


@pytest.mark.parametrize(
    ("limits", "settings", "message"),
    [
        ((32, 8, TYPES), {"gpus": 16}, r"16 GPUs .* can scale to 8 \(max_gpus or node_types in its file\); lower gpus"),
        ((None, 8), {"workers": [9, 16]}, "9 GPUs requested, but the cluster can scale to 8"),
        (
            (32, 8, TYPES),
            {"threads": 3},
            "8 workers with 3 .* that the cluster can scale to have room for 4",
        ),
        ((32, 0), {"gpus": 1}, "1 GPUs requested, but the cluster can scale to 0"),
        # a machine with GPUs over the limit adds no room for workers without
        ((32, 4, TYPES), {"gpus": 0, "workers": 40}, "40 workers with 1 .* have room for 32"),
    ],
)
def test_more_than_the_cluster_can_scale_to_is_an_error_before_anything_starts(scaling, limits, settings, message):
    with pytest.raises(UserError, match=f"^pretrain: .*{message}"):
        Placement.fitting(scaling([], *limits), **DEFAULTS | settings)


def test_data_stages_count_no_cpus_of_gpu_nodes_where_others_can_be_added(scaling):
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 40.0}]
    scaling(nodes, 16, 8)
    assert (cluster_cpus(), without_gpu_nodes()) == (48, None)
    scaling(nodes, 16, 8, TYPES[1:])
    assert (cluster_cpus(), without_gpu_nodes()) == (48, None)  # it has no others
    scaling(nodes, 64, 8, TYPES)
    assert (cluster_cpus(), without_gpu_nodes()) == (64, {"ray.io/node-group": "!in(gpu)"})
    scaling(nodes, 32, 8, TYPES)
    assert cluster_cpus() == 40


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


def test_a_cluster_that_scales_is_asked_for_the_workers_that_the_largest_group_has_more(now, free):
    requests: list[tuple[int, int]] = []
    placement = Placement(8, 1, True, (2, 4, 8, 16), scales=True)
    size = ElasticSize(placement, lambda _: free[0], lambda group, more: requests.append((group.workers, more)))
    assert size.smallest.workers == 2
    size.request_growth(present=0)
    size.fit(5)
    size.request_growth(present=4)
    now[0] += elastic._CHECK_SECONDS
    assert not size.check_growth()
    size.fit(8)
    size.request_growth(present=8)
    assert requests == [(8, 8), (4, 4), (4, 4), (8, 0)]
