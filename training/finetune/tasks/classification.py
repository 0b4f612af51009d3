"""A labelled file -> [CLS] text [SEP], or [CLS] text [SEP] text_b [SEP] -> one label for each, and their scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.baselines import bag_of_words, majority
from cloze.training.finetune.heads import SequenceClassifier
from cloze.training.finetune.metrics.classification import Label, accuracy, f1, macro_f1, matthews
from cloze.training.finetune.metrics.estimates import Estimate
from cloze.training.finetune.tasks import glue
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import LabelledExample, check_splits, scored_split, with_splits
from cloze.training.finetune.tasks.labelled_texts import (
    EncodedTexts,
    LabelledColumns,
    LabelledText,
    encode_examples,
    read_texts,
    text_columns,
    text_names,
)
from cloze.training.finetune.tasks.task import (
    EncodedTask,
    InputColumns,
    Predictions,
    RowIndices,
    TransformersHead,
    score_facts,
    splits_of,
)
from cloze.training.finetune.tasks.task_config import TrainedTaskConfig, Training
from cloze.training.finetune.tasks.train_sample import TrainSample, sampled

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig

GlueName = Literal["CoLA", "SST-2", "MRPC", "QQP", "MNLI", "MNLI-mm", "QNLI", "RTE", "WNLI"]


class ClassificationConfig(TrainedTaskConfig):
    """Text classification: a file of texts, or of pairs of texts, each with one label."""

    kind: Literal["classification"] = "classification"
    """Kind of the task."""
    columns: LabelledColumns = LabelledColumns()
    """The columns of the file."""
    glue: GlueName | None = None
    """The GLUE task whose published files these are; it sets the columns and the metric."""
    metric: Annotated[Literal["accuracy", "f1", "macro_f1", "matthews"] | None, Training] = None
    """The score by which epochs and trials are compared; accuracy by default. f1 is that of the label `positive`."""
    positive: Annotated[str | None, Training, Field(min_length=1)] = None
    """The label whose F1 is computed; by default the last one of two, sorted."""
    class_weights: Annotated[Literal["balanced"] | None, Training] = None
    """balanced weighs each example in the loss by the inverse of its label's frequency in train."""
    skip_invalid: bool = False
    """Leave out rows with an empty text or label, with another number of columns or with a label that train does not
    have, and count them, in place of an error."""
    train_sample: TrainSample | None = None
    """A part of train to learn from, as `cloze compare` draws it; by default all of it."""


