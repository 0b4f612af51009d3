"""A labelled file -> [CLS] text [SEP], or [CLS] text [SEP] text_b [SEP] -> any number of labels for each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.storage import Location
from cloze.training.finetune.baselines import bag_of_words_multilabel
from cloze.training.finetune.heads import SequenceClassifier
from cloze.training.finetune.metrics.estimates import Estimate
from cloze.training.finetune.metrics.multilabel import exact_match, macro_f1, micro_f1
from cloze.training.finetune.tasks.classification import label_probabilities, labels_config
from cloze.training.finetune.tasks.label_sets import LabelSetColumns, read_label_sets, train_label_names
from cloze.training.finetune.tasks.labelled_files import scored_split
from cloze.training.finetune.tasks.labelled_texts import (
    EncodedTexts,
    LabelledText,
    encode_examples,
    text_columns,
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

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


class MultilabelConfig(TrainedTaskConfig):
    """Several labels at once: a file of texts, or of pairs of texts, each with any number of labels."""

    kind: Literal["multilabel"] = "multilabel"
    """Kind of the task."""
    columns: LabelSetColumns = LabelSetColumns()
    """The columns of the file."""
    threshold: Annotated[float, Training, Field(gt=0, lt=1)] = 0.5
    """A label is predicted if its probability is more than this."""
    metric: Annotated[Literal["micro_f1", "macro_f1", "exact_match"], Training] = "micro_f1"
    """The score by which epochs and trials are compared."""
    skip_invalid: bool = False
    """Leave out rows with an empty text, an invalid list of labels or a label that train does not have, and count them,
    in place of an error."""


@dataclass(frozen=True)
class Multilabel:
    """The task of predicting the labels of each text or pair of texts, each label by itself."""

    config: MultilabelConfig
    examples: list[LabelledText]  # labels are sorted tuples of labels
    labels: list[str]  # sorted
    skipped: Mapping[str, int]  # invalid rows that were left out, by reason
    split_kind: ClassVar[type] = EncodedTexts

    @classmethod
    def read(cls, config: MultilabelConfig, files: Mapping[str, Location]) -> Self:
        skipped = Counter[str]() if config.skip_invalid else None
        found = read_label_sets(config.columns, files, skipped)
        examples, labels = train_label_names(found, config.seed, next(iter(files.values())), skipped)
        return cls(config, examples, labels, dict(skipped or {}))

    @classmethod
    def for_inputs(cls, config: MultilabelConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        return cls(config, LabelledText.of_inputs(inputs), list(head["id2label"].values()), {})

    @classmethod
    def input_names(cls, config: MultilabelConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("text",) if config.columns.text_b is None else ("text", "text_b")

    @classmethod
    def input_columns(cls, config: MultilabelConfig, head: Mapping[str, Any]) -> InputColumns:
        return text_columns(config.columns.text, config.columns.text_b)

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.list_(pa.string()), "probabilities": label_probabilities(head)}

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        return encode_examples(self.examples, tokenizer, self.config.max_seq_length, self._targets)

    def _targets(self, examples: Sequence[LabelledText]) -> NDArray[np.float32]:
        """1 for each label that an example has [n, labels], NaN without any."""
        rows = [[np.nan if one.label is None else float(name in one.label) for name in self.labels] for one in examples]
        return np.array(rows, np.float32).reshape(-1, len(self.labels))

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return SequenceClassifier(encoder, config, len(self.labels), self.config.seed)

    def inputs(self, data: EncodedTexts, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return data.texts.batch(rows, device)

    def loss(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> Tensor:
        """The sum over rows of the mean binary cross-entropy of logits [batch, labels]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1).sum()

    def loss_terms(self, data: EncodedTexts, rows: RowIndices) -> int:
        return len(rows)

    def answers(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> list[NDArray[np.float32]]:
        """The probability of each label [labels] for each example."""
        return list(outputs.sigmoid().cpu().numpy())

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: EncodedTexts) -> dict[str, float]:
        """Micro-F1, macro-F1, exact match, and the mean binary cross-entropy."""
        probabilities = np.stack(answers).astype(np.float64).clip(1e-12, 1 - 1e-12)  # [n, labels]
        likelihoods = np.where(data.targets > 0, probabilities, 1 - probabilities)
        label_sets = [self._names(row > 0) for row in data.targets]
        estimates = self._estimates(label_sets, list(map(self._predicted, answers)))
        values = {name: found.value for name, found in estimates.items()}
        return values | {"loss": float(-np.log(likelihoods).mean())}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The task's metric, then the lower loss."""
        return metrics[self.config.metric], -metrics["loss"]

    def _names(self, chosen: NDArray[np.bool_]) -> list[str]:
        return [self.labels[number] for number in np.flatnonzero(chosen)]

    def _predicted(self, probabilities: NDArray[np.float32]) -> list[str]:
        return self._names(probabilities > self.config.threshold)

    def _estimates(self, label: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Estimate]:
        scores = {"micro_f1": micro_f1, "macro_f1": macro_f1, "exact_match": exact_match}
        return {name: score(label, predicted) for name, score in scores.items()}

    def predictions(
        self, examples: Sequence[LabelledText], answers: Sequence[NDArray[np.float32]], data: EncodedTexts
    ) -> Predictions:
        rows = [
            {
                "row": example.row,
                "label": example.label if example.label is None else list(example.label),
                "predicted": self._predicted(values),
                "probabilities": {label: round(float(p), 6) for label, p in zip(self.labels, values, strict=True)},
            }
            for example, values in zip(examples, answers, strict=True)
        ]
        return Predictions(rows)

    def scores(self, examples: Sequence[LabelledText], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
        return score_facts(self._estimates([example.label for example in examples], predicted), self.config.metric)

    def baselines(self, examples: Sequence[LabelledText]) -> dict[str, list[Any]]:
        """The most frequent set of labels in train, of equally frequent ones the first by name; and a bag of words."""
        train = [example for example in self.examples if example.split == "train"]
        counts = Counter(example.label for example in train)
        most_frequent = min(counts, key=lambda label: (-counts[label], label))
        labels, texts = [example.label for example in train], LabelledText.columns(train)
        return {
            "majority": [list(most_frequent) for _ in examples],
            "bag_of_words": bag_of_words_multilabel(texts, labels, LabelledText.columns(examples)),
        }

    def texts(self, example: LabelledText) -> list[tuple[str, str]]:
        return example.named_texts()

    def sample(self, example: LabelledText, predicted: Any) -> dict[str, Any]:
        return example.sample() | {"label": example.label if example.label is None else list(example.label)}

    def facts(self) -> dict[str, Any]:
        counts = {
            split: Counter(name for one in self.examples if one.split == split for name in one.label or ())
            for split in splits_of(self.examples)
        }
        labels = {split: dict(sorted(found.items())) for split, found in counts.items()}
        return {"labels": labels, "skipped": dict(self.skipped)}

    def head(self) -> TransformersHead:
        settings = labels_config(self.labels) | {"problem_type": "multi_label_classification"}
        return TransformersHead("ForSequenceClassification", settings)
