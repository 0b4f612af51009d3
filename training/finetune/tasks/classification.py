"""A labelled file -> [CLS] text [SEP] -> one label for each text, and the scores of the labels."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of, pad_rows
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import table_files
from cloze.pipeline.text.tokenizer import CLS, SEP
from cloze.training.finetune.baselines import majority
from cloze.training.finetune.metrics.classification import Label, accuracy, correct, macro_f1, matthews
from cloze.training.finetune.metrics.estimates import wilson
from cloze.training.finetune.tasks.task import SPLITS, EncodedTask, RowIndices, TaskConfig
from cloze.training.model.architectures import architecture_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.checkpoints.checkpoint import SavedConfig


class LabelledColumns(Config):
    """The names of the labelled file's columns."""

    text: str = "text"
    """Column with the text."""
    label: str = "label"
    """Column with the label: a word or a whole number."""
    split: str = "split"
    """Column with the split: train, dev or test."""


class ClassificationConfig(TaskConfig):
    """Text classification: a file of texts, each with one label."""

    kind: Literal["classification"] = "classification"
    """Kind of the task."""
    columns: LabelledColumns = LabelledColumns()
    """The names of the file's columns."""


@dataclass(frozen=True)
class LabelledText:
    """An example; `row` is its line number in the file, or its row number in a Parquet file, from 1."""

    row: int
    text: str
    label: str
    split: str


@dataclass(frozen=True)
class EncodedTexts:
    """The examples of one split: token ids with [CLS] and [SEP], and the index of each label [n]."""

    ids: Ragged
    targets: NDArray[np.int64]

    @property
    def lengths(self) -> Ints:
        return self.ids.lengths


