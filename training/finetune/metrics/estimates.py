"""Counts or statistics of scored examples -> a score with its 95 % confidence interval."""

import math
from collections.abc import Callable, Sized
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution

Floats = NDArray[np.float64]

_RESAMPLES = 1000
_SEED = 0
_DRAWN_AT_ONCE = 2**22  # numbers drawn at once: 32 MiB


class Estimate(NamedTuple):
    """A score and the limits of its 95 % confidence interval, which contains the score."""

    value: float
    low: float
    high: float


def estimate(value: float, low: float, high: float) -> Estimate:
    """Returns the numbers as plain floats, the interval widened when rounding or a skewed bootstrap distribution puts
    the value outside it."""
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def proportion(successes: int, total: int) -> Estimate:
    """Returns successes / total with its Wilson interval. Raises ValueError when total is 0."""
    low, high = wilson(successes, total)
    return estimate(successes / total, low, high)


def wilson(successes: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a proportion (Wilson 1927): within 0 and 1, valid for small counts."""
    if not 0 <= successes <= total or not total:
        raise ValueError(f"{successes} of {total} is not a proportion")
    proportion = successes / total
    centre = proportion + z**2 / (2 * total)
    margin = z * math.sqrt(proportion * (1 - proportion) / total + (z / (2 * total)) ** 2)
    scale = 1 + z**2 / total
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def bootstrap(
    statistics: ArrayLike,
    score: Callable[[Floats], Floats],
    *,
    value: float | None = None,
    counts: ArrayLike | None = None,
) -> Estimate:
    """Returns a score with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Each row of `statistics` [n, k] describes one example, or `counts` [n] equal examples. `score` computes scores [r]
    from sums of rows [r, k]. `value`, by default the score of the sum of all rows, is the point estimate. The seed is
    fixed, and the order of the examples has no effect. The interval has no width when all examples have equal
    statistics, for example when all predictions are correct.
    """
    rows, inverse = np.unique(np.asarray(statistics, np.float64), axis=0, return_inverse=True)
    weights = np.bincount(inverse.ravel(), counts)  # examples per distinct row
    total = round(weights.sum())
    # Equal rows are interchangeable: a resample is the number of times that each distinct row is drawn.
    generator = np.random.default_rng(_SEED)
    resampled = np.empty(_RESAMPLES)
    step = max(1, _DRAWN_AT_ONCE // len(rows))
    for start in range(0, _RESAMPLES, step):
        size = min(step, _RESAMPLES - start)
        drawn = generator.multinomial(total, weights / total, size=size)  # [size, distinct rows]
        resampled[start : start + size] = score(drawn.astype(np.float64) @ rows)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return estimate(score(weights[None] @ rows)[0] if value is None else value, low, high)


def ratio(numerators: Floats, denominators: Floats) -> Floats:
    """Returns numerators / denominators, and 0 where a denominator is 0."""
    return np.divide(numerators, denominators, out=np.zeros_like(denominators), where=denominators != 0)


def require_one_each(labels: Sized, predictions: Sized, labels_name: str = "labels", name: str = "predictions") -> None:
    """Raises ValueError when there are no labels, or not as many predictions; the names are those in the message."""
    if not len(labels) or len(labels) != len(predictions):
        raise ValueError(f"{len(predictions)} {name} for {len(labels)} {labels_name}: there must be one for each")
