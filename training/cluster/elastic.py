"""The cluster's nodes -> how many workers a group has, and whether it can grow."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import NodeType, cpu_limit, gpu_limit, node_resources, node_types

_CHECK_SECONDS = 15.0  # between two checks for free resources
_UNKNOWN_CPUS = 10**6  # of a GPU node that the cluster can add, if its file does not list the kinds of machines


class Capacity(NamedTuple):
    """The resources of each node that workers can run on. `scales` says that the cluster can add some of them."""

    nodes: Sequence[Mapping[str, float]]
    scales: bool = False

    @property
    def gpus(self) -> int:
        return int(sum(node.get("GPU", 0) for node in self.nodes))

    def nodes_for(self, gpus: bool) -> Sequence[Mapping[str, float]]:
        """The nodes for workers with GPUs, or without: then none that has GPUs, if the cluster scales to others."""
        if gpus or self.scales:
            nodes = [node for node in self.nodes if (node.get("GPU", 0) > 0) == gpus]
            return nodes if nodes or gpus else self.nodes
        return self.nodes

    def slots(self, threads: int, gpus: bool) -> int:
        """How many workers with `threads` cores, and a GPU if `gpus`, fit on the nodes."""
        return worker_slots(self.nodes_for(gpus), threads, gpus)


def capacity() -> Capacity:
    """The nodes that the cluster has, or that it can scale to if its file sets a limit. Requires a Ray session."""
    max_cpus, max_gpus = cpu_limit(), gpu_limit()
    if max_cpus is None and max_gpus is None:
        return Capacity(node_resources())
    if types := node_types():
        return scaled_capacity(types, max_gpus)
    nodes = [*node_resources()]
    missing_cpus = (max_cpus or 0) - sum(node.get("CPU", 0) for node in nodes)
    missing_gpus = (max_gpus or 0) - sum(node.get("GPU", 0) for node in nodes)
    if missing_cpus > 0:
        nodes.append({"CPU": missing_cpus})
    if missing_gpus > 0:
        nodes.append({"CPU": _UNKNOWN_CPUS, "GPU": missing_gpus})
    return Capacity(nodes, scales=True)


def scaled_capacity(types: Sequence[NodeType], max_gpus: int | None) -> Capacity:
    """All nodes that a cluster of these types can scale to."""
    nodes = [{"CPU": float(kind.cpus), "GPU": float(kind.gpus)} for kind in types for _ in range(kind.max_nodes)]
    return Capacity(_limited(nodes, max_gpus), scales=True)


def _limited(nodes: Sequence[Mapping[str, float]], max_gpus: int | None) -> list[Mapping[str, float]]:
    """The nodes, with `max_gpus` GPUs in total at most.

    Work without GPUs does not run on nodes that have them if there are others: those over the limit are left out then.
    """
    left, limited = math.inf if max_gpus is None else max_gpus, list[Mapping[str, float]]()
    others = any(not node["GPU"] for node in nodes)
    for node in nodes:
        gpus = min(node["GPU"], left)
        left -= gpus
        if gpus or not (node["GPU"] and others):
            limited.append({**node, "GPU": gpus})
    return limited


class Placement(NamedTuple):
    """The size of a worker group: number of workers, processor cores of each, and whether each has a GPU.

    `allowed_worker_counts`, in ascending order, are the sizes that a later group may have. If empty, the size is fixed.
    `scales` says that the cluster can add nodes for the group, which waits for them.
    """

    workers: int
    threads: int
    gpus: bool
    allowed_worker_counts: tuple[int, ...] = ()
    scales: bool = False

    @classmethod
    def fitting(
        cls,
        capacity: Capacity,
        *,
        stage: str,
        gpus: int | Literal["auto"],
        workers: int | Sequence[int] | None,
        threads: int,
        without_gpus: int,
    ) -> "Placement":
        """The requested workers; by default one for each GPU, or `without_gpus` workers if there are no GPUs.

        If `workers` is a sequence (ascending), these are the allowed sizes, and the largest that fits is chosen. If no
        node has `threads` cores, a worker gets fewer. Raises UserError when more is requested than the cluster has, or
        can scale to: Ray itself would wait indefinitely.
        """
        gpus_requested = capacity.gpus if gpus == "auto" else gpus
        cores = (node.get("CPU", 0) for node in capacity.nodes_for(gpus_requested > 0))
        threads = max(1, min(threads, int(max(cores, default=0))))
        slots = capacity.slots(threads, gpus_requested > 0)
        allowed = tuple(workers) if isinstance(workers, Sequence) else ()
        if isinstance(workers, Sequence):
            workers = largest_fitting(workers, slots)
        elif workers and gpus != "auto" and gpus not in (0, workers):
            raise UserError(
                f"{stage}: gpus is {gpus} and workers is {workers}, but each worker has one GPU; remove one of them"
            )
        count = workers or gpus_requested or max(1, min(without_gpus, slots))
        if gpus_requested and count > capacity.gpus:
            verb, keys = ("can scale to", " (max_gpus or node_types in its file)") if capacity.scales else ("has", "")
            raise UserError(
                f"{stage}: {count} GPUs requested, but the cluster {verb} {capacity.gpus}{keys}; lower gpus or workers"
            )
        if count > slots:
            have = "that the cluster can scale to have" if capacity.scales else "have"
            raise UserError(
                f"{stage}: {count} workers with {threads} processor cores{' and a GPU' if gpus_requested else ''} "
                f"requested, but the nodes {have} room for {slots}; lower workers or threads"
            )
        return cls(count, threads, gpus_requested > 0, allowed, capacity.scales)

    @property
    def worker_resources(self) -> dict[str, float]:
        """What a worker reserves."""
        return {"CPU": float(self.threads)} | ({"GPU": 1.0} if self.gpus else {})

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"


def worker_slots(nodes: Iterable[Mapping[str, float]], threads: int, gpus: bool) -> int:
    """How many workers with `threads` cores, and a GPU if `gpus`, fit on nodes with these resources."""
    return sum(int(min(node.get("CPU", 0.0) // threads, node.get("GPU", 0.0) if gpus else math.inf)) for node in nodes)


def largest_fitting(counts: Sequence[int], slots: int) -> int:
    """The largest of `counts` (ascending) that is at most `slots`, or the smallest if none is."""
    return max((count for count in counts if count <= slots), default=counts[0])


def free_worker_slots(placement: Placement) -> int:
    """How many more such workers fit on the cluster's nodes now, next to what already runs there."""
    from ray._private.state import state  # the public API only has the sum over nodes, which may fit on no single node

    draining, free = state.get_draining_nodes(), state.available_resources_per_node()
    return worker_slots((free[node] for node in free if node not in draining), placement.threads, placement.gpus)


