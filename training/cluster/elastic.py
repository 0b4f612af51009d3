"""the cluster's nodes -> how many workers a group has now, and whether there has come to be room for more."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from cloze.pipeline.core.errors import UserError

_LOOK_SECONDS = 15.0  # between two looks for room


class Placement(NamedTuple):
    """How many workers, on how many processor cores each, and whether each has a GPU.

    `allowed_worker_counts`, rising, are those that a later group may have; without them it is as large as the first.
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
        """What was asked for; by itself a worker for each GPU, `without_gpus` of them where there is none.

        Several `workers`, rising, are the allowed counts, of which the largest there is room for is taken. Where no
        node has as many cores as a worker has threads, it has fewer. Raises UserError when the `nodes` (their
        resources: see nodes()) have less than was asked for: Ray itself would wait for ever.
        """
        found = int(sum(node.get("GPU", 0) for node in nodes))
        asked = found if gpus == "auto" else gpus
        cores = (node.get("CPU", 0) for node in nodes if not asked or node.get("GPU", 0))
        threads = max(1, min(threads, int(max(cores, default=0))))
        room = places(nodes, threads, asked > 0)
        allowed = tuple(workers) if isinstance(workers, Sequence) else ()
        if isinstance(workers, Sequence):
            workers = largest(workers, room)
        elif workers and gpus != "auto" and gpus not in (0, workers):
            raise UserError(f"{stage}: gpus is {gpus} beside workers {workers}, and each has one; remove one of them")
        count = workers or asked or max(1, min(without_gpus, room))
        if asked and count > found:
            raise UserError(f"{stage}: asks for {count} GPUs, there are {found}; lower gpus or workers")
        if count > room:
            raise UserError(
                f"{stage}: asks for {count} workers of {threads} processor cores{' and a GPU' if asked else ''}, "
                f"the nodes have room for {room}; lower workers or threads"
            )
        return cls(count, threads, asked > 0, allowed)

    def __str__(self) -> str:
        return f"{self.workers} worker{'s' if self.workers > 1 else ''}"


def places(nodes: Iterable[Mapping[str, float]], threads: int, gpus: bool) -> int:
    """How many workers of so many threads, and with a GPU each, nodes with these resources have room for."""
    return sum(int(min(node.get("CPU", 0.0) // threads, node.get("GPU", 0.0) if gpus else math.inf)) for node in nodes)


def largest(counts: Sequence[int], room: int) -> int:
    """The largest of rising numbers for which there is room; the first where there is room for none."""
    return max((count for count in counts if count <= room), default=counts[0])


def nodes() -> list[Mapping[str, float]]:
    """The resources of each of the cluster's nodes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_workers(placement: Placement) -> int:
    """How many more such workers the cluster's nodes have room for now, beside what is at work there."""
    from ray._private.state import state  # the public sum over nodes has room where no node has

    leaving, free = state.get_draining_nodes(), state.available_resources_per_node()
    return places((free[node] for node in free if node not in leaving), placement.threads, placement.gpus)


class GroupSize:
    """How large the next group is, and whether there has come to be room for one larger than this.

    `lock` is held while a group is replaced, and while one is looked after: a wish must not reach the group after it.
    """

    def __init__(self, placement: Placement, free: Callable[[Placement], int] = free_workers) -> None:
        self.placement, self.more, self.lock = placement, False, threading.Lock()
        self._free = free
        self._looked, self._seen = time.monotonic(), 0

    def refit(self, failures: int = 0) -> str:
        """Take what room there is while no group is at work; what a user should read."""
        free = self._free(self.placement)
        if allowed := self.placement.allowed_worker_counts:
            self.placement = self.placement._replace(workers=largest(allowed, free))
        self.more, self._seen, self._looked = False, 0, time.monotonic()
        begins = "starting" if self.placement.workers <= free else "waiting for room for"
        again = f", after {failures} failure{'s' if failures > 1 else ''}" if failures else ""
        return f"{begins} {self.placement}{again}"

    def look(self) -> bool:
        """Whether there is room for more, seen twice: a lost node may be counted for some seconds longer."""
        workers, allowed = self.placement.workers, self.placement.allowed_worker_counts
        if allowed and not self.more and time.monotonic() - self._looked >= _LOOK_SECONDS:
            possible = largest(allowed, workers + self._free(self.placement))
            self.more = min(possible, self._seen) > workers
            self._seen, self._looked = possible, time.monotonic()
        return self.more
