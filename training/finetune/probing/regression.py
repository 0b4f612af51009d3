"""Vectors and labels -> a logistic regression of scikit-learn, with a probability for each label of the task."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints
from cloze.training.finetune.tasks.probe import Probabilities
from cloze.training.vectors.pooling import Vectors

MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Regression:
    """A fitted regression. `model` is None where train has one label only."""

    model: Any
    labels: Ints  # the labels of train, of all `label_count`
    label_count: int
    converged: bool

    @classmethod
    def fit(cls, vectors: Vectors, targets: Ints, label_count: int, inverse_penalty: float) -> "Regression":
        """On vectors [units, dimension] and their labels [units], each below `label_count`.

        The same data give the same regression on the same processor.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        labels = np.unique(targets)
        if len(labels) == 1:
            return cls(None, labels, label_count, converged=True)
        model = LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings(record=True) as found:  # the report says so
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(vectors, targets)
        others = [warning for warning in found if not issubclass(warning.category, ConvergenceWarning)]
        for warning in others:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return cls(model, labels, label_count, converged=len(others) == len(found))

    def probabilities(self, vectors: Vectors, row_lengths: Ints | None = None) -> Probabilities:
        """[units, dimension] -> [units, labels]; 0 for a label that train does not have. Rows mean nothing to it."""
        found = np.zeros((len(vectors), self.label_count))
        if len(vectors):
            found[:, self.labels] = 1.0 if self.model is None else self.model.predict_proba(vectors)
        return found


def fold_of_examples(labels: NDArray[Any] | None, count: int, folds: int, seed: int) -> Ints:
    """The fold of each of `count` examples, drawn by the seed; with labels, each label is spread over all folds."""
    from sklearn.model_selection import KFold, StratifiedKFold

    fold_of_example = np.empty(count, np.int64)
    splitter = (KFold if labels is None else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels with fewer examples than there are folds
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(count), labels)):
            fold_of_example[held_out] = fold
    return fold_of_example