class ElasticSize:
    """Chooses the size of the next worker group, and detects when the current one can be replaced by a larger one.

    `lock` is held while a group is replaced and while one is monitored, so that a stop request cannot reach the group
    after the one it is meant for. `request_more` asks a cluster that scales for room for a number of further workers.
    """

    def __init__(
        self,
        placement: Placement,
        free_slots: Callable[[Placement], int] = free_worker_slots,
        request_more: Callable[[Placement, int], None] | None = None,
    ) -> None:
        self.placement, self.can_grow, self.lock = placement, False, threading.Lock()
        self.largest = placement
        self._free_slots, self._request_more = free_slots, request_more
        self._checked, self._last_possible = time.monotonic(), 0

    @property
    def smallest(self) -> Placement:
        """The smallest group that may start."""
        return self.largest._replace(workers=[*self.largest.allowed_worker_counts, self.largest.workers][0])

    def fit(self, free: int) -> None:
        """Set the size to the largest that fits on `free` slots."""
        if allowed := self.placement.allowed_worker_counts:
            self.placement = self.placement._replace(workers=largest_fitting(allowed, free))

    def resize(self, failures: int = 0) -> str:
        """Fit the size to the free resources, while no group is running. Returns the note that is shown to the user."""
        free = self._free_slots(self.placement)
        self.fit(free)
        self.can_grow, self._last_possible, self._checked = False, 0, time.monotonic()
        action = "starting" if self.placement.workers <= free else "waiting for resources for"
        after = f", after {failures} failure{'s' if failures > 1 else ''}" if failures else ""
        return f"{action} {self.placement}{after}"

    def request_growth(self, present: int) -> None:
        """If the size is not fixed: ask a cluster that scales for the nodes of the largest group, of which nodes for
        `present` workers are requested in another way.
        """
        if self._request_more and self.largest.allowed_worker_counts:
            self._request_more(self.placement, self.largest.workers - present)

    def check_growth(self) -> bool:
        """Whether a larger group fits. Two checks in a row must say so: a lost node may be listed for some seconds."""
        workers, allowed = self.placement.workers, self.placement.allowed_worker_counts
        if allowed and not self.can_grow and time.monotonic() - self._checked >= _CHECK_SECONDS:
            self.request_growth(present=workers)
            possible = largest_fitting(allowed, workers + self._free_slots(self.placement))
            self.can_grow = min(possible, self._last_possible) > workers
            self._last_possible, self._checked = possible, time.monotonic()
        return self.can_grow
