"""Progress of the workers -> shown in the driver; stop requests of the driver -> the workers.

Both go through an actor, the GroupMonitor: worker 0 reports its progress there, and the answer says whether to stop.
The driver kills workers that do not report for too long.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.threads import run_periodically
from cloze.training.cluster.elastic import ElasticSize

ReportProgress = Callable[[float, str], bool]  # the work done and a note -> whether the driver requests to stop

_REPORT_SECONDS = 0.5
_START_TIMEOUT = 1800.0  # seconds for everything before a group's first step, such as reading a checkpoint


class Progress(NamedTuple):
    """The total amount of work, and how much of it earlier runs have `done`. `out` displays it."""

    out: Output
    total: float
    unit: str
    done: float = 0.0

    def show(self, done: float, note: str) -> None:
        with suppress(OSError, SystemExit):  # a closed log does not end the training
            self.out.report_progress(done, self.total, self.unit, note)


class GroupStatus(NamedTuple):
    """The progress of the current worker group, as the driver reads it."""

    done: float
    note: str
    heartbeats: int  # calls of workers and new groups so far
    is_stepping: bool  # whether the current group has reported progress


class GroupMonitor:
    """The state of the current worker group. A Ray actor, called by the driver and by the workers."""

    def __init__(self, done: float, note: str) -> None:
        self._done, self._note = done, note
        self._heartbeats = 0
        self._workers: list[Any] = []  # of the current group
        self._is_stepping = False
        self._failure: UserError | None = None
        self._stop_requested = False

    def start_group(self, note: str) -> None:
        """A new group is about to start."""
        self._heartbeats += 1
        self._note, self._is_stepping, self._stop_requested = note, False, False

    def add_worker(self, worker: Any) -> None:
        """Every worker calls it with its actor's handle."""
        self._heartbeats += 1
        self._is_stepping = False
        self._workers.append(worker)

    def report(self, done: float, note: str) -> bool:
        """Record the progress; returns whether the workers must stop."""
        self._heartbeats += 1
        self._is_stepping = True
        self._done, self._note = done, note
        return self._stop_requested

    def report_wait(self, note: str) -> None:
        """A worker waits for S3. The note is shown until the next progress report; such a wait is no standstill."""
        self._heartbeats += 1
        self._note = note

    def status(self) -> GroupStatus:
        return GroupStatus(self._done, self._note, self._heartbeats, self._is_stepping)

    def request_stop(self) -> None:
        self._stop_requested = True

    def take_workers(self, note: str) -> list[Any]:
        """Remove and return the handles of the workers, for the driver to kill; some may have ended long ago."""
        self._note = note
        workers, self._workers = self._workers, []
        return workers

    def set_failure(self, error: UserError) -> None:
        self._failure = error

    def failure(self) -> UserError | None:
        return self._failure


# In a worker


def register_worker(monitor: Any) -> ReportProgress:
    """Register this worker with the monitor. Returns its function that reports progress; only worker 0 reports."""
    import ray
    import torch.distributed as dist

    reported, stop_requested = 0.0, False
    ray.get(monitor.add_worker.remote(ray.get_runtime_context().current_actor))

    def report_progress(done: float, note: str) -> bool:
        nonlocal reported, stop_requested
        if dist.get_rank() == 0 and time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            stop_requested = bool(ray.get(monitor.report.remote(done, note)))
        return stop_requested

    return report_progress


# In the driver


def new_monitor(done: float, note: str) -> Any:
    return actor_on_this_node(GroupMonitor, done, note)


def actor_on_this_node(kind: type, *arguments: Any) -> Any:
    """Start an actor on the driver's node, so that it is not lost with the node of a worker."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(kind)
    return actor.options(scheduling_strategy=on_this_node).remote(*arguments)


def kill_workers(monitor: Any, reason: str) -> None:
    """Kill the workers of the current group."""
    import ray

    for worker in ray.get(monitor.take_workers.remote(reason)):
        ray.kill(worker)


def is_stepping(monitor: Any) -> bool:
    """Returns whether the current group has reported progress."""
    import ray

    status: GroupStatus = ray.get(monitor.status.remote())
    return status.is_stepping


def reported_user_error(monitor: Any) -> UserError | None:
    """The error that a worker has reported and that only the user can fix, if any."""
    import ray

    return ray.get(monitor.failure.remote())


@contextmanager
def monitored(
    monitor: Any, progress: Progress, step_timeout: float | None, stop: threading.Event, size: ElasticSize | None
) -> Iterator[None]:
    """Inside, show the progress, pass on stop requests, and kill workers that have not reported for too long.

    A stop is requested when `stop` is set, and when a group larger than `size` fits on the cluster.
    """
    import ray
    from ray.exceptions import RayError

    heartbeats, since = -1, time.monotonic()

    def poll() -> bool:
        nonlocal heartbeats, since
        try:
            status: GroupStatus = ray.get(monitor.status.remote())
            # before its first report a group may not be placed yet: the resources reserved for it would look free
            note = status.note + _request_stop_if_due(monitor, stop, size if status.is_stepping else None)
            if status.heartbeats != heartbeats:
                heartbeats, since = status.heartbeats, time.monotonic()
            limit = step_timeout and (step_timeout if status.is_stepping else max(step_timeout, _START_TIMEOUT))
            if limit and time.monotonic() - since > limit:
                kill_workers(monitor, f"no progress reported for {limit:g} s, restarting the workers")
                since = time.monotonic()
        except RayError:  # the cluster is shutting down; the call that runs the workers reports it
            return False
        progress.show(status.done, note)
        return True

    with run_periodically(poll, _REPORT_SECONDS):
        yield
    with suppress(RayError):  # show the last report, also of a group that ended before the first poll
        status: GroupStatus = ray.get(monitor.status.remote())
        progress.show(status.done, status.note)


def _request_stop_if_due(monitor: Any, stop: threading.Event, size: ElasticSize | None) -> str:
    """Request a stop if one is due; returns what to append to the user's note."""
    if stop.is_set():
        monitor.request_stop.remote()
        return ", saving and stopping"
    if size:
        with size.lock:  # else the request could reach the next group
            if size.check_growth():
                monitor.request_stop.remote()
                return ", saving and starting more workers"
    return ""
