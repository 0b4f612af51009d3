"""one function -> the same function in every worker of a group of Ray Train's, until all of them return.

After a failure a new group starts: a Ray run of its own, of as many workers as there is room for then
(training/cluster/elastic.py). What is heard of them, and how they are asked to leave: training/cluster/heartbeat.py.
"""

import ctypes
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.signals import event_on_first
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.elastic import GroupSize, Placement
from cloze.training.cluster.heartbeat import Progress, Tell, begun, end_workers, failure, new_board, watched

Work = Callable[[Any, Tell], None]  # the function: what it is given, how it tells its progress

_PAUSE_SECONDS = 2.0  # after a group has ended, until its room is free

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class RestartPolicy(NamedTuple):
    """When a group is ended, and whether another one follows.

    A group of which nothing is heard for `step_timeout` seconds is ended, which is a failure; after more than
    `max_failures` there is no other. `leaves` says that the work returns early once `tell` gives True.
    """

    max_failures: int = 3
    step_timeout: float | None = None
    leaves: bool = False


def run_workers(work: Work, argument: Any, placement: Placement, restart: RestartPolicy, progress: Progress) -> None:
    """Call `work(argument, tell)` in every worker until all return; after a failure a new group of them starts.

    Where the work leaves when it is told to, a first SIGTERM tells it so, and a second acts as ever; it is told so too
    when there has come to be room for a larger group, which takes its place.
    Each group is a Ray run with a name of its own, so that none inherits what another left behind. Raises the UserError
    that ended a worker, which no new start would mend; else Ray's TrainingFailedError, after `restart.max_failures` of
    them (waiting for room is none, nor is the loss of nodes that were announced); KeyboardInterrupt when the work has
    left early.
    """
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError

    size, failures = GroupSize(placement), 0
    board = new_board(progress.done, f"starting {placement}")
    with (
        _storage(progress.out.location) as folder,
        _terminated(restart.leaves) as leave,
        watched(board, progress, restart.step_timeout, leave, size if restart.leaves else None),
    ):
        while True:
            try:
                _run(_trainer(work, argument, size.placement, board, folder))
            except KeyboardInterrupt:
                end_workers(board, "stopped")
                raise
            except TrainingFailedError as error:
                if users := failure(board):
                    raise users from error
                failures += _counts(error)
                if failures > restart.max_failures:
                    raise error from _cause(error) or error.__cause__
            else:
                if not size.more:
                    break
            if leave.wait(_PAUSE_SECONDS):
                break
            with size.lock:
                ray.get(board.start.remote(size.refit(failures)))
    if leave.is_set():
        raise KeyboardInterrupt


@contextmanager
def _storage(artifact: Location) -> Iterator[Location]:
    """A folder that Ray wants, which all nodes can reach, as long as we are inside."""
    with scratch_folder(artifact) as folder:
        try:
            yield folder / uuid.uuid4().hex
        finally:
            with suppress(OSError):  # nothing in it is of use to another attempt
                folder.delete()


def _terminated(leaves: bool) -> AbstractContextManager[threading.Event]:
    """While inside, the first SIGTERM sets the event and does nothing else, if the work `leaves`."""
    return event_on_first(signal.SIGTERM) if leaves else nullcontext(threading.Event())


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


def _trainer(work: Work, argument: Any, placement: Placement, board: Any, folder: Location) -> Any:
    """A Ray run of one attempt: what comes after a failure is ours to say, not Ray's."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": float(placement.threads)} | ({"GPU": 1.0} if placement.gpus else {})
    return TorchTrainer(
        _in_worker,
        train_loop_config={"work": work, "argument": argument, "board": board, "threads": placement.threads},
        scaling_config=ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpus, resources_per_worker=resources
        ),
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


def _in_worker(arguments: dict[str, Any]) -> None:
    import ray
    import torch

    board = arguments["board"]
    tell = begun(board)
    torch.set_num_threads(arguments["threads"])
    keep_freed_memory()
    try:
        arguments["work"](arguments["argument"], tell)
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise


def group_size() -> int:
    """In a worker: how many workers its group has."""
    from ray import train

    return train.get_context().get_world_size()


def node_is_going() -> bool:
    """In a worker: whether notice was given that a node of the group will be taken away."""
    from ray import train

    return train.get_preemption_info() is not None


def keep_freed_memory() -> None:
    """Have malloc keep what is freed: each step asks for as much again, which Linux would clear first.

    That is an eighth of a small step's time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that glibc before 2.35 takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