@dataclass(frozen=True)
class Classification:
    """The task of predicting the label of each text or pair of texts."""

    config: ClassificationConfig
    examples: list[LabelledText]
    labels: list[str]  # sorted
    skipped: Mapping[str, int] = field(default_factory=dict)  # invalid rows that were left out, by reason
    split_kind: ClassVar[type] = EncodedTexts

    @classmethod
    def read(cls, config: ClassificationConfig, files: Mapping[str, Location]) -> Self:
        skipped = Counter[str]() if config.skip_invalid else None
        found = with_splits(read_examples(config, files, skipped), config.seed, lambda example: example.label)
        where = next(iter(files.values()))
        examples, labels = with_known_labels(found, where, skipped)
        if config.train_sample:
            examples = sampled(examples, config.train_sample, where)
        task = cls(config, examples, labels, dict(skipped or {}))
        if task.metric == "f1" and config.positive is None and len(labels) > 2:
            raise UserError(
                f"{where}: has {len(labels)} labels in train, and metric: f1 is that of one; set positive to one of "
                f"{', '.join(labels)}, or metric: macro_f1"
            )
        if task.metric == "f1" and task.positive not in labels:
            raise UserError(
                f"{where}: has no label {task.positive!r} in train; set positive to one of {', '.join(labels)}"
            )
        return task

    @classmethod
    def for_inputs(
        cls, config: ClassificationConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
    ) -> Self:
        return cls(config, LabelledText.of_inputs(inputs), list(head["id2label"].values()))

    @classmethod
    def input_names(cls, config: ClassificationConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return text_names(config.columns, glue.layout_of(config.glue))

    @classmethod
    def input_columns(cls, config: ClassificationConfig, head: Mapping[str, Any]) -> InputColumns:
        return text_columns(config.columns.text, config.columns.text_b, glue.layout_of(config.glue))

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.string(), "probabilities": label_probabilities(head)}

    @property
    def metric(self) -> str:
        return self.config.metric or (glue.LAYOUTS[self.config.glue].metric if self.config.glue else "accuracy")

    @property
    def positive(self) -> str:
        """The label whose F1 is computed."""
        return self.config.positive or self.labels[-1]

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        return encode_examples(self.examples, tokenizer, self.config.max_seq_length, self._targets)

    def _targets(self, examples: Sequence[LabelledText]) -> NDArray[np.int64]:
        """The index of each label [n], -1 without one."""
        index = {label: number for number, label in enumerate(self.labels)}
        return np.array([-1 if one.label is None else index[one.label] for one in examples], np.int64)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return SequenceClassifier(encoder, config, len(self.labels), self.config.seed)

    def inputs(self, data: EncodedTexts, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask, each [batch, length of the longest row]."""
        return data.texts.batch(rows, device)

    def loss(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> Tensor:
        """The sum of the cross-entropies of logits [batch, labels]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        weights = None if self._weights is None else torch.tensor(self._weights, device=outputs.device)
        return functional.cross_entropy(outputs, targets, weights, reduction="sum")

    def loss_terms(self, data: EncodedTexts, rows: RowIndices) -> float:
        """The number of rows, or the sum of their weights."""
        return len(rows) if self._weights is None else float(np.array(self._weights)[data.targets[rows]].sum())

    @cached_property
    def _weights(self) -> list[float] | None:
        """The weight of each label in the loss: the mean over the examples of train is 1."""
        if self.config.class_weights is None:
            return None
        counts = Counter(example.label for example in self.examples if example.split == "train")
        return [counts.total() / (len(self.labels) * counts[label]) for label in self.labels]

    def answers(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> list[NDArray[np.float32]]:
        """The probability of each label [labels] for each example."""
        return list(outputs.softmax(-1).cpu().numpy())

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: EncodedTexts) -> dict[str, float]:
        """The accuracy, the task's metric, and the mean negative log likelihood of the true labels."""
        probabilities = np.stack(answers)  # [n, labels]
        target_probabilities = probabilities[np.arange(len(data.targets)), data.targets].astype(np.float64)
        predicted = probabilities.argmax(-1)
        metrics = {"accuracy": float((predicted == data.targets).mean())}
        if self.metric != "accuracy":
            names = np.array(self.labels)
            truth = names[data.targets].tolist()
            metrics[self.metric] = self._score(self.metric, truth, names[predicted].tolist()).value
        return metrics | {"loss": float(-np.log(target_probabilities.clip(min=1e-12)).mean())}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The task's metric, then the lower loss."""
        return metrics[self.metric], -metrics["loss"]

    def predictions(
        self, examples: Sequence[LabelledText], answers: Sequence[NDArray[np.float32]], data: EncodedTexts
    ) -> Predictions:
        rows = [
            {
                "row": example.row,
                "label": example.label,
                "predicted": self.labels[int(values.argmax())],
                "probabilities": {label: round(float(p), 6) for label, p in zip(self.labels, values, strict=True)},
            }
            for example, values in zip(examples, answers, strict=True)
        ]
        return Predictions(rows, glue.submission_files(self.config.glue, examples, rows))

    def scores(self, examples: Sequence[LabelledText], predicted: Sequence[str]) -> dict[str, Any]:
        truth = [example.label for example in examples]
        names = dict.fromkeys((self.metric, "accuracy", "macro_f1", "matthews"))
        return score_facts({name: self._score(name, truth, predicted) for name in names}, self.metric)

    def _score(self, name: str, truth: Sequence[Label], predicted: Sequence[Label]) -> Estimate:
        if name == "f1":
            return f1(truth, predicted, self.positive)
        return {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews}[name](truth, predicted)

    def baselines(self, examples: Sequence[LabelledText]) -> dict[str, list[Label]]:
        train = [example for example in self.examples if example.split == "train"]
        labels = [example.label for example in train]
        return {
            "majority": majority(labels, len(examples)),
            "bag_of_words": bag_of_words(LabelledText.columns(train), labels, LabelledText.columns(examples)),
        }

    def texts(self, example: LabelledText) -> list[tuple[str, str]]:
        return example.named_texts()

    def sample(self, example: LabelledText, predicted: Any) -> dict[str, Any]:
        return example.sample()

    def facts(self) -> dict[str, Any]:
        return {
            "labels": label_counts(self.examples),
            "skipped": dict(self.skipped),
            **(glue.paper_fact(self.config.glue) if self.config.glue else {}),
        }

    def head(self) -> TransformersHead:
        return TransformersHead("ForSequenceClassification", labels_config(self.labels))


def labels_config(labels: Sequence[str]) -> dict[str, Any]:
    """The names of labels as config.json has them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def label_probabilities(head: Mapping[str, Any]) -> pa.DataType:
    """The type of the probabilities of each label, in a table."""
    return pa.struct([(label, pa.float64()) for label in head["id2label"].values()])


def read_examples(
    config: ClassificationConfig, files: Mapping[str, Location], skipped: Counter[str] | None = None
) -> list[LabelledText]:
    """The examples of the labelled files: see read_texts."""
    layout = glue.layout_of(config.glue)
    return read_texts(config.columns, layout, files, lambda where, text: text, skipped)


def label_counts(examples: Sequence[LabelledExample]) -> dict[str, dict[str, int]]:
    """Split -> label -> number of examples, labels sorted; those without a label are not counted."""
    labelled = [example for example in examples if example.label is not None]
    return {
        split: dict(sorted(Counter(example.label for example in labelled if example.split == split).items()))
        for split in splits_of(examples)
    }


def with_known_labels(
    examples: Sequence[LabelledText], where: object, skipped: Counter[str] | None = None
) -> tuple[list[LabelledText], list[str]]:
    """The examples, and the labels of train, sorted. A label that train does not have is invalid.

    Raises UserError when the examples cannot be learned from or scored.
    """
    check_splits(examples, where)
    labels = list(label_counts(examples)["train"])
    if len(labels) < 2:
        raise UserError(f"{where}: train has the label {labels[0]!r} only; give examples of at least two")
    valid = valid_rows(examples, partial(_with_known_label, labels=frozenset(labels)), skipped)
    check_splits(valid, where)  # once more without the rows that have unknown labels
    return valid, labels


def _with_known_label(example: LabelledText, labels: frozenset[str]) -> LabelledText:
    """The example. Raises InvalidRow for a label that is not among `labels`."""
    if example.label is not None and example.label not in labels:
        raise InvalidRow(
            f"{example.where}: {example.split} has the label {example.label!r}, which train does not have; "
            "add it there",
            "unknown label",
        )
    return example
