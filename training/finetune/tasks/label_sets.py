"""Files of texts, or pairs of texts, with any number of labels each -> examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from cloze.pipeline.core.config import Config, Given
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import (
    LabelledRow,
    check_splits,
    may_be_unlabelled,
    read_rows,
    with_splits,
)
from cloze.training.finetune.tasks.labelled_texts import LabelledText
from cloze.training.finetune.tasks.task_config import Column

_YES = ("1", "1.0", "True", "true")
_NO = ("0", "0.0", "False", "false")
_UNLABELLED = ("", "None", "-1")


class LabelSetColumns(Config):
    """The columns of the labelled file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    text: Column = "text"
    """Column with the text."""
    text_b: Column | None = None
    """Column with the second text of a pair."""
    labels: Column | tuple[Column, ...] = "labels"
    """Column with the labels: a list in JSON lines and Parquet, or one text; empty if there are none. Or a list of
    columns with 0 or 1, one for each label, which has the column's name."""
    separator: str = Field(default=",", min_length=1)
    """What separates labels within a text; white space around them is removed."""
    split: Annotated[Column, Given] = "split"
    """Column with the split: train, dev or test."""


def read_label_sets(
    columns: LabelSetColumns, files: Mapping[str, Location], skipped: Counter[str] | None
) -> list[LabelledText]:
    """The examples of the labelled files, in their order; the split is empty where it is still to be drawn. A label is
    a sorted tuple of labels, or None for a row of a split without any.

    Invalid rows are counted in `skipped` by reason; without it, and for any other fault, raises UserError.
    """
    rows = read_rows(
        files,
        [columns.text] if columns.text_b is None else [columns.text, columns.text_b],
        label_columns=columns.labels if isinstance(columns.labels, tuple) else [columns.labels],
        split_column=columns.split,
        splits_are_named="split" in columns.model_fields_set,
        skipped=skipped,
    )
    labelled = {row.split for row in rows if not may_be_unlabelled(row.split) or _has_labels(row, columns)}
    return valid_rows(rows, partial(_example, columns=columns, labelled=labelled), skipped)


def train_label_names(
    examples: Sequence[LabelledText], seed: int, where: object, skipped: Counter[str] | None
) -> tuple[list[LabelledText], list[str]]:
    """The examples, each in a split, and the labels of train, sorted. A label that train does not have is invalid.

    Raises UserError when the examples cannot be learned from or scored.
    """
    counts = Counter(name for example in examples for name in example.label or ())

    def rarest(example: LabelledText) -> str:
        return min(example.label or ("",), key=lambda name: (counts[name], name))

    divided = with_splits(examples, seed, rarest)
    check_splits(divided, where)
    labels = sorted({name for example in divided if example.split == "train" for name in example.label})
    if not labels:
        raise UserError(f"{where}: no row of train has a label; check columns.labels")
    valid = valid_rows(divided, partial(_with_known_labels, labels=frozenset(labels)), skipped)
    check_splits(valid, where)  # once more without the rows that have unknown labels
    return valid, labels


def _has_labels(row: LabelledRow, columns: LabelSetColumns) -> bool:
    """Whether a row that may lack labels has some; no text at all can also mean that it has an empty set of them."""
    listed = columns.labels if isinstance(columns.labels, tuple) else (columns.labels,)
    return any(str(row.values.get(column, "")).strip() not in _UNLABELLED for column in listed)


def _example(row: LabelledRow, columns: LabelSetColumns, labelled: set[str]) -> LabelledText:
    """The example of a row, with a label if its split is among the `labelled`. Raises InvalidRow."""
    label = _label_set(row, columns) if row.split in labelled else None
    text_b = None if columns.text_b is None else row.text(columns.text_b)
    return LabelledText(row.number, row.split, label, row.text(columns.text), text_b, where=row.where)


def _label_set(row: LabelledRow, columns: LabelSetColumns) -> tuple[str, ...]:
    if isinstance(columns.labels, tuple):
        return tuple(sorted(str(column) for column in columns.labels if _is_set(row, column)))
    value = row.values.get(columns.labels)
    names: Any = value
    if isinstance(value, str):
        names = [name.strip() for name in value.split(columns.separator)] if value.strip() else []
    is_list = isinstance(names, list) and not any(isinstance(name, list | dict | float | None) for name in names)
    texts = [str(name).strip() for name in names] if is_list else [""]
    if not all(texts):
        raise InvalidRow(
            f"{row.where}: {columns.labels} is {value!r}; write a list of labels, or labels separated by "
            f"{columns.separator!r}",
            "invalid labels",
        )
    return tuple(sorted(set(texts)))


def _is_set(row: LabelledRow, column: Column) -> bool:
    text = str(row.values.get(column))
    if text not in (*_YES, *_NO):
        raise InvalidRow(f"{row.where}: {column} is {text!r}; write 1 or 0", "invalid labels")
    return text in _YES


def _with_known_labels(example: LabelledText, labels: frozenset[str]) -> LabelledText:
    """The example. Raises InvalidRow for a label that is not among `labels`."""
    if unknown := [name for name in example.label or () if name not in labels]:
        raise InvalidRow(
            f"{example.where}: the label {unknown[0]!r} of {example.split} is not in train; correct it or add examples "
            "there",
            "unknown label",
        )
    return example
