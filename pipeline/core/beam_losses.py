"""Lost workers of a pipeline on a Ray cluster -> whether the pipeline runs again, or the run ends."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cloze.pipeline.core.beam_workers import LostWorkerError

_MAX_LOSSES = 3  # attempts that lose a worker on the same item: the item is the cause, not the machines


class LostWorker(NamedTuple):
    """The item that a worker was lost on, empty if it was idle or had not started, and how it was lost."""

    work: str
    loss: str


class LossCounter:
    """Counts the attempts that have lost workers on the same item, and those in a row that have finished no item.

    A lost node costs all its workers at once: an attempt counts once for each item, and once for all idle workers.
    """

    def __init__(self) -> None:
        self._losses = Counter[str]()

    def add_attempt(self, lost: Sequence[LostWorker], finished_items: bool) -> None:
        """`finished_items`: whether an item was finished. Raises LostWorkerError after the third loss."""
        if finished_items:
            del self._losses[""]
        for work, loss in {worker.work: worker.loss for worker in lost}.items():
            self._losses[work] += 1
            if self._losses[work] == _MAX_LOSSES:
                raise LostWorkerError(f"beam: {_message(work, loss)} Run again: finished work is kept")


def _message(work: str, loss: str) -> str:
    if work:
        lost = f"{_MAX_LOSSES} workers were lost, the last one {loss} while it worked on {work}"
        return f"{lost}: was it out of memory?"
    lost = f"workers were lost {_MAX_LOSSES} times while no item was finished, the last one {loss}"
    return f"{lost}: is the memory or the disk of its node full?"
