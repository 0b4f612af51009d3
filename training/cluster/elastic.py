"""The cluster's nodes -> how many workers a group has, and whether it can grow."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from cloze.pipeline.core.errors import UserError

_CHECK_SECONDS = 15.0  # between two checks for free resources


class Placement(NamedTuple):
    """The size of a worker group: number of workers, processor cores of each, and whether each has a GPU.

    `allowed_worker_counts`, in ascending order, are the sizes that a later group may have. If empty, the size is fixed.
    """

    workers: int
    threads: int
    gpus: bool
    allowed_worker_counts: tuple[int, ...] = ()

    @classmethod
    def fitting(
        cls,
        nodes: Sequence[Mapping[str, float]],
        *,
        stage: str,
        gpus: int | Literal["auto"],
        workers: int | Sequence[int] | None,
        threads: int,
        without_gpus: int,
    ) -> "Placement":
        """The requested workers; by default one for each GPU, or `without_gpus` workers if there are no GPUs.

        If `workers` is a sequence (ascending), these are the allowed sizes, and the largest that fits is chosen. If no
        node has `threads` cores, a worker gets fewer. Raises UserError when the `nodes` (their resources: see nodes())
        have less than requested: Ray itself would wait indefinitely.
        """
        gpus_found = int(sum(node.get("GPU", 0) for node in nodes))
        gpus_requested = gpus_found if gpus == "auto" else gpus
        cores = (node.get("CPU", 0) for node in nodes if not gpus_requested or node.get("GPU", 0))
        threads = max(1, min(threads, int(max(cores, default=0))))
        slots = worker_slots(nodes, threads, gpus_requested > 0)
        allowed = tuple(workers) if isinstance(workers, Sequence) else ()
        if isinstance(workers, Sequence):
            workers = largest_fitting(workers, slots)
        elif workers and gpus != "auto" and gpus not in (0, workers):
            raise UserError(
                f"{stage}: gpus is {gpus} and workers is {workers}, but each worker has one GPU; remove one of them"
            )
        count = workers or gpus_requested or max(1, min(without_gpus, slots))
        if gpus_requested and count > gpus_found:
            raise UserError(f"{stage}: {count} GPUs requested, but the cluster has {gpus_found}; lower gpus or workers")
        if count > slots:
            raise UserError(
                f"{stage}: {count} workers with {threads} processor cores{' and a GPU' if gpus_requested else ''} "
                f"requested, but the nodes have room for {slots}; lower workers or threads"
            )
        return cls(count, threads, gpus_requested > 0, allowed)

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"


def worker_slots(nodes: Iterable[Mapping[str, float]], threads: int, gpus: bool) -> int:
    """How many workers with `threads` cores, and a GPU if `gpus`, fit on nodes with these resources."""
    return sum(int(min(node.get("CPU", 0.0) // threads, node.get("GPU", 0.0) if gpus else math.inf)) for node in nodes)


def largest_fitting(counts: Sequence[int], slots: int) -> int:
    """The largest of `counts` (ascending) that is at most `slots`, or the smallest if none is."""
    return max((count for count in counts if count <= slots), default=counts[0])


def nodes() -> list[Mapping[str, float]]:
    """The resources of each node of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_worker_slots(placement: Placement) -> int:
    """How many more such workers fit on the cluster's nodes now, next to what already runs there."""
    from ray._private.state import state  # the public API only has the sum over nodes, which may fit on no single node

    draining, free = state.get_draining_nodes(), state.available_resources_per_node()
    return worker_slots((free[node] for node in free if node not in draining), placement.threads, placement.gpus)


class ElasticSize:
    """Chooses the size of the next worker group, and detects when the current one can be replaced by a larger one.

    `lock` is held while a group is replaced and while one is monitored, so that a stop request cannot reach the group
    after the one it is meant for.
    """

    def __init__(self, placement: Placement, free_slots: Callable[[Placement], int] = free_worker_slots) -> None:
        self.placement, self.can_grow, self.lock = placement, False, threading.Lock()
        self._free_slots = free_slots
        self._checked, self._last_possible = time.monotonic(), 0

    def resize(self, failures: int = 0) -> str:
        """Fit the size to the free resources, while no group is running. Returns the note that is shown to the user."""
        free = self._free_slots(self.placement)
        if allowed := self.placement.allowed_worker_counts:
            self.placement = self.placement._replace(workers=largest_fitting(allowed, free))
        self.can_grow, self._last_possible, self._checked = False, 0, time.monotonic()
        action = "starting" if self.placement.workers <= free else "waiting for resources for"
        after = f", after {failures} failure{'s' if failures > 1 else ''}" if failures else ""
        return f"{action} {self.placement}{after}"

    def check_growth(self) -> bool:
        """Whether a larger group fits. Two checks in a row must say so: a lost node may be listed for some seconds."""
        workers, allowed = self.placement.workers, self.placement.allowed_worker_counts
        if allowed and not self.can_grow and time.monotonic() - self._checked >= _CHECK_SECONDS:
            possible = largest_fitting(allowed, workers + self._free_slots(self.placement))
            self.can_grow = min(possible, self._last_possible) > workers
            self._last_possible, self._checked = possible, time.monotonic()
        return self.can_grow
