"""labels and predictions -> scores: plain numbers in, plain numbers out."""

import math
from collections import Counter
from collections.abc import Sequence

Label = str | int


def accuracy(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """The share of predictions that are right."""
    return correct(labels, predictions) / len(labels)


def correct(labels: Sequence[Label], predictions: Sequence[Label]) -> int:
    """How many predictions are right. Raises ValueError when there is none or not one for each label."""
    if not labels or len(labels) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels: there must be one for each")
    return sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))


def macro_f1(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """The mean over classes of F1 = 2 tp / (2 tp + fp + fn); the classes are those seen in labels or predictions."""
    hits = Counter(label for label, prediction in zip(labels, predictions, strict=True) if label == prediction)
    sizes = Counter(labels) + Counter(predictions)  # 2 tp + fp + fn
    return sum(2 * hits[name] / size for name, size in sizes.items()) / len(sizes)


def matthews(labels: Sequence[Label], predictions: Sequence[Label]) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 when either side has one class only."""
    total, right = len(labels), correct(labels, predictions)
    true, predicted = Counter(labels), Counter(predictions)
    covariance = right * total - sum(true[name] * predicted[name] for name in true)
    spread_true = total**2 - sum(count**2 for count in true.values())
    spread_predicted = total**2 - sum(count**2 for count in predicted.values())
    return covariance / math.sqrt(spread_true * spread_predicted) if spread_true and spread_predicted else 0.0


def wilson(successes: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): it stays within 0 and 1 and holds for small counts."""
    if not 0 <= successes <= total or not total:
        raise ValueError(f"{successes} of {total} is no share")
    share = successes / total
    centre = share + z**2 / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z**2 / total
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def majority(labels_train: Sequence[Label], labels_test: Sequence[Label]) -> list[Label]:
    """A prediction for each test label: the most frequent label of train; of equals the first by name."""
    counts = Counter(labels_train)
    most = min(counts, key=lambda label: (-counts[label], label))
    return [most] * len(labels_test)
