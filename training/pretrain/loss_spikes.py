"""the losses and gradient norms of steps -> which step is at fault, and which batches are stepped over for it.

A number that is not finite is at fault. So is, once the warmup is over, one far above those of the last hundred steps:
by more than `factor` robust deviations over their median. Losses of batches that are drawn alike scatter like a
Gaussian, for which one deviation is 1.4826 times the median distance from the median, and a few strays move neither;
in the quickstart's 640 steps none is three of them above. Training that is about to be lost jumps by many times that.
Gradient norms scatter by factors: it is their logarithms that are compared. As clipping takes the harm out of most that
are large, only one that is out of all proportion is at fault: a hundredfold at least. A loss's deviation counts as one
hundredth of the median at least, or large batches, whose losses hardly scatter, would be judged by noise.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import NamedTuple

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.storage import Location

FILE = "skipped.jsonl"
_RECENT = 100  # steps
_GAUSSIAN = 1.4826  # deviations in a median distance from the median
_LEAST = 0.01  # of the median loss
_LEAST_TIMES = 100  # the usual gradient norm
_TINY = 1e-30  # a norm of nothing has no logarithm


@dataclass(frozen=True)
class Skip:
    """A global batch that is left out, and why."""

    step: int  # which it was part of
    phase: int  # its place among the phases
    batch: int  # its place in the phase's data
    reason: str
    value: str  # "nan" and "inf" are no JSON
    examples: list[list[int]]  # the epoch and the index of each


class Fault(NamedTuple):
    """A step whose update must be undone, and the batch that is left out for it."""

    skip: Skip
    loss: float
    grad_norm: float


class RecentSteps:
    """The losses and gradient norms of the last hundred steps, by which the next one is judged."""

    def __init__(self, losses: Iterable[float] = (), log_norms: Iterable[float] = ()) -> None:
        self._losses, self._log_norms = deque(losses, maxlen=_RECENT), deque(log_norms, maxlen=_RECENT)

    def to_json(self) -> list[list[float]]:
        """What the constructor takes."""
        return [list(self._losses), list(self._log_norms)]

    def forget(self) -> None:
        """What comes now has losses of its own: longer sequences, say."""
        self._losses.clear()
        self._log_norms.clear()

    def fault(self, loss: float, grad_norm: float, factor: float | None) -> tuple[str, float] | None:
        """The reason and the value where a step is at fault; else its loss and its norm are remembered.

        Without a `factor`, as during the warmup, only numbers that are not finite are at fault.
        """
        if not math.isfinite(loss):
            return "the loss is not finite", loss
        if not math.isfinite(grad_norm):
            return "the gradient norm is not finite", grad_norm
        size = math.log(max(grad_norm, _TINY))
        if factor and len(self._losses) == _RECENT:
            middle = median(self._losses)
            if loss > _bound(self._losses, factor, factor * _LEAST * middle):
                return f"the loss is far above the median of {_RECENT} steps, {middle:.4f}", loss
            if size > _bound(self._log_norms, factor, math.log(_LEAST_TIMES)):
                usual = math.exp(median(self._log_norms))
                return f"the gradient norm is far above the median of {_RECENT} steps, {usual:.4g}", grad_norm
        self._losses.append(loss)
        self._log_norms.append(size)
        return None


def _bound(recent: Sequence[float], factor: float, least: float) -> float:
    """What is `factor` robust deviations above the median, and by no less than `least`."""
    middle = median(recent)
    return middle + max(factor * _GAUSSIAN * median(abs(value - middle) for value in recent), least)


def place(turn: int, skipped: Iterable[int]) -> int:
    """Which batch of a phase is the `turn`-th (from 0) of those that are not skipped."""
    for batch in sorted(skipped):
        if batch > turn:
            break
        turn += 1
    return turn


def lines(skips: Sequence[Skip]) -> bytes:
    """Skips as JSON lines."""
    return json_lines.encode(map(asdict, skips))


def noted(artifact: Location) -> list[Skip]:
    """What an artifact's skipped.jsonl holds."""
    return [Skip(**row) for row in json_lines.read(artifact / FILE)]
