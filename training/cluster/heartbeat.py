"""what workers tell -> progress shown in the driver; the driver's wish that they leave -> the workers.

Both meet at a board, an actor: worker 0 writes there how far it is, and reads whether it is to leave. The driver ends
workers of which nothing is heard any more.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from cloze.pipeline.core.artifacts import Output
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.threads import run_periodically
from cloze.training.cluster.elastic import GroupSize

Tell = Callable[[float, str], bool]  # how much is done, and a note -> whether the driver wants worker 0 to leave

_TELL_SECONDS = 0.5
_START_TIMEOUT = 1800.0  # seconds for all that comes before a group's first step, such as reading a checkpoint


class Progress(NamedTuple):
    """How much there is to do, of which earlier runs have `done` some; `out` shows how far it is."""

    out: Output
    total: float
    unit: str
    done: float = 0.0

    def show(self, done: float, note: str) -> None:
        with suppress(OSError, SystemExit):  # a log that nobody reads any more ends no training
            self.out.report_progress(done, self.total, self.unit, note)


class Board:
    """What is known of the group that is at work. It is an actor of Ray's, which driver and workers call."""

    def __init__(self, done: float, note: str) -> None:
        self._told = (done, note)
        self._heard = 0  # times that something was
        self._workers: list[Any] = []  # of the group that is at work
        self._stepping = False  # whether that group has told anything yet
        self._failure = ""
        self._leave = False

    def start(self, note: str) -> None:
        """A group is about to begin."""
        self._heard += 1
        self._told, self._stepping, self._leave = (self._told[0], note), False, False

    def begin(self, worker: Any) -> None:
        """Every worker calls it with its actor's handle."""
        self._heard += 1
        self._stepping = False
        self._workers.append(worker)

    def tell(self, done: float, note: str) -> bool:
        self._heard += 1
        self._stepping = True
        self._told = (done, note)
        return self._leave

    def told(self) -> tuple[tuple[float, str], int, bool]:
        """What was told last, how often something was heard, and whether the group has told anything yet."""
        return self._told, self._heard, self._stepping

    def leave(self) -> None:
        self._leave = True

    def dismissed(self, note: str) -> list[Any]:
        """The workers' handles, which are the driver's to end; also those of groups that have long ended."""
        self._told = (self._told[0], note)
        workers, self._workers = self._workers, []
        return workers

    def fail(self, message: str) -> None:
        self._failure = message

    def failure(self) -> str:
        return self._failure


# In a worker


def begun(board: Any) -> Tell:
    """Report this worker to the board; how its work tells how far it is, which only worker 0 passes on."""
    import ray
    import torch.distributed as dist

    told, leave = 0.0, False
    ray.get(board.begin.remote(ray.get_runtime_context().current_actor))

    def tell(done: float, note: str) -> bool:
        nonlocal told, leave
        if dist.get_rank() == 0 and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            leave = bool(ray.get(board.tell.remote(done, note)))
        return leave

    return tell


# In the driver


def new_board(done: float, note: str) -> Any:
    """The actor, in this process's node, which no worker's node can take with it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Board)
    return actor.options(scheduling_strategy=here).remote(done, note)


def end_workers(board: Any, reason: str) -> None:
    """Kill the workers that are at work."""
    import ray

    for worker in ray.get(board.dismissed.remote(reason)):
        ray.kill(worker)


def failure(board: Any) -> UserError | None:
    """What the user can mend, if a worker has told it."""
    import ray

    message = ray.get(board.failure.remote())
    return UserError(message) if message else None


@contextmanager
def watched(
    board: Any, progress: Progress, step_timeout: float | None, leave: threading.Event, size: GroupSize | None
) -> Iterator[None]:
    """While inside, show what the board says, hand on the wish to leave, and end workers that are not heard of.

    They are to leave when `leave` is set, and when there has come to be room for a larger group than `size`.
    """
    import ray
    from ray.exceptions import RayError

    heard, since = -1, time.monotonic()

    def look() -> bool:
        nonlocal heard, since
        try:
            (done, note), now_heard, stepping = ray.get(board.told.remote())
            note += _asked_to_leave(board, leave, size if stepping else None)  # the room of one not placed seems free
            if now_heard != heard:
                heard, since = now_heard, time.monotonic()
            limit = step_timeout and (step_timeout if stepping else max(step_timeout, _START_TIMEOUT))
            if limit and time.monotonic() - since > limit:
                end_workers(board, f"nothing heard of the workers for {limit:g} s, starting others")
                since = time.monotonic()
        except RayError:  # the cluster is going away, which the run of the workers itself will tell
            return False
        progress.show(done, note)
        return True

    with run_periodically(look, _TELL_SECONDS):
        yield
    with suppress(RayError):  # what was told last, also by a group that was quicker than a look
        (done, note), *_ = ray.get(board.told.remote())
        progress.show(done, note)


def _asked_to_leave(board: Any, leave: threading.Event, size: GroupSize | None) -> str:
    """Hand on the wish to leave, if there is one; what a user should read of it behind the note."""
    if leave.is_set():
        board.leave.remote()
        return ", saving and leaving"
    if size:
        with size.lock:  # or the wish could reach the group after this one
            if size.look():
                board.leave.remote()
                return ", saving and starting more workers"
    return ""
