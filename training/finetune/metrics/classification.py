"""The label and the predicted label of each example -> accuracy, F1 and the Matthews correlation.

Not scikit-learn's and SciPy's: their macro-F1 and Wilson interval differ from the stored ones in the last bits. The
tests compare with both.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from cloze.training.finetune.metrics.estimates import (
    Estimate,
    Floats,
    bootstrap,
    estimate,
    proportion,
    ratio,
    require_one_each,
    wilson,
)

Label = str | int


def accuracy(labels: Sequence[Label], predictions: Sequence[Label]) -> Estimate:
    """Returns the fraction of predictions that are correct, with its Wilson interval."""
    return proportion(correct(labels, predictions), len(labels))


def correct(labels: Sequence[Label], predictions: Sequence[Label]) -> int:
    """Returns the number of correct predictions. Raises ValueError for none, or when the numbers differ."""
    require_one_each(labels, predictions)
    return sum(bool(label == prediction) for label, prediction in zip(labels, predictions, strict=True))


def f1(labels: Sequence[Label], predictions: Sequence[Label], positive: Label) -> Estimate:
    """Returns F1 = 2 tp / (2 tp + fp + fn) of the label `positive`.

    F1 = 2 p / (1 + p) of the proportion p = tp / (tp + fp + fn): the limits of its interval are those of p's Wilson
    interval, transformed ("Wilson indirect": Lam et al. 2024, arXiv 2309.14621). F1 is undefined, 0 within [0, 1], when
    no label and no prediction is `positive`.
    """
    require_one_each(labels, predictions)
    pairs = Counter(
        (label == positive, prediction == positive) for label, prediction in zip(labels, predictions, strict=True)
    )
    hits, total = pairs[True, True], len(labels) - pairs[False, False]
    if not total:
        return Estimate(0.0, 0.0, 1.0)
    low, high = (2 * limit / (1 + limit) for limit in wilson(hits, total))
    return estimate(2 * hits / (hits + total), low, high)


def macro_f1(labels: Sequence[Label], predictions: Sequence[Label]) -> Estimate:
    """Returns the mean of F1 = 2 tp / (2 tp + fp + fn) over the classes that occur in labels or predictions, with its
    bootstrap interval."""
    require_one_each(labels, predictions)
    true_positives = Counter(
        label for label, prediction in zip(labels, predictions, strict=True) if label == prediction
    )
    denominators = Counter(labels) + Counter(predictions)  # 2 tp + fp + fn
    scores = (2 * true_positives[name] / denominator for name, denominator in denominators.items())
    true, predicted, counts = _cells(labels, predictions)
    return bootstrap(
        np.hstack([true & predicted, true.astype(int) + predicted]),
        mean_f1,
        value=sum(scores) / len(denominators),
        counts=counts,
    )


def mean_f1(sums: Floats) -> Floats:
    """Sums [r, 2 c] of c classes' true positives, then of their 2 tp + fp + fn -> the mean F1 [r] of the classes with
    any; 0 if there is none."""
    true_positives, denominators = np.split(sums, 2, axis=1)
    return ratio(ratio(2 * true_positives, denominators).sum(1), (denominators > 0).sum(1).astype(np.float64))


def matthews(labels: Sequence[Label], predictions: Sequence[Label]) -> Estimate:
    """Returns the Matthews correlation for any number of classes (Gorodkin 2004), with its bootstrap interval.

    It is undefined, 0 within [-1, 1], when labels or predictions have one class only.
    """
    total, hits = len(labels), correct(labels, predictions)
    true_counts, predicted_counts = Counter(labels), Counter(predictions)
    covariance = hits * total - sum(true_counts[name] * predicted_counts[name] for name in true_counts)
    true_variance = total**2 - sum(count**2 for count in true_counts.values())
    predicted_variance = total**2 - sum(count**2 for count in predicted_counts.values())
    product = true_variance * predicted_variance
    if not product:
        return Estimate(0.0, -1.0, 1.0)
    true, predicted, counts = _cells(labels, predictions)
    return bootstrap(
        np.hstack([true & predicted, true, predicted]),
        _matthews_of_sums,
        value=covariance / math.sqrt(product),
        counts=counts,
    )


def _matthews_of_sums(sums: Floats) -> Floats:
    """Sums [r, 3 c] of c classes' hits, labels and predictions -> the correlation [r]; 0 where it is undefined."""
    hits, true, predicted = np.split(sums, 3, axis=1)
    total = true.sum(1)
    covariance = hits.sum(1) * total - (true * predicted).sum(1)
    variances = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    return ratio(covariance, np.sqrt(variances))


def _cells(
    labels: Iterable[Label], predictions: Iterable[Label]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """The cells of the confusion matrix that occur: the label and the prediction as one-hot rows [cells, classes], and
    the number of examples [cells]."""
    cells = Counter(zip(labels, predictions, strict=True))
    names = {name: i for i, name in enumerate(sorted({name for pair in cells for name in pair}, key=repr))}
    one_hot = np.eye(len(names), dtype=bool)
    true, predicted = (one_hot[[names[pair[side]] for pair in cells]] for side in (0, 1))
    return true, predicted, np.array(list(cells.values()))
