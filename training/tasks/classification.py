"""a labelled file -> [CLS] text [SEP] -> one label for each text, and what it is worth."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from pipeline import tables
from pipeline.config import Compute, Config, UserError
from pipeline.ragged import offsets_of, padded
from pipeline.storage import Location
from pipeline.tokenizer import CLS, SEP
from training import metrics
from training.data import Ints, Ragged

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

SPLITS = ("train", "dev", "test")


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_Tried = BeforeValidator(_several)  # one value, or a list whose best is chosen on dev
_Positive = Annotated[int, Field(gt=0)]
_PositiveFloat = Annotated[float, Field(gt=0)]


class Columns(Config):
    """What the columns are called in the user's file."""

    text: str = "text"
    label: str = "label"
    split: str = "split"


class Trial(NamedTuple):
    """One way to train, out of those to try on dev."""

    learning_rate: float
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.learning_rate:g}-batch-{self.batch_size}-epochs-{self.epochs}"


class ClassificationTask(Config):
    """A labelled file and how to train on it. Of several rates, batch sizes or epochs each combination is tried.

    The paper's own search: learning_rate [5e-5, 3e-5, 2e-5], batch_size [16, 32], epochs [2, 3, 4].
    """

    kind: Literal["classification"] = "classification"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    file: Annotated[str, Compute]  # its bytes are in the fingerprint, not its path
    columns: Columns = Columns()
    max_seq_length: int = Field(default=128, ge=3)
    learning_rate: Annotated[tuple[_PositiveFloat, ...], _Tried, Field(min_length=1)]
    batch_size: Annotated[tuple[_Positive, ...], _Tried, Field(min_length=1)] = (32,)
    epochs: Annotated[tuple[_Positive, ...], _Tried, Field(min_length=1)] = (3,)
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @property
    def trials(self) -> list[Trial]:
        return [Trial(*values) for values in itertools.product(self.learning_rate, self.batch_size, self.epochs)]


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


@dataclass(frozen=True)
class Prepared:
    """A task's data, ready for workers."""

    labels: list[str]
    splits: dict[str, Encoded]
    truncated: int


def read(location: Location, columns: Columns) -> list[Example]:
    """The examples of a labelled file, in its order.

    Raises UserError: not one of the formats, damaged, a column missing, a value empty, a split of another name.
    """
    wanted = (columns.text, columns.label, columns.split)
    examples = []
    # Tab-separated labelled files, such as GLUE's, hold single quotes as characters.
    for row in tables.rows(location, wanted, tsv_quotes=False):
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
    return Prepared(labels, splits, truncated)


def batches(lengths: Ints, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The rows of each batch of an epoch: every row once, by lot, with those of like length together.

    Within every 16 batches' rows the batches are cut along the length, then the batches are shuffled: a quarter of the
    work would be padding otherwise.
    """
    random = np.random.default_rng([seed, epoch])
    order, window = random.permutation(len(lengths)), 16 * batch_size
    found = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        found += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [found[i] for i in random.permutation(len(found))]


def batch(data: Encoded, rows: NDArray[np.int64], device: "torch.device") -> "tuple[Tensor, Tensor, Tensor]":
    """Some rows of a split -> input_ids, token_type_ids, attention_mask, each [b, longest of them]."""
    import torch

    chosen = data.ids.take(rows)
    width = int(chosen.lengths.max())
    input_ids = torch.from_numpy(padded(*chosen, width)).to(device)  # padding is masked: its piece does not matter
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
    low, high = metrics.wilson(metrics.correct(truth, predicted), len(truth))
    return {
        "accuracy": metrics.accuracy(truth, predicted),
        "interval": [low, high],
        "macro_f1": metrics.macro_f1(truth, predicted),
        "matthews": metrics.matthews(truth, predicted),
    }
