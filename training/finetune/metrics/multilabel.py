"""The set of labels and of predicted labels of each example -> exact match, micro-F1 and macro-F1."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from cloze.training.finetune.metrics.classification import Label, mean_f1
from cloze.training.finetune.metrics.estimates import Estimate, bootstrap, proportion, require_one_each

LabelSets = Sequence[Collection[Label]]


def exact_match(labels: LabelSets, predictions: LabelSets) -> Estimate:
    """Returns the fraction of examples whose labels are all predicted and no others, with its Wilson interval."""
    require_one_each(labels, predictions, "sets of labels")
    pairs = zip(labels, predictions, strict=True)
    return proportion(sum(set(true) == set(predicted) for true, predicted in pairs), len(labels))


def micro_f1(labels: LabelSets, predictions: LabelSets) -> Estimate:
    """Returns F1 = 2 tp / (2 tp + fp + fn) over all labels of all examples, with its bootstrap interval.

    It is undefined, 0 within [0, 1], when no example has a label and none is predicted.
    """
    require_one_each(labels, predictions, "sets of labels")
    pairs = [(set(true), set(predicted)) for true, predicted in zip(labels, predictions, strict=True)]
    statistics = np.array([(len(true & predicted), len(true) + len(predicted)) for true, predicted in pairs])
    return bootstrap(statistics, mean_f1) if statistics.any() else Estimate(0.0, 0.0, 1.0)


def macro_f1(labels: LabelSets, predictions: LabelSets) -> Estimate:
    """Returns the mean F1 of the labels that occur in labels or predictions, with its bootstrap interval.

    It is undefined, 0 within [0, 1], when no example has a label and none is predicted.
    """
    require_one_each(labels, predictions, "sets of labels")
    pairs = Counter(
        (frozenset(true), frozenset(predicted)) for true, predicted in zip(labels, predictions, strict=True)
    )
    names = sorted({name for pair in pairs for labels_of_pair in pair for name in labels_of_pair}, key=repr)
    if not names:
        return Estimate(0.0, 0.0, 1.0)
    true, predicted = (np.array([[name in pair[side] for name in names] for pair in pairs]) for side in (0, 1))
    statistics = np.hstack([true & predicted, true.astype(int) + predicted])
    return bootstrap(statistics, mean_f1, counts=list(pairs.values()))
