"""Ray Data as the stages use it: names of shards go out to the workers, which read and write the shards themselves."""

import logging
from collections.abc import Callable, Iterable

from pipeline.config import UserError


def for_each(function: Callable[[str], None], names: Iterable[str], workers: int) -> None:
    """Call function(name) for every name, on as many Ray tasks at a time as there are workers.

    Raises UserError where a worker raised it; Ray's own error otherwise.
    """
    rows = [{"name": name} for name in names]
    if not rows:
        return
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def call(row: dict[str, str]) -> dict[str, str]:
        function(row["name"])
        return row

    try:
        ray.data.from_items(rows, override_num_blocks=len(rows)).map(call, concurrency=workers).materialize()
    except ray.exceptions.RayError as error:
        raise _users(error) or error from None


def _users(error: BaseException) -> UserError | None:
    """The UserError at the bottom of what Ray raises."""
    seen: list[BaseException | None] = [error]
    while seen and (one := seen.pop()):
        if isinstance(one, UserError):
            return UserError(*one.args)
        seen += [one.__cause__, getattr(one, "cause", None)]
    return None
