"""The losses and gradient norms of steps -> which steps are bad, and which batches are skipped because of them.

A loss or gradient norm that is not finite is bad. After the warmup, so is a value far above those of the last hundred
steps: more than `factor` robust standard deviations above their median. A robust standard deviation is 1.4826 times the
median absolute deviation, which equals the standard deviation for a Gaussian and is not affected by outliers. Losses of
random batches scatter like a Gaussian: in 640 steps of a quickstart none is three deviations above the median, while
the loss jumps by many times that when training diverges.

Gradient norms vary by factors, so their logarithms are compared. Clipping makes most large gradients harmless, so a
norm must also be at least a hundred times the median to be bad. The deviation of the loss is taken to be at least one
hundredth of the median: losses of large batches hardly scatter, and small noise would otherwise look like a spike.
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
_GAUSSIAN = 1.4826  # standard deviations per median absolute deviation
_MIN_LOSS_DEVIATION = 0.01  # fraction of the median loss
_MIN_NORM_RATIO = 100  # to the median gradient norm
_MIN_NORM = 1e-30  # because zero has no logarithm


@dataclass(frozen=True)
class SkippedBatch:
    """A global batch that is left out of the training, and why."""

    step: int  # at which it was used
    phase: int  # index of the phase
    batch: int  # its number in the phase's data
    reason: str
    value: str  # a string, as JSON has no "nan" and "inf"
    examples: list[list[int]]  # the epoch and the index of each


class BadStep(NamedTuple):
    """A step whose update must be undone, and the batch to skip because of it."""

    skip: SkippedBatch
    loss: float
    grad_norm: float


class RecentSteps:
    """The losses and gradient norms of the last hundred good steps, which the next step is compared with."""

    def __init__(self, losses: Iterable[float] = (), log_norms: Iterable[float] = ()) -> None:
        self._losses, self._log_norms = deque(losses, maxlen=_RECENT), deque(log_norms, maxlen=_RECENT)

    def to_json(self) -> list[list[float]]:
        """The arguments of the constructor."""
        return [list(self._losses), list(self._log_norms)]

    def clear(self) -> None:
        """Start again: the losses of the next phase are different, for example those of longer sequences."""
        self._losses.clear()
        self._log_norms.clear()

    def check(self, loss: float, grad_norm: float, factor: float | None) -> tuple[str, float] | None:
        """The reason and the value if the step is bad. Otherwise None, and its loss and norm are added.

        Without a `factor`, as during the warmup, only values that are not finite are bad.
        """
        if not math.isfinite(loss):
            return "the loss is not finite", loss
        if not math.isfinite(grad_norm):
            return "the gradient norm is not finite", grad_norm
        log_norm = math.log(max(grad_norm, _MIN_NORM))
        if factor and len(self._losses) == _RECENT:
            usual_loss = median(self._losses)
            if loss > _threshold(self._losses, factor, factor * _MIN_LOSS_DEVIATION * usual_loss):
                return f"the loss is far above the median of {_RECENT} steps, {usual_loss:.4f}", loss
            if log_norm > _threshold(self._log_norms, factor, math.log(_MIN_NORM_RATIO)):
                usual_norm = math.exp(median(self._log_norms))
                return f"the gradient norm is far above the median of {_RECENT} steps, {usual_norm:.4g}", grad_norm
        self._losses.append(loss)
        self._log_norms.append(log_norm)
        return None


def _threshold(recent: Sequence[float], factor: float, min_distance: float) -> float:
    """`factor` robust standard deviations above the median, but at least `min_distance` above it."""
    middle = median(recent)
    return middle + max(factor * _GAUSSIAN * median(abs(value - middle) for value in recent), min_distance)


def nth_kept_batch(n: int, skipped: Iterable[int]) -> int:
    """The number of the n-th batch of a phase (from 0), not counting the skipped ones."""
    for batch in sorted(skipped):
        if batch > n:
            break
        n += 1
    return n


def encode_skipped(skipped: Sequence[SkippedBatch]) -> bytes:
    """The content of skipped.jsonl."""
    return json_lines.encode(map(asdict, skipped))


def read_skipped(artifact: Location) -> list[SkippedBatch]:
    """The batches in an artifact's skipped.jsonl, if it exists."""
    return [SkippedBatch(**row) for row in json_lines.read(artifact / FILE)]
