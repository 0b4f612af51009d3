"""Labels of train -> predictions that a model must beat."""

from collections import Counter
from collections.abc import Sequence

from cloze.training.finetune.metrics.classification import Label


def majority(train_labels: Sequence[Label], count: int) -> list[Label]:
    """Returns `count` predictions of the most frequent label of train, of equally frequent ones the first by name."""
    counts = Counter(train_labels)
    most_frequent = min(counts, key=lambda label: (-counts[label], label))
    return [most_frequent] * count
