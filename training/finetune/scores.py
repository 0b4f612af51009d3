"""Labels and predictions -> scores.

Not scikit-learn's and SciPy's: their macro-F1 and Wilson interval differ from the stored ones in the last bits. The
tests compare with both.
"""

import math
from collections import Counter
from collections.abc import Sequence

Label = str | int


def accuracy(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """Returns the fraction of predictions that are correct."""
    return correct(labels, predictions) / len(labels)


def correct(labels: Sequence[Label], predictions: Sequence[Label]) -> int:
    """Returns the number of correct predictions. Raises ValueError for none, or when the numbers differ."""
    if not labels or len(labels) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels: there must be one for each")
    return sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))


def macro_f1(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """Returns the mean of F1 = 2 tp / (2 tp + fp + fn) over the classes that occur in labels or predictions."""
    true_positives = Counter(
        label for label, prediction in zip(labels, predictions, strict=True) if label == prediction
    )
    denominators = Counter(labels) + Counter(predictions)  # 2 tp + fp + fn
    return sum(2 * true_positives[name] / denominator for name, denominator in denominators.items()) / len(denominators)


def matthews(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """Returns the Matthews correlation for any number of classes (Gorodkin 2004); 0 when labels or predictions have
    one class only."""
    total, hits = len(labels), correct(labels, predictions)
    true, predicted = Counter(labels), Counter(predictions)
    covariance = hits * total - sum(true[name] * predicted[name] for name in true)
    true_variance = total**2 - sum(count**2 for count in true.values())
    predicted_variance = total**2 - sum(count**2 for count in predicted.values())
    product = true_variance * predicted_variance
    return covariance / math.sqrt(product) if product else 0.0


def wilson(successes: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a proportion (Wilson 1927): within 0 and 1, valid for small counts."""
    if not 0 <= successes <= total or not total:
        raise ValueError(f"{successes} of {total} is not a proportion")
    proportion = successes / total
    centre = proportion + z**2 / (2 * total)
    margin = z * math.sqrt(proportion * (1 - proportion) / total + (z / (2 * total)) ** 2)
    scale = 1 + z**2 / total
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def majority(train_labels: Sequence[Label], count: int) -> list[Label]:
    """Returns `count` predictions of the most frequent label of train, of equally frequent ones the first by name."""
    counts = Counter(train_labels)
    most_frequent = min(counts, key=lambda label: (-counts[label], label))
    return [most_frequent] * count
