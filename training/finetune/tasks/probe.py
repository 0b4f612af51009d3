"""Labelled texts or tagged words -> a label for each, predicted from the vectors of an encoder that is not trained.

The files, the token ids, the metrics and the baselines are those of classification or tagging.
"""

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.classification import Classification, ClassificationConfig
from cloze.training.finetune.tasks.labelled_texts import EncodedTexts
from cloze.training.finetune.tasks.probe_config import ProbeConfig
from cloze.training.finetune.tasks.tagged_inputs import EncodedSentences
from cloze.training.finetune.tasks.tagging import TagAnswer, Tagging, TaggingConfig
from cloze.training.finetune.tasks.task import EncodedTask, Predictions
from cloze.training.vectors.hidden_states import LayeredEncoder
from cloze.training.vectors.pooling import Vectors, text_vectors, token_vectors
from cloze.training.vectors.representation import Representation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Probabilities = NDArray[np.float64]  # [units, labels]

_FACTS = ("labels", "scheme", "skipped")  # of the task; published scores are those of fine-tuned models


@dataclass(frozen=True)
class Probe(ABC):
    """The task of predicting the labels of another task from vectors.

    What gets a label is a unit: a text or a word. The units of a split are in the order of its rows.
    """

    config: ProbeConfig
    task: Any  # Classification or Tagging
    split_kind: ClassVar[type]

    @classmethod
    def read(cls, config: ProbeConfig, files: Mapping[str, Location]) -> "Probe":
        columns, settings = config.task_columns, config.task_settings
        # Not validated: a probe has no learning rate, and the values have been validated.
        if config.of == "classification":
            texts = ClassificationConfig.model_construct(**settings, columns=columns)
            probe: Probe = TextProbe(config, Classification.read(texts, files))
        else:
            words = TaggingConfig.model_construct(**settings, columns=columns)
            probe = WordProbe(config, Tagging.read(words, files))
        probe._check_folds(next(iter(files.values())))
        return probe

    def _check_folds(self, where: object) -> None:
        """Raises UserError when train cannot be divided into the folds of cross_validation."""
        labels = [example.label for example in self.examples if example.split == "train"]
        count, unit = len(labels), "sentences"
        if self.config.of == "classification":
            [(label, count)] = Counter(labels).most_common(1)
            unit = f"texts of its most frequent label, {label!r}"
        if count < (folds := self.config.cross_validation or 0):
            raise UserError(f"{where}: train has {count} {unit}, fewer than cross_validation {folds}; lower it")

    @abstractmethod
    def vectors(
        self, encoder: LayeredEncoder, data: Any, special_ids: frozenset[int], report: Callable[[int], None]
    ) -> list[Vectors]:
        """For each choice of layers [units, dimension]; the encoder runs once.

        `report` is called with the number of rows so far. Raises UserError when the encoder has too few layers.
        """

    @abstractmethod
    def targets(self, data: Any) -> Ints:
        """The index of each unit's label [units], -1 without one."""

    @abstractmethod
    def row_lengths(self, data: Any) -> Ints:
        """The number of units in each row [rows]."""

    @abstractmethod
    def example_numbers(self, data: Any) -> Ints:
        """The number of each unit's example in the split [units]."""

    @abstractmethod
    def answers(self, probabilities: Probabilities, data: Any) -> Sequence[Any]:
        """The answers of the task for the rows of a split, from the probability of each label for each unit."""

    @property
    def skipped(self) -> Mapping[str, int]:
        return self.task.skipped

    @property
    def examples(self) -> Sequence[Any]:
        return self.task.examples

    @property
    def labels(self) -> list[str]:
        return self.task.labels

    @property
    def metric(self) -> str:
        return self.task.metric

    @property
    def scored_split(self) -> str:
        return self.task.scored_split

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        return self.task.encode(tokenizer)

    def predictions(self, examples: Sequence[Any], probabilities: Probabilities, data: Any) -> Predictions:
        """The task's predictions, from the probability of each label for each unit."""
        return self.task.predictions(examples, self.answers(probabilities, data), data)

    def evaluate(self, probabilities: Probabilities, data: Any) -> dict[str, float]:
        """The task's metrics of a split with labels, among them its metric and the loss."""
        return self.task.evaluate(self.answers(probabilities, data), data)

    def scores(self, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
        return self.task.scores(examples, predicted)

    def baselines(self, examples: Sequence[Any]) -> dict[str, list[Any]]:
        return self.task.baselines(examples)

    def texts(self, example: Any) -> list[tuple[str, str]]:
        return self.task.texts(example)

    def sample(self, example: Any, predicted: Any) -> dict[str, Any]:
        return self.task.sample(example, predicted)

    def facts(self) -> dict[str, Any]:
        return {name: fact for name, fact in self.task.facts().items() if name in _FACTS}


class TextProbe(Probe):
    """A label for each text: a row of EncodedTexts."""

    split_kind: ClassVar[type] = EncodedTexts

    def vectors(
        self, encoder: LayeredEncoder, data: EncodedTexts, special_ids: frozenset[int], report: Callable[[int], None]
    ) -> list[Vectors]:
        pooling, special_tokens = self.config.pooling, self.config.special_tokens
        representations = [
            Representation(layers=layers, pooling=pooling, special_tokens=special_tokens)
            for layers in self.config.layers
        ]
        return text_vectors(encoder, data.texts, representations, special_ids, report)

    def targets(self, data: EncodedTexts) -> Ints:
        return data.targets

    def row_lengths(self, data: EncodedTexts) -> Ints:
        return np.ones(len(data.targets), np.int64)

    def example_numbers(self, data: EncodedTexts) -> Ints:
        return np.arange(len(data.targets))

    def answers(self, probabilities: Probabilities, data: EncodedTexts) -> Sequence[Any]:
        return list(probabilities)


class WordProbe(Probe):
    """A tag for each word of EncodedSentences that has pieces, from the vector of the first one."""

    split_kind: ClassVar[type] = EncodedSentences

    def vectors(
        self,
        encoder: LayeredEncoder,
        data: EncodedSentences,
        special_ids: frozenset[int],
        report: Callable[[int], None],
    ) -> list[Vectors]:
        return token_vectors(encoder, data.texts, self.config.layers, data.first_pieces, report)

    def targets(self, data: EncodedSentences) -> Ints:
        return data.targets[data.words.values]

    def row_lengths(self, data: EncodedSentences) -> Ints:
        return data.words.lengths

    def example_numbers(self, data: EncodedSentences) -> Ints:
        return np.searchsorted(data.sentences, data.words.values, side="right") - 1

    def answers(self, probabilities: Probabilities, data: EncodedSentences) -> Sequence[Any]:
        targets = self.targets(data)
        of_target = probabilities[np.arange(len(targets)), targets.clip(min=0)]
        losses = np.where(targets < 0, np.nan, -np.log(of_target.clip(min=1e-12)))
        tags, bounds = probabilities.argmax(-1), itertools.pairwise(data.words.offsets.tolist())
        return [TagAnswer(tags[start:stop], float(losses[start:stop].sum())) for start, stop in bounds]
