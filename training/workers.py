"""one function -> the same function in every worker of a Ray Train group, its progress shown in the driver.

The driver and its workers meet at a board, an actor: worker 0 writes there how far it is and reads whether the driver
wants it to leave; the driver ends workers of which nothing is heard any more. After any failure it starts a new group,
where a range is given of as many workers as there is room for then.
"""

import ctypes
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal, NamedTuple

from pipeline.artifacts import Output, repeated
from pipeline.attempts import scratch
from pipeline.config import UserError
from pipeline.signals import first_sets
from pipeline.storage import Location

Tell = Callable[[float, str], bool]  # how much is done, and a note -> whether the driver wants worker 0 to leave
Work = Callable[[Any, Tell], None]  # the function: what it is given, how it tells its progress

_TELL_SECONDS = 0.5
_START_TIMEOUT = 1800.0  # seconds for all that comes before a group's first step, such as reading a checkpoint
_ROOM_SECONDS = 15.0  # between two looks for room
_PAUSE_SECONDS = 2.0  # after a group has ended, until its room is free

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class Group(NamedTuple):
    """How many workers, on how many processor cores each, and whether each has a GPU."""

    workers: int
    threads: int
    gpus: bool

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
    ) -> "Group":
        """The group that was asked for; by itself a worker for each GPU, `without_gpus` of them where there is none.

        Of several `workers`, rising numbers, the largest there is room for. Where no node has as many cores as a worker
        has threads, it has fewer. Raises UserError when the `nodes` (their resources: see nodes()) have less than was
        asked for: Ray itself would wait for ever.
        """
        found = int(sum(node.get("GPU", 0) for node in nodes))
        asked = found if gpus == "auto" else gpus
        cores = (node.get("CPU", 0) for node in nodes if not asked or node.get("GPU", 0))
        threads = max(1, min(threads, int(max(cores, default=0))))
        room = places(nodes, threads, asked > 0)
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
        return cls(count, threads, asked > 0)


