"""a labelled file -> [CLS] text [SEP] -> one label for each text, and what it is worth."""

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
from cloze.pipeline.text import tables
from cloze.pipeline.text.tokenizer import CLS, SEP
from cloze.training.finetune import scores as measures
from cloze.training.finetune.tasks.task import SPLITS, Prepared, Rows, TaskConfig
from cloze.training.model.architectures import architecture_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.checkpoints.checkpoint import SavedConfig


class Columns(Config):
    """What the columns are called in the user's file."""

    text: str = "text"
    label: str = "label"
    split: str = "split"


class ClassificationConfig(TaskConfig):
    """A file of texts, each with one label."""

    kind: Literal["classification"] = "classification"
    columns: Columns = Columns()


@dataclass(frozen=True)
class Example:
    """A labelled text; `row` is the file's line, or the row of a Parquet file, from 1."""

    row: int
    text: str
    label: str
    split: str


@dataclass(frozen=True)
class Encoded:
    """The examples of one split: pieces with [CLS] and [SEP], and the index of each label."""

    ids: Ragged
    targets: NDArray[np.int64]

    @property
    def lengths(self) -> Ints:
        return self.ids.lengths


@dataclass(frozen=True)
class Classification:
    """A labelled file, of which a model is to learn the label of each text."""

    config: ClassificationConfig
    examples: list[Example]
    labels: list[str]

    @classmethod
    def read(cls, config: ClassificationConfig, location: Location) -> Self:
        examples = read(location, config.columns)
        return cls(config, examples, check(examples, location))

    def prepare(self, tokenizer: "Tokenizer") -> Prepared:
        return prepare(self.examples, self.labels, tokenizer, self.config.max_seq_length)

    def model(self, saved: "SavedConfig") -> nn.Module:
        classifier = architecture_of(saved.model).classifier
        return classifier(saved.model, saved.vocab_size, len(self.labels), seed=self.config.seed)

    def inputs(self, data: Encoded, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return batch(data, rows, device)

    def loss(self, outputs: Tensor, data: Encoded, rows: Rows) -> Tensor:
        """Of logits [b, labels]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return functional.cross_entropy(outputs, targets, reduction="sum")

    def answers(self, outputs: Tensor, data: Encoded, rows: Rows) -> list[NDArray[np.float32]]:
        """The probability of each label [labels] for each example."""
        return list(outputs.softmax(-1).cpu().numpy())

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: Encoded) -> dict[str, float]:
        accuracy, loss = accuracy_and_loss(np.stack(answers), data.targets)
        return {"accuracy": accuracy, "loss": loss}

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The accuracy; of equal ones the one of lower loss."""
        return metrics["accuracy"], -metrics["loss"]

    def predictions(self, examples: Sequence[Example], answers: Sequence[NDArray[np.float32]]) -> list[dict[str, Any]]:
        return predictions(examples, self.labels, np.stack(answers))

    def scores(self, examples: Sequence[Example], predicted: Sequence[str]) -> dict[str, Any]:
        return scores([example.label for example in examples], predicted)

    def baseline(self, examples: Sequence[Example]) -> tuple[str, list[measures.Label]]:
        train = [example.label for example in self.examples if example.split == "train"]
        return "majority", measures.majority(train, [example.label for example in examples])

    def sample(self, example: Example) -> dict[str, Any]:
        return {"text": example.text, "label": example.label}

    def facts(self) -> dict[str, Any]:
        return {"labels": label_counts(self.examples)}

    def model_files(self) -> dict[str, bytes]:
        return {"labels.json": json.dumps(self.labels, ensure_ascii=False).encode()}


def read(location: Location, columns: Columns) -> list[Example]:
    """The examples of a labelled file, in its order.

    Raises UserError: not one of the formats, damaged, a column missing, a value empty, a split of another name.
    """
    wanted = (columns.text, columns.label, columns.split)
    examples = []
    # Tab-separated labelled files, such as GLUE's, hold single quotes as characters.
    for row in tables.read_rows(location, wanted, tsv_quotes=False):
        for column in wanted:
            if row.values[column] is None or not str(row.values[column]).strip():
                raise UserError(f"{row.where}: {column} is empty; fill it in or delete the row")
        text, label, split = (str(row.values[column]) for column in wanted)
        if split not in SPLITS:
            raise UserError(f"{row.where}: {columns.split} is {split!r}; write train, dev or test")
        examples.append(Example(row.number, text, label, split))
    return examples


def label_counts(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """How often each label stands in each split: split -> label -> count, labels sorted."""
    return {
        split: dict(sorted(Counter(example.label for example in examples if example.split == split).items()))
        for split in SPLITS
    }


def check(examples: Sequence[Example], location: Location) -> list[str]:
    """The labels of train, sorted. Raises UserError where the examples cannot be learned from or scored."""
    counts = label_counts(examples)
    for split in SPLITS:
        if not counts[split]:
            raise UserError(f"{location}: has no row of the split {split}; mark some rows {split}")
    labels = list(counts["train"])
    if len(labels) < 2:
        raise UserError(f"{location}: train has the label {labels[0]!r} only; give examples of at least two")
    for split in SPLITS[1:]:
        if unseen := [label for label in counts[split] if label not in counts["train"]]:
            raise UserError(f"{location}: {split} has the label {unseen[0]!r}, which train has not; add it there")
    return labels


def prepare(examples: Sequence[Example], labels: list[str], tokenizer: "Tokenizer", max_seq_length: int) -> Prepared:
    """Examples -> pieces [CLS] text [SEP], cut to max_seq_length, and the indices of their labels, split by split."""
    index = {label: i for i, label in enumerate(labels)}
    cls, sep = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    room, truncated = max_seq_length - 2, 0
    splits = {}
    for split in SPLITS:
        chosen = [example for example in examples if example.split == split]
        encoded = tokenizer.encode_batch_fast([example.text for example in chosen], add_special_tokens=False)
        truncated += sum(len(pieces.ids) > room for pieces in encoded)
        rows = [[cls, *pieces.ids[:room], sep] for pieces in encoded]
        offsets = offsets_of(np.array([len(row) for row in rows]))
        ids = Ragged(np.fromiter(itertools.chain(*rows), np.int64, offsets[-1]), offsets)
        splits[split] = Encoded(ids, np.array([index[example.label] for example in chosen], np.int64))
    return Prepared(splits, truncated)


def batch(data: Encoded, rows: Rows, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of a split -> input_ids, token_type_ids, attention_mask, each [b, longest of them]."""
    chosen = data.ids.take(rows)
    width = int(chosen.lengths.max())
    input_ids = torch.from_numpy(pad_rows(*chosen, width)).to(device)  # padding is masked: its piece does not matter
    attention_mask = torch.from_numpy(np.arange(width) < chosen.lengths[:, None]).to(device)
    return input_ids, torch.zeros_like(input_ids), attention_mask


def accuracy_and_loss(probabilities: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[float, float]:
    """Of the probabilities of each label [n, labels] and the indices of the true labels [n]."""
    right = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return float((probabilities.argmax(-1) == targets).mean()), float(-np.log(right.clip(min=1e-12)).mean())


def predictions(
    examples: Sequence[Example], labels: Sequence[str], probabilities: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """What the model says of each example, in their order: the rows of predictions.jsonl."""
    return [
        {
            "row": example.row,
            "label": example.label,
            "predicted": labels[int(values.argmax())],
            "probabilities": {label: round(float(value), 6) for label, value in zip(labels, values, strict=True)},
        }
        for example, values in zip(examples, probabilities, strict=True)
    ]


def scores(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Accuracy with its 95 % interval, macro-F1 and Matthews' correlation."""
    low, high = measures.wilson(measures.correct(truth, predicted), len(truth))
    return {
        "accuracy": measures.accuracy(truth, predicted),
        "interval": [low, high],
        "macro_f1": measures.macro_f1(truth, predicted),
        "matthews": measures.matthews(truth, predicted),
    }
