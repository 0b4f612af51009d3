"""Run one function in every worker of a Ray Train group until all of them return.

After a failure a new group starts. It is a Ray Train run of its own, with as many workers as then fit on the cluster
(elastic.py). Progress and stop requests: heartbeat.py.
"""

import ctypes
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.signals import event_on_first, seconds_to_end
from cloze.training.cluster.elastic import ElasticSize, Placement
from cloze.training.cluster.heartbeat import (
    Progress,
    ReportProgress,
    is_stepping,
    kill_workers,
    monitored,
    new_monitor,
    register_worker,
    reported_user_error,
)
from cloze.training.cluster.scaling import GrowthRequest, Reservation, reserve_nodes, scaling_config

WorkerFunction = Callable[[Any, ReportProgress], None]  # called with its argument and how to report progress

_POLL_SECONDS = 0.5
_UNWIND_SECONDS = 4.0  # of the time after SIGTERM, for what follows when the workers have saved
_RESTART_DELAY = 2.0  # seconds after a group has ended, until Ray has released its resources

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


class RestartPolicy(NamedTuple):
    """When a group is killed, and whether another one follows.

    A group that reports nothing for `step_timeout` seconds is killed, which counts as a failure. After more than
    `max_failures` failures no other group starts. `can_stop` says that the worker function saves and returns early
    when the answer to a progress report requests it.
    """

    max_failures: int = 3
    step_timeout: float | None = None
    can_stop: bool = False


def run_workers(
    function: WorkerFunction, argument: Any, placement: Placement, restart: RestartPolicy, progress: Progress
) -> None:
    """Call `function(argument, report_progress)` in every worker until all return; restart the group after a failure.

    If the function can stop early, the first SIGTERM requests that, and a second one acts as usual. Workers that have
    not returned some seconds after the request are killed. A stop is also requested when a larger group fits on the
    cluster; that group then takes over. Each group is a Ray Train run with its own name, so that it inherits no state
    of another.

    Raises the UserError of a worker, which a restart would not fix; Ray's TrainingFailedError after more than
    `restart.max_failures` failures (waiting for resources and the loss of nodes with advance notice do not count);
    KeyboardInterrupt when the function has stopped early.
    """
    with _stop_on_sigterm(restart.can_stop) as stop:
        run_group(WorkerGroup(function, argument, placement), restart, progress, stop, cancelled=threading.Event())


class WorkerGroup(NamedTuple):
    """What the workers of a group do, and where."""

    function: WorkerFunction
    argument: Any
    placement: Placement


def run_group(
    group: WorkerGroup,
    restart: RestartPolicy,
    progress: Progress,
    stop: threading.Event,
    cancelled: threading.Event,
    is_needed: Callable[[], bool] = lambda: True,
) -> None:
    """`run_workers`, in any thread. `stop` requests the workers to stop early; `cancelled` ends the group as Ctrl-C
    does in the main thread. A group that waits for nodes ends when it is not needed any more.
    """
    import ray
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    growth = GrowthRequest() if group.placement.scales else None
    size, failures = ElasticSize(group.placement, request_more=growth), 0
    monitor = new_monitor(progress.done, f"starting {group.placement}")
    with (
        growth or nullcontext(),
        monitored(monitor, progress, restart.step_timeout, stop, size if restart.can_stop else None),
    ):
        while True:
            try:
                should_end, reservation = _end_condition(monitor, stop, cancelled), None
                if group.placement.scales:
                    reservation = reserve_nodes(
                        size, lambda note: ray.get(monitor.start_group.remote(note)), should_end, is_needed
                    )
                    if not reservation:
                        return
                _fit(_trainer(group._replace(placement=size.placement), monitor), should_end, reservation)
            except KeyboardInterrupt:
                with suppress(RayError):  # the same signal may have ended Ray's processes
                    kill_workers(monitor, "stopped")
                raise
            except TrainingFailedError as error:
                if user_error := reported_user_error(monitor):
                    raise user_error from error
                failures += _counts_as_failure(error)
                if failures > restart.max_failures:
                    raise error from _root_cause(error) or error.__cause__
            else:
                if not size.can_grow:
                    break
            if stop.wait(_RESTART_DELAY):
                break
            with size.lock:
                ray.get(monitor.start_group.remote(size.resize(failures)))
    if stop.is_set():
        raise KeyboardInterrupt


