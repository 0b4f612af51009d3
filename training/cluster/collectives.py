"""Collective operations on Python objects, which keep all workers in step: they agree on values and fail together."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")
AllGather = Callable[[Any], list[Any]]  # a worker's value -> the values of all workers by rank, in every worker

#: How long workers wait for each other. One may repeat requests to S3 for as long as the user allows, which is no
#: standstill; the driver ends a group that stands still (step_timeout), or in which a worker has died.
TIMEOUT = timedelta(days=1)


def workers_on_this_node() -> int:
    """The number of the group's workers on this node, including this one, as set by Ray Train or torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def broadcast_object(value: Value) -> Value:
    """Worker 0's value, in every worker."""
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def single_worker_gather(value: Any) -> list[Any]:
    """The AllGather of a single worker."""
    return [value]


def new_all_gather(workers: int) -> AllGather:
    """An AllGather with its own process group, for a thread next to the training. All workers must call it together."""
    if workers == 1:
        return single_worker_gather
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def all_gather(value: Any) -> list[Any]:
        values = [None] * workers
        dist.all_gather_object(values, value, group=group)
        return values

    return all_gather


def run_together(all_gather: AllGather, work: Callable[[], Value]) -> list[Value]:
    """Run `work` in every worker; returns the results of all. If it fails in one worker, every worker raises.

    The failed worker raises its own error. The others raise an OSError with the same text if that is an OSError, which
    may be retried, else a RuntimeError.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as failure:  # any error: the other workers wait for this one
        error = failure
    outcomes = all_gather((result, error and (str(error), isinstance(error, OSError))))
    if error:
        raise error
    for _, failure in outcomes:
        if failure:
            text, may_retry = failure
            raise OSError(text) if may_retry else RuntimeError(text)
    return [result for result, _ in outcomes]
