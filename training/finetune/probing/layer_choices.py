"""The vectors of each choice of layers -> a regression for each, the best C of it, and the best choice of layers.

They are compared by the task's metric on dev, or over the folds of train: C first, for each choice of layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from cloze.pipeline.core.ragged import Ints
from cloze.training.finetune.probing.regression import Regression, fold_of_examples
from cloze.training.finetune.tasks.probe import Probe
from cloze.training.vectors.pooling import Vectors
from cloze.training.vectors.representation import Layers


@dataclass(frozen=True)
class LayerChoice:
    """A choice of layers with its regression."""

    layers: Layers
    dimension: int
    inverse_penalty: float  # C
    regression: Regression
    dev: float  # the task's metric
    folds: tuple[float, ...]  # the same of each fold of train, fitted on the others; empty without cross-validation
    selection_key: tuple[float, float]  # the greatest is the best: the metric by which C is chosen, the lower loss


@dataclass(frozen=True)
class Probing:
    """A probe with the encoded examples of train and dev."""

    probe: Probe
    splits: Mapping[str, Any]
    train_examples: list[Any]

    def best(self, layers: Layers, vectors: Mapping[str, Vectors], report: Callable[[str], None]) -> LayerChoice:
        """The best regression on the vectors of train and dev; of equal ones the one with the C that is named first."""
        choices = list[LayerChoice]()
        for inverse_penalty in self.probe.config.C:
            report(f"layers {layers}, C {inverse_penalty:g}")
            choices.append(self._fitted(layers, vectors, inverse_penalty))
        return best(choices)

    def _fitted(self, layers: Layers, vectors: Mapping[str, Vectors], inverse_penalty: float) -> LayerChoice:
        regression = self._fit(vectors["train"], self._targets, inverse_penalty)
        on_dev = self.probe.evaluate(regression.probabilities(vectors["dev"]), self.splits["dev"])
        metric = self.probe.metric
        dimension = vectors["train"].shape[1]
        key = (on_dev[metric], -on_dev["loss"])
        choice = LayerChoice(layers, dimension, inverse_penalty, regression, on_dev[metric], (), key)
        return self._cross_validated(choice, vectors["train"]) if self.probe.config.cross_validation else choice

    def _cross_validated(self, choice: LayerChoice, vectors: Vectors) -> LayerChoice:
        """The choice with the scores of the folds, by which it is compared."""
        folds = self._fold_of_unit
        held_out = np.empty((len(vectors), len(self.probe.labels)))
        for fold in range(self.probe.config.cross_validation):
            others = folds != fold
            regression = self._fit(vectors[others], self._targets[others], choice.inverse_penalty)
            held_out[~others] = regression.probabilities(vectors[~others])
        rows = self.probe.predictions(self.train_examples, held_out, self._train).rows
        scores = [self._score(rows, fold) for fold in range(self.probe.config.cross_validation)]
        loss = self.probe.evaluate(held_out, self._train)["loss"]
        return replace(choice, folds=tuple(scores), selection_key=(fmean(scores), -loss))

    def _score(self, rows: list[dict[str, Any]], fold: int) -> float:
        """The task's metric of a fold, from the predictions for all of train."""
        members = np.flatnonzero(self._fold_of_example == fold)
        predicted = [rows[number]["predicted"] for number in members]
        return self.probe.scores([self.train_examples[number] for number in members], predicted)[self.probe.metric]

    def _fit(self, vectors: Vectors, targets: Ints, inverse_penalty: float) -> Regression:
        return Regression.fit(vectors, targets, len(self.probe.labels), inverse_penalty)

    @property
    def _train(self) -> Any:
        return self.splits["train"]

    @cached_property
    def _targets(self) -> Ints:
        return self.probe.targets(self._train)

    @cached_property
    def _fold_of_example(self) -> Ints:
        config = self.probe.config
        labels = np.array([one.label for one in self.train_examples]) if config.of == "classification" else None
        return fold_of_examples(labels, len(self.train_examples), config.cross_validation, config.seed)

    @cached_property
    def _fold_of_unit(self) -> Ints:
        return self._fold_of_example[self.probe.example_numbers(self._train)]


def best(choices: list[LayerChoice]) -> LayerChoice:
    """The best one; the first of equals."""
    return max(choices, key=lambda choice: choice.selection_key)
