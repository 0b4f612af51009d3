"""Labelled texts or tagged words -> a label for each, predicted from the vectors of an encoder that is not trained.

The files, the token ids, the metrics and the baselines are those of classification or tagging.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

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

_FACTS = ("labels", "scheme", "skipped")  # of the task; published scores are of fine-tuned models


class Units(Protocol):
    """What gets a label each: the texts or the words of a split, in the order of its rows."""

    def vectors(
        self,
        config: ProbeConfig,
        encoder: LayeredEncoder,
        data: Any,
        special_ids: frozenset[int],
        report: Callable[[int], None],
    ) -> list[Vectors]:
        """For each choice of layers [units, dimension]; the encoder runs once. `report`: see text_vectors."""
        ...

    def targets(self, data: Any) -> Ints:
        """The index of each unit's label [units], -1 without one."""
        ...

    def examples(self, data: Any) -> Ints:
        """The number of each unit's example in the split [units]."""
        ...

    def answers(self, probabilities: Probabilities, data: Any) -> Sequence[Any]:
        """The answers of the task for the rows of the split."""
        ...


class TextUnits:
    """Units of a split of EncodedTexts: a row is a text."""

    def vectors(
        self,
        config: ProbeConfig,
        encoder: LayeredEncoder,
        data: EncodedTexts,
        special_ids: frozenset[int],
        report: Callable[[int], None],
    ) -> list[Vectors]:
        representations = [
            Representation(layers=layers, pooling=config.pooling, special_tokens=config.special_tokens)
            for layers in config.layers
        ]
        return text_vectors(encoder, data.texts, representations, special_ids, report)

    def targets(self, data: EncodedTexts) -> Ints:
        return data.targets

    def examples(self, data: EncodedTexts) -> Ints:
        return np.arange(len(data.targets))

    def answers(self, probabilities: Probabilities, data: EncodedTexts) -> Sequence[Any]:
        return list(probabilities)


class WordUnits:
    """Units of a split of EncodedSentences: the words that have pieces."""

    def vectors(
        self,
        config: ProbeConfig,
        encoder: LayeredEncoder,
        data: EncodedSentences,
        special_ids: frozenset[int],
        report: Callable[[int], None],
    ) -> list[Vectors]:
        return token_vectors(encoder, data.texts, config.layers, data.first_pieces, report)

    def targets(self, data: EncodedSentences) -> Ints:
        return data.targets[data.words.values]

    def examples(self, data: EncodedSentences) -> Ints:
        return np.searchsorted(data.sentences, data.words.values, side="right") - 1

    def answers(self, probabilities: Probabilities, data: EncodedSentences) -> Sequence[Any]:
        targets = self.targets(data)
        of_target = probabilities[np.arange(len(targets)), targets.clip(min=0)]
        losses = np.where(targets < 0, np.nan, -np.log(of_target.clip(min=1e-12)))
        tags, bounds = probabilities.argmax(-1), data.words.offsets.tolist()
        return [
            TagAnswer(tags[start:stop], float(losses[start:stop].sum()))
            for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
        ]


class _Kind(NamedTuple):
    config: type[ClassificationConfig] | type[TaggingConfig]
    task: Any  # reads the configuration and the files
    units: Units


_KINDS = {
    "classification": _Kind(ClassificationConfig, Classification, TextUnits()),
    "tagging": _Kind(TaggingConfig, Tagging, WordUnits()),
}


@dataclass(frozen=True)
class Probe:
    """The task of predicting the labels of another task from vectors."""

    config: ProbeConfig
    task: Classification | Tagging
    units: Units

    @classmethod
    def read(cls, config: ProbeConfig, files: Mapping[str, Location]) -> Self:
        kind = _KINDS[config.of]
        shared = kind.config.model_fields.keys() & ProbeConfig.model_fields.keys() - {"kind", "columns"}
        settings = {name: getattr(config, name) for name in shared}
        # Not validated: a probe has no learning rate, and a value that has been validated is not a list any more.
        task = kind.task.read(kind.config.model_construct(**settings, columns=config.task_columns), files)
        probe = cls(config, task, kind.units)
        probe.check_folds(next(iter(files.values())))
        return probe

    def check_folds(self, where: object) -> None:
        """Raises UserError when train cannot be divided into the folds of cross_validation."""
        labels = [example.label for example in self.examples if example.split == "train"]
        count, unit = len(labels), "sentences"
        if self.config.of == "classification":
            [(label, count)] = Counter(labels).most_common(1)
            unit = f"texts of its most frequent label, {label!r}"
        if count < (folds := self.config.cross_validation or 0):
            raise UserError(f"{where}: train has {count} {unit}, fewer than cross_validation {folds}; lower it")

    @property
    def split_kind(self) -> type:
        return self.task.split_kind

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
        answers: Any = self.units.answers(probabilities, data)
        return self.task.predictions(examples, answers, data)

    def evaluate(self, probabilities: Probabilities, data: Any) -> dict[str, float]:
        """The task's metrics of a split with labels, among them its metric and the loss."""
        answers: Any = self.units.answers(probabilities, data)
        return self.task.evaluate(answers, data)

    def scores(self, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
        return self.task.scores(examples, predicted)

    def baselines(self, examples: Sequence[Any]) -> dict[str, list[Any]]:
        return self.task.baselines(examples)

    def texts(self, example: Any) -> list[tuple[str, str]]:
        return self.task.texts(example)

    def sample(self, example: Any) -> dict[str, Any]:
        return self.task.sample(example)

    def facts(self) -> dict[str, Any]:
        return {name: fact for name, fact in self.task.facts().items() if name in _FACTS}