def _stop_on_sigterm(can_stop: bool) -> AbstractContextManager[threading.Event]:
    """Inside, the first SIGTERM only sets the event, if the worker function can stop early."""
    return event_on_first(signal.SIGTERM) if can_stop else nullcontext(threading.Event())


def _end_condition(monitor: Any, stop: threading.Event, cancelled: threading.Event) -> Callable[[], bool]:
    """Returns a function that says whether the driver must end the group.

    That is when the group is cancelled; when a stop is requested before its first step, as there is nothing to save;
    and when the workers take too long to save after such a request.
    """
    requested = math.inf

    def should_end() -> bool:
        nonlocal requested
        if stop.is_set():
            requested = min(requested, time.monotonic())
        is_late = time.monotonic() > requested + seconds_to_end() - _UNWIND_SECONDS
        return cancelled.is_set() or is_late or (stop.is_set() and not is_stepping(monitor))

    return should_end


def _fit(trainer: Any, should_end: Callable[[], bool], reservation: Reservation | None) -> None:
    """trainer.fit() in a separate thread: in the main thread Ray handles Ctrl-C itself and exits with status 0.

    Releases the reserved nodes for it. Raises KeyboardInterrupt as soon as it `should_end`.
    """
    done = Future[None]()

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    with reservation or nullcontext():
        if should_end():
            raise KeyboardInterrupt
        threading.Thread(target=run, daemon=True).start()
        while wait([done], _POLL_SECONDS).not_done:
            if reservation:
                reservation.release_on_request()
            if should_end():
                raise KeyboardInterrupt
        done.result()


def _trainer(group: WorkerGroup, monitor: Any) -> Any:
    """A Ray Train run without retries: `run_group` decides what follows a failure."""
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cloze.training.cluster.collectives import TIMEOUT
    from cloze.training.cluster.ray_storage import empty_storage

    return TorchTrainer(
        _run_in_worker,
        train_loop_config={
            "function": group.function,
            "argument": group.argument,
            "monitor": monitor,
            "threads": group.placement.threads,
        },
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=scaling_config(group.placement),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path="/",
            storage_filesystem=empty_storage(),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )


def _counts_as_failure(error: Any) -> bool:
    """False if the resources were not available, or if the loss of a node was announced to the cluster in advance."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import PreemptionError

    if isinstance(error, PreemptionError):
        return False
    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return False
    causes = (getattr(cause, "health_check_failure", cause) for cause in getattr(error, "worker_failures", {}).values())
    return not any(isinstance(cause, RayActorError) and cause.preempted for cause in causes)


def _root_cause(error: Any) -> BaseException | None:
    """The error raised in a worker; an OSError of a disk or S3 comes before the errors of workers that wait for it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    return next((failure for failure in failures if isinstance(failure, OSError)), failures[0] if failures else None)


def _run_in_worker(config: dict[str, Any]) -> None:
    import ray
    import torch

    monitor = config["monitor"]
    report_progress = register_worker(monitor)
    torch.set_num_threads(config["threads"])
    keep_freed_memory()
    try:
        with reporting_waits(monitor.report_wait.remote):
            config["function"](config["argument"], report_progress)
    except UserError as error:
        ray.get(monitor.set_failure.remote(error))
        raise


def world_size() -> int:
    """In a worker: the number of workers in its group."""
    from ray import train

    return train.get_context().get_world_size()


def is_preempted() -> bool:
    """In a worker: whether the cluster has announced that it will remove a node of the group."""
    from ray import train

    return train.get_preemption_info() is not None


def keep_freed_memory() -> None:
    """Stop malloc from returning freed memory to Linux, which clears it before each step gets it back.

    Clearing takes an eighth of the time of a small step on a CPU.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no mallopt
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the maximum of glibc before 2.35
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
