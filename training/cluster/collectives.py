"""what one worker has found -> all of them: that they do the same, and fail together."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Item = TypeVar("Item")
Exchange = Callable[[Any], list[Any]]  # a worker's value -> those of all workers, in every one of them


def agreed(found: Item) -> Item:
    """What worker 0 has found, in every worker."""
    box = [found]
    dist.broadcast_object_list(box)
    return box[0]


def alone(value: Any) -> list[Any]:
    """Every worker's value, where there is one worker."""
    return [value]


def new_exchange(workers: int) -> Exchange:
    """For a thread beside the training, which needs a process group of its own. All workers have to call this."""
    if workers == 1:
        return alone
    group = dist.new_group(backend="gloo")

    def exchange(value: Any) -> list[Any]:
        found = [None] * workers
        dist.all_gather_object(found, value, group=group)
        return found

    return exchange


def together(exchange: Exchange, work: Callable[[], Item]) -> list[Item]:
    """What each worker's work returns, in all of them. Where one's has failed all raise: it its own error, the others
    an OSError that says as much, or a RuntimeError where no new attempt would mend it."""
    mine, error = None, None
    try:
        mine = work()
    except Exception as found:  # whatever it is, the others wait
        error = found
    answers = exchange((mine, error and (str(error), isinstance(error, OSError))))
    if error:
        raise error
    for _, failure in answers:
        if failure:
            text, mends = failure
            raise OSError(text) if mends else RuntimeError(text)
    return [value for value, _ in answers]