@dataclass(frozen=True)
class Classification:
    """The task of predicting the label of each text."""

    config: ClassificationConfig
    examples: list[LabelledText]
    labels: list[str]  # sorted

    @classmethod
    def read(cls, config: ClassificationConfig, location: Location) -> Self:
        examples = read_examples(location, config.columns)
        return cls(config, examples, train_labels(examples, location))

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        """Each text as the token ids of [CLS] text [SEP], truncated to max_seq_length."""
        index = {label: i for i, label in enumerate(self.labels)}
        cls, sep = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
        room, truncated = self.config.max_seq_length - 2, 0
        splits = {}
        for split in SPLITS:
            examples = [example for example in self.examples if example.split == split]
            encoded = tokenizer.encode_batch_fast([example.text for example in examples], add_special_tokens=False)
            truncated += sum(len(encoding.ids) > room for encoding in encoded)
            rows = [[cls, *encoding.ids[:room], sep] for encoding in encoded]
            offsets = offsets_of(np.array([len(row) for row in rows]))
            ids = Ragged(np.fromiter(itertools.chain(*rows), np.int64, offsets[-1]), offsets)
            splits[split] = EncodedTexts(ids, np.array([index[example.label] for example in examples], np.int64))
        return EncodedTask(splits, truncated)

    def model(self, saved: "SavedConfig") -> nn.Module:
        classifier = architecture_of(saved.model).classifier
        return classifier(saved.model, saved.vocab_size, len(self.labels), seed=self.config.seed)

    def inputs(self, data: EncodedTexts, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask, each [batch, length of the longest row]."""
        ids = data.ids.take(rows)
        width = int(ids.lengths.max())
        input_ids = torch.from_numpy(pad_rows(*ids, width)).to(device)  # any token id pads: padding is masked
        attention_mask = torch.from_numpy(np.arange(width) < ids.lengths[:, None]).to(device)
        return input_ids, torch.zeros_like(input_ids), attention_mask

    def loss(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> Tensor:
        """The sum of the cross-entropies of logits [batch, labels]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return functional.cross_entropy(outputs, targets, reduction="sum")

    def answers(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> list[NDArray[np.float32]]:
        """The probability of each label [labels] for each example."""
        return list(outputs.softmax(-1).cpu().numpy())

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: EncodedTexts) -> dict[str, float]:
        """Accuracy, and the mean negative log likelihood of the true labels."""
        probabilities = np.stack(answers)  # [n, labels]
        target_probabilities = probabilities[np.arange(len(data.targets)), data.targets].astype(np.float64)
        return {
            "accuracy": float((probabilities.argmax(-1) == data.targets).mean()),
            "loss": float(-np.log(target_probabilities.clip(min=1e-12)).mean()),
        }

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The accuracy, then the lower loss."""
        return metrics["accuracy"], -metrics["loss"]

    def predictions(
        self, examples: Sequence[LabelledText], answers: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "row": example.row,
                "label": example.label,
                "predicted": self.labels[int(values.argmax())],
                "probabilities": {label: round(float(p), 6) for label, p in zip(self.labels, values, strict=True)},
            }
            for example, values in zip(examples, answers, strict=True)
        ]

    def scores(self, examples: Sequence[LabelledText], predicted: Sequence[str]) -> dict[str, Any]:
        """Accuracy with its 95 % confidence interval, macro-F1 and Matthews correlation."""
        truth = [example.label for example in examples]
        low, high = wilson(correct(truth, predicted), len(truth))
        return {
            "accuracy": accuracy(truth, predicted).value,
            "interval": [low, high],
            "macro_f1": macro_f1(truth, predicted).value,
            "matthews": matthews(truth, predicted).value,
        }

    def baseline(self, examples: Sequence[LabelledText]) -> tuple[str, list[Label]]:
        train = [example.label for example in self.examples if example.split == "train"]
        return "majority", majority(train, len(examples))

    def sample(self, example: LabelledText) -> dict[str, Any]:
        return {"text": example.text, "label": example.label}

    def facts(self) -> dict[str, Any]:
        return {"labels": label_counts(self.examples)}

    def model_files(self) -> dict[str, bytes]:
        return {"labels.json": json.dumps(self.labels, ensure_ascii=False).encode()}


def read_examples(location: Location, columns: LabelledColumns) -> list[LabelledText]:
    """The examples of a labelled file, in its order.

    Raises UserError when the format is unknown, the file is damaged, a column is missing, a value is empty or a split
    has another name.
    """
    names = (columns.text, columns.label, columns.split)
    examples = []
    # Tab-separated labelled files, such as GLUE's, contain single quotes as characters.
    for row in table_files.read_rows(location, names, tsv_quotes=False):
        for column in names:
            if row.values[column] is None or not str(row.values[column]).strip():
                raise UserError(f"{row.where}: {column} is empty; fill it in or delete the row")
        text, label, split = (str(row.values[column]) for column in names)
        if split not in SPLITS:
            raise UserError(f"{row.where}: {columns.split} is {split!r}; write train, dev or test")
        examples.append(LabelledText(row.number, text, label, split))
    return examples


def label_counts(examples: Sequence[LabelledText]) -> dict[str, dict[str, int]]:
    """Split -> label -> number of examples, labels sorted."""
    return {
        split: dict(sorted(Counter(example.label for example in examples if example.split == split).items()))
        for split in SPLITS
    }


def train_labels(examples: Sequence[LabelledText], location: Location) -> list[str]:
    """The labels of train, sorted. Raises UserError when the examples cannot be learned from or scored."""
    counts = label_counts(examples)
    for split in SPLITS:
        if not counts[split]:
            raise UserError(f"{location}: has no row of the split {split}; mark some rows {split}")
    labels = list(counts["train"])
    if len(labels) < 2:
        raise UserError(f"{location}: train has the label {labels[0]!r} only; give examples of at least two")
    for split in SPLITS[1:]:
        if unseen := [label for label in counts[split] if label not in counts["train"]]:
            raise UserError(f"{location}: {split} has the label {unseen[0]!r}, which train does not have; add it there")
    return labels
