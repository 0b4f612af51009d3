"""Ray Data for the stages: workers receive names of shards, and read and write the shards themselves."""

import logging
import pickle
import traceback
from collections.abc import Callable, Sequence

from cloze.pipeline.core.errors import UserError


def for_each(function: Callable[[str], None], names: Sequence[str], workers: int) -> None:
    """Call function(name) for every name, on up to `workers` workers. Requires a Ray session.

    Raises a worker's UserError or OSError as such, and anything else as RuntimeError with the worker's traceback.
    """
    if not names:
        return
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def call(row: dict[str, str]) -> dict[str, bytes]:
        try:
            function(row["name"])
        except (UserError, OSError) as error:
            return {"error": pickle.dumps(error)}
        except Exception:
            return {"error": pickle.dumps(RuntimeError(f"{row['name']}: {traceback.format_exc()}"))}
        return {"error": b""}

    rows = ray.data.from_items([{"name": name} for name in names], override_num_blocks=len(names))
    for row in rows.map(call, concurrency=min(workers, len(names))).iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
