"""The true and the predicted number of each example -> Pearson's and Spearman's correlation."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloze.training.finetune.metrics.estimates import Z_95, Estimate, Floats, estimate, require_one_each

_UNDEFINED = Estimate(0.0, -1.0, 1.0)


def pearson(labels: ArrayLike, predictions: ArrayLike) -> Estimate:
    """Returns Pearson's correlation with the interval of Fisher's z, which for fewer than 4 examples is [-1, 1].

    It is undefined, 0 within [-1, 1], when labels or predictions are constant. Raises ValueError when a number is not
    finite.
    """
    x, y = _numbers(labels, predictions)
    if _is_constant(x) or _is_constant(y):
        return _UNDEFINED
    correlation = _correlation(x, y)
    return _fisher_interval(correlation, len(x), variance=1)


def spearman(labels: ArrayLike, predictions: ArrayLike) -> Estimate:
    """Returns Spearman's correlation, equal numbers sharing their mean rank; undefined and raising as `pearson`.

    The interval is Fisher's z with the variance (1 + r²/2) / (n - 3) of Bonett and Wright (2000): Pearson's variance,
    1 / (n - 3), assumes normal values, which ranks are not, and its intervals are too narrow for strong correlations.
    """
    x, y = _numbers(labels, predictions)
    if _is_constant(x) or _is_constant(y):
        return _UNDEFINED
    correlation = _correlation(_ranks(x), _ranks(y))
    return _fisher_interval(correlation, len(x), variance=1 + correlation**2 / 2)


def _numbers(labels: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    require_one_each(x, y)
    for name, values in (("label", x), ("prediction", y)):
        if bad := np.flatnonzero(~np.isfinite(values)).tolist():
            raise ValueError(f"{name} {bad[0]} is {values[bad[0]]}: a correlation requires finite numbers")
    return x, y


def _is_constant(values: Floats) -> bool:
    return bool((values == values[0]).all())


def _correlation(x: Floats, y: Floats) -> float:
    return float(np.clip(_standardized(x) @ _standardized(y), -1, 1))


def _standardized(values: Floats) -> Floats:
    """The values [n] with mean 0 and norm 1."""
    values = values / np.abs(values).max()  # the squares of large numbers are infinite
    values = values - values.mean()
    values = values - values.mean()  # the first mean is inexact when values are almost equal
    return values / np.linalg.norm(values)


def _ranks(values: Floats) -> NDArray[np.float64]:
    """The rank of each value [n], from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _fisher_interval(correlation: float, count: int, variance: float) -> Estimate:
    """The interval of Fisher's z = atanh(correlation), whose variance is variance / (count - 3)."""
    if count <= 3:
        return Estimate(correlation, -1.0, 1.0)
    z = math.atanh(correlation) if abs(correlation) < 1 else math.copysign(math.inf, correlation)
    margin = Z_95 * math.sqrt(variance / (count - 3))
    return estimate(correlation, math.tanh(z - margin), math.tanh(z + margin))