def places(nodes: Iterable[Mapping[str, float]], threads: int, gpus: bool) -> int:
    """How many workers of so many threads, and with a GPU each, nodes with these resources have room for."""
    return sum(int(min(node.get("CPU", 0.0) // threads, node.get("GPU", 0.0) if gpus else math.inf)) for node in nodes)


def nodes() -> list[Mapping[str, float]]:
    """The resources of each of the cluster's nodes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def largest(numbers: Sequence[int], room: int) -> int:
    """The largest of rising numbers for which there is room; the first where there is room for none."""
    return max((number for number in numbers if number <= room), default=numbers[0])


class _Board:
    """The actor where workers say that they have begun, and worker 0 how far it is."""

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


def fit(
    work: Work,
    argument: Any,
    group: Group,
    out: Output,
    total: float,
    unit: str,
    *,
    done: float = 0.0,
    max_failures: int = 3,
    step_timeout: float | None = None,
    leaves: bool = False,
    numbers: Sequence[int] = (),
) -> None:
    """Call `work(argument, tell)` in every worker until all return; after a failure a new group of them starts.

    Earlier runs have `done` so many of `total` `unit`. A later group may have any of `numbers` of workers (rising), the
    largest there is room for; without them it is as large as the first. A group of which nothing is heard for
    `step_timeout` seconds is ended, which counts as a failure. `leaves` says that the work returns early once `tell`
    gives True: then a first SIGTERM makes it do so, and a second acts as ever; and so it does when there has come to be
    room for a larger group, which takes its place.
    Each group is a Ray run with a name of its own, so that none inherits what another left behind. Raises the UserError
    that ended a worker, which no new start would mend; else Ray's TrainingFailedError, after `max_failures` of them
    (waiting for room is none, nor is the loss of nodes that were announced); KeyboardInterrupt when the work has left
    early.
    """
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    room, failures = _Room(group, numbers), 0
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Board)
    first = f"starting {room.workers}"
    board = actor.options(scheduling_strategy=here).remote(done, first)  # no worker's node can take it
    with (
        _storage(out.location) as folder,
        _terminated(leaves) as leave,
        _watched(board, out, total, unit, step_timeout, leave, room if leaves else None),
    ):
        while True:
            try:
                _run(_trainer(work, argument, room.group, board, folder))
            except KeyboardInterrupt:
                _end(board, "stopped")
                raise
            except TrainingFailedError as error:
                if failure := _failure(board):
                    raise failure from error
                failures += _counts(error)
                if failures > max_failures:
                    raise error from _cause(error) or error.__cause__
            else:
                if not room.more:
                    break
            if leave.wait(_PAUSE_SECONDS):
                break
            with room.lock:
                ray.get(board.start.remote(room.taken(failures)))
    if leave.is_set():
        raise KeyboardInterrupt


@contextmanager
def _storage(artifact: Location) -> Iterator[Location]:
    """A folder that Ray wants, which all nodes can reach, as long as we are inside."""
    with scratch(artifact) as folder:
        try:
            yield folder / uuid.uuid4().hex
        finally:
            with suppress(OSError):  # nothing in it is of use to another attempt
                folder.delete()


class _Room:
    """How large the next group is, and whether there has come to be room for one larger than this."""

    def __init__(self, group: Group, numbers: Sequence[int], free: Callable[[Group], int] | None = None) -> None:
        """`free` says how many more workers of such a group there is room for now: see free_workers."""
        self.group, self.more, self.lock = group, False, threading.Lock()
        self._numbers, self._free = numbers, free or free_workers
        self._looked, self._seen = time.monotonic(), 0

    @property
    def workers(self) -> str:
        """Of the next group, in words."""
        return f"{self.group.workers} worker{'s' if self.group.workers > 1 else ''}"

    def taken(self, failures: int = 0) -> str:
        """Take what room there is while no group is at work; what a user should read."""
        free = self._free(self.group)
        if self._numbers:
            self.group = self.group._replace(workers=largest(self._numbers, free))
        self.more, self._seen, self._looked = False, 0, time.monotonic()
        again = f", after {failures} failure{'s' if failures > 1 else ''}" if failures else ""
        return f"{'starting' if self.group.workers <= free else 'waiting for room for'} {self.workers}{again}"

    def look(self) -> bool:
        """Whether there is room for more, seen twice: a lost node may be counted for some seconds longer."""
        if self._numbers and not self.more and time.monotonic() - self._looked >= _ROOM_SECONDS:
            possible = largest(self._numbers, self.group.workers + self._free(self.group))
            self.more = min(possible, self._seen) > self.group.workers
            self._seen, self._looked = possible, time.monotonic()
        return self.more


def free_workers(group: Group) -> int:
    """How many workers like the group's the cluster's nodes have room for now, beside what is at work there."""
    from ray._private.state import state  # the public sum over nodes has room where no node has

    leaving, free = state.get_draining_nodes(), state.available_resources_per_node()
    return places((free[node] for node in free if node not in leaving), group.threads, group.gpus)


def _run(trainer: Any) -> None:
    """trainer.fit() in a thread of its own: in the main one Ray takes Ctrl-C for itself, and ends with status 0."""
    done = Future[None]()

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    done.result()


def _trainer(work: Work, argument: Any, group: Group, board: Any, folder: Location) -> Any:
    """A Ray run of one attempt: what comes after a failure is ours to say, not Ray's."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": float(group.threads)} | ({"GPU": 1.0} if group.gpus else {})
    return TorchTrainer(
        _in_worker,
        train_loop_config={"work": work, "argument": argument, "board": board, "threads": group.threads},
        scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=group.gpus, resources_per_worker=resources),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=folder.path,
            storage_filesystem=folder.fs,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )


def _counts(error: Any) -> bool:
    """Whether it is a failure: not that there was no room, nor the loss of a node that was announced to the cluster."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import PreemptionError

    if isinstance(error, PreemptionError):
        return False
    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return False
    causes = (getattr(cause, "health_check_failure", cause) for cause in getattr(error, "worker_failures", {}).values())
    return not any(isinstance(cause, RayActorError) and cause.preempted for cause in causes)


def _cause(error: Any) -> BaseException | None:
    """What was raised in a worker: rather a disk's or S3's error than what the others say who miss it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    return next((failure for failure in failures if isinstance(failure, OSError)), failures[0] if failures else None)


def _end(board: Any, reason: str) -> None:
    """Kill the workers that are at work."""
    import ray

    for worker in ray.get(board.dismissed.remote(reason)):
        ray.kill(worker)


def _failure(board: Any) -> UserError | None:
    """What the user can mend, if a worker has told it."""
    import ray

    message = ray.get(board.failure.remote())
    return UserError(message) if message else None


def _in_worker(arguments: dict[str, Any]) -> None:
    import ray
    import torch
    import torch.distributed as dist

    board, told, leave = arguments["board"], 0.0, False
    ray.get(board.begin.remote(ray.get_runtime_context().current_actor))

    def tell(done: float, note: str) -> bool:
        nonlocal told, leave
        if dist.get_rank() == 0 and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            leave = bool(ray.get(board.tell.remote(done, note)))
        return leave

    torch.set_num_threads(arguments["threads"])
    keep_freed_memory()
    try:
        arguments["work"](arguments["argument"], tell)
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise


def keep_freed_memory() -> None:
    """Have malloc keep what is freed: each step asks for as much again, which Linux would clear first.

    That is an eighth of a small step's time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that glibc before 2.35 takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _terminated(leaves: bool) -> AbstractContextManager[threading.Event]:
    """While inside, the first SIGTERM sets the event and does nothing else, if the work `leaves`."""
    return first_sets(signal.SIGTERM) if leaves else nullcontext(threading.Event())


@contextmanager
def _watched(
    board: Any,
    out: Output,
    total: float,
    unit: str,
    step_timeout: float | None,
    leave: threading.Event,
    room: _Room | None,
) -> Iterator[None]:
    """While inside, show what the board says, hand on the wish to leave, also to make `room` for a larger group, and
    end workers that are not heard of."""
    import ray
    from ray.exceptions import RayError

    heard, since = -1, time.monotonic()

    def look() -> bool:
        nonlocal heard, since
        try:
            (done, note), now_heard, stepping = ray.get(board.told.remote())
            if leave.is_set():
                board.leave.remote()
                note = f"{note}, saving and leaving"
            elif room:
                with room.lock:  # or the wish could reach the group after this one
                    if room.look():
                        board.leave.remote()
                        note = f"{note}, saving and starting more workers"
            if now_heard != heard:
                heard, since = now_heard, time.monotonic()
            limit = step_timeout and (step_timeout if stepping else max(step_timeout, _START_TIMEOUT))
            if limit and time.monotonic() - since > limit:
                reason = f"nothing heard of the workers for {limit:g} s, starting others"
                _end(board, reason)
                since = time.monotonic()
        except RayError:  # the cluster is going away, which fit() itself will tell
            return False
        with suppress(OSError, SystemExit):  # a log that nobody reads any more ends no training
            out.progress(done, total, unit, note)
        return True

    with repeated(look, _TELL_SECONDS):
        yield
