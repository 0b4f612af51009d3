"""The vectors of each choice of layers -> a classifier for each, with its best C, and the best choice of layers.

They are compared by the task's metric on dev, or over the folds of train: C first, for each choice of layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch

from cloze.pipeline.core.ragged import Ints, offsets_of
from cloze.training.finetune.probing.bilstm import BiLSTM
from cloze.training.finetune.probing.regression import Regression, fold_of_examples
from cloze.training.finetune.tasks.probe import Probabilities, Probe
from cloze.training.vectors.pooling import Vectors
from cloze.training.vectors.representation import Layers


class Classifier(Protocol):
    """Predicts the labels of units from their vectors: a Regression or a BiLSTM."""

    @property
    def converged(self) -> bool: ...

    def probabilities(self, vectors: Vectors, row_lengths: Ints) -> Probabilities:
        """[units, dimension], in rows of `row_lengths` units -> [units, labels]."""
        ...


@dataclass(frozen=True)
class LayerChoice:
    """A choice of layers with its classifier."""

    layers: Layers
    dimension: int
    inverse_penalty: float | None  # C of a regression
    classifier: Classifier
    dev: float  # the task's metric
    folds: tuple[float, ...]  # the same of each fold of train, fitted on the others; empty without cross-validation
    selection_key: tuple[float, float]  # the greatest is the best: the metric by which C is chosen, the lower loss


@dataclass(frozen=True)
class Probing:
    """A probe with the encoded examples of train and dev."""

    probe: Probe
    splits: Mapping[str, Any]
    train_examples: list[Any]
    device: torch.device  # of a BiLSTM

    def best(self, layers: Layers, vectors: Mapping[str, Vectors], report: Callable[[str], None]) -> LayerChoice:
        """The best classifier on the vectors of train and dev; of equal ones the one with the C that is named first."""
        config = self.probe.config
        choices = list[LayerChoice]()
        for inverse_penalty in (None,) if config.bilstm else config.C:
            of_choice = f"layers {layers}" if inverse_penalty is None else f"layers {layers}, C {inverse_penalty:g}"
            report(of_choice)
            fit = partial(self._fit, inverse_penalty, report=lambda note, prefix=of_choice: report(f"{prefix}, {note}"))
            classifier = fit(vectors["train"], self._targets, self._train_row_lengths)
            on_dev = self.probe.evaluate(self.probabilities(classifier, vectors["dev"], "dev"), self.splits["dev"])
            dev, key = on_dev[self.probe.metric], (on_dev[self.probe.metric], -on_dev["loss"])
            choice = LayerChoice(layers, vectors["train"].shape[1], inverse_penalty, classifier, dev, (), key)
            choices.append(self._cross_validated(choice, vectors["train"], fit) if config.cross_validation else choice)
        return best(choices)

    def probabilities(self, classifier: Classifier, vectors: Vectors, split: str) -> Probabilities:
        """The probability of each label for each unit of a split [units, labels]."""
        return classifier.probabilities(vectors, self.probe.row_lengths(self.splits[split]))

    def _cross_validated(self, choice: LayerChoice, vectors: Vectors, fit: Callable[..., Classifier]) -> LayerChoice:
        """The choice with the scores of the folds, by which it is compared."""
        unit_folds, row_lengths = self._fold_of_unit, self._train_row_lengths
        row_folds = unit_folds[offsets_of(row_lengths)[:-1]]  # the units of a row are of one example
        held_out = np.empty((len(vectors), len(self.probe.labels)))
        for fold in range(self.probe.config.cross_validation):
            in_fold, rows_in_fold = unit_folds == fold, row_folds == fold
            classifier = fit(vectors[~in_fold], self._targets[~in_fold], row_lengths[~rows_in_fold])
            held_out[in_fold] = classifier.probabilities(vectors[in_fold], row_lengths[rows_in_fold])
        rows = self.probe.predictions(self.train_examples, held_out, self._train).rows
        scores = [self._score(rows, fold) for fold in range(self.probe.config.cross_validation)]
        loss = self.probe.evaluate(held_out, self._train)["loss"]
        return replace(choice, folds=tuple(scores), selection_key=(fmean(scores), -loss))

    def _score(self, rows: list[dict[str, Any]], fold: int) -> float:
        """The task's metric of a fold, from the predictions for all of train."""
        members = np.flatnonzero(self._fold_of_example == fold)
        predicted = [rows[number]["predicted"] for number in members]
        return self.probe.scores([self.train_examples[number] for number in members], predicted)[self.probe.metric]

    def _fit(
        self,
        inverse_penalty: float | None,
        vectors: Vectors,
        targets: Ints,
        row_lengths: Ints,
        report: Callable[[str], None],
    ) -> Classifier:
        label_count, settings = len(self.probe.labels), self.probe.config.bilstm
        if settings is None:
            assert inverse_penalty is not None
            return Regression.fit(vectors, targets, label_count, inverse_penalty)
        return BiLSTM.fit(
            vectors,
            targets,
            row_lengths,
            label_count,
            settings,
            self.probe.config.seed,
            self.device,
            lambda epoch: report(f"epoch {epoch} of {settings.epochs}"),
        )

    @property
    def _train(self) -> Any:
        return self.splits["train"]

    @cached_property
    def _targets(self) -> Ints:
        return self.probe.targets(self._train)

    @cached_property
    def _train_row_lengths(self) -> Ints:
        return self.probe.row_lengths(self._train)

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
