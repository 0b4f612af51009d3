"""Ray Data for the stages: workers receive names of shards, and read and write the shards themselves."""

import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from cloze.pipeline.core import cpu_time
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import cluster_cpus, without_gpu_nodes

_MAX_RETRIES = 3  # of a name whose worker is lost; by default Ray Data retries indefinitely


class ActorResources(NamedTuple):
    """The resources of a worker that keeps its process, and what `function` has loaded into it."""

    cpus: int
    gpus: int


def for_each(
    function: Callable[[str], None], names: Sequence[str], workers: int | None, actors: ActorResources | None = None
) -> None:
    """Call function(name) for every name, on up to `workers` workers, by default one for each CPU of the cluster.

    Requires a Ray session.

    With `actors` each worker is one process with these resources; by default any process, with one core.

    Raises a worker's UserError or OSError as such, and anything else as RuntimeError with the worker's traceback.
    """
    if not names:
        return
    import ray
    from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised

    def call(row: dict[str, str]) -> dict[str, Any]:
        cpu_seconds: list[float] = []
        try:
            with cpu_time.measured_item(cpu_seconds.append):
                function(row["name"])
        except (UserError, OSError) as error:
            return {"error": pickle.dumps(error), "cpu_seconds": 0.0}
        except Exception:
            failure = RuntimeError(f"{row['name']}: {traceback.format_exc()}")
            return {"error": pickle.dumps(failure), "cpu_seconds": 0.0}
        return {"error": b"", "cpu_seconds": cpu_seconds[0]}

    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    workers = min(workers or cluster_cpus(), len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a later Ray has other names for these arguments
        if actors:

            class Actor:
                def __call__(self, row: dict[str, str]) -> dict[str, Any]:
                    return call(row)

            actor = cast(Any, Actor)  # Ray's annotations know functions only
            pool, (cpus, gpus) = ray.data.ActorPoolStrategy(size=workers), actors
            # Without restarts: Ray prints an error whenever Ray Data starts an actor that can be restarted.
            results = rows.map(actor, compute=pool, num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        else:
            selector = without_gpu_nodes()
            results = rows.map(call, concurrency=workers, max_retries=_MAX_RETRIES, label_selector=selector)
    try:
        for row in results.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            cpu_time.add_worker_seconds(row["cpu_seconds"])
    except (ActorDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        raise UserError(
            "a worker process ended (killed, or out of memory); run the command again: finished parts are kept"
        ) from error
