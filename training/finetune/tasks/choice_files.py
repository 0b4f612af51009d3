"""Files of contexts with several choices each -> examples, in a user's columns or those of SWAG."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from cloze.pipeline.core.config import Config, Given
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.glue import NO_LABEL
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import LabelledExample, LabelledRow, may_be_unlabelled, read_rows
from cloze.training.finetune.tasks.task_config import Column


class ChoiceColumns(Config):
    """The columns of the labelled file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    context: Column = "context"
    """Column with the text before the choices."""
    choice_start: Column | None = None
    """Column with the text that every choice begins with: the choices continue it."""
    choices: Column | tuple[Column, ...] = "choices"
    """Column with the list of choices (JSON lines and Parquet), or a column for each."""
    label: Column = "label"
    """Column with the number of the right choice, from 0."""
    split: Annotated[Column, Given] = "split"
    """Column with the split: train, dev or test."""


#: Name of a dataset -> the columns of its published files.
DATASETS = {
    "SWAG": ChoiceColumns(
        context="sent1", choice_start="sent2", choices=("ending0", "ending1", "ending2", "ending3"), label="label"
    )
}


@dataclass(frozen=True)
class ChoiceExample(LabelledExample):
    """A context and its choices, with the text that each begins with; `label` is the number of the right one."""

    context: str
    choices: tuple[str, ...]


def read_choices(
    columns: ChoiceColumns, files: Mapping[str, Location], skipped: Counter[str] | None
) -> list[ChoiceExample]:
    """The examples of the labelled files, in their order; the split is empty where it is still to be drawn.

    Invalid rows are counted in `skipped` by reason; without it, and for any other fault, raises UserError.
    """
    listed = columns.choices if isinstance(columns.choices, tuple) else (columns.choices,)
    texts = [columns.context, *([] if columns.choice_start is None else [columns.choice_start]), *listed]
    rows = read_rows(
        files,
        texts,
        label_columns=[columns.label],
        split_column=columns.split,
        splits_are_named="split" in columns.model_fields_set,
        skipped=skipped,
    )
    counts = Counter(len(_choices(row, columns)) for row in rows)
    expected = counts.most_common(1)[0][0] if counts else 0
    return valid_rows(rows, partial(_example, columns=columns, expected=expected), skipped)


def _example(row: LabelledRow, columns: ChoiceColumns, expected: int) -> ChoiceExample:
    """The example of a row. Raises InvalidRow."""
    choices = _choices(row, columns)
    if len(choices) != expected or expected < 2:
        raise InvalidRow(
            f"{row.where}: has {len(choices)} choices, most rows have {expected}; give each row the same number, at "
            "least 2",
            "other number of choices",
        )
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise InvalidRow(f"{row.where}: choice {number} is {choice!r}; write its text", "empty text")
    start = "" if columns.choice_start is None else f"{row.values[columns.choice_start] or ''} ".lstrip()
    texts = tuple(f"{start}{choice}" for choice in choices)
    label = _label(row, columns.label, expected)
    return ChoiceExample(row.number, row.split, label, row.text(columns.context), texts, where=row.where)


def _choices(row: LabelledRow, columns: ChoiceColumns) -> list[Any]:
    """The values of the row's choices; none if its column has no list."""
    if isinstance(columns.choices, tuple):
        return [row.values[column] for column in columns.choices]
    value = row.values[columns.choices]
    return value if isinstance(value, list) else []


def _label(row: LabelledRow, column: Column, choices: int) -> int | None:
    """The number of the right choice, or None for a row of test or of an extra file without one."""
    text = str(row.values.get(column, "")).strip()
    if may_be_unlabelled(row.split) and text in ("", "None", NO_LABEL):
        return None
    if not text.isdecimal() or int(text) >= choices:
        raise InvalidRow(
            f"{row.where}: {column} is {text!r}; write the number of the right choice, from 0 to {choices - 1}",
            "invalid label",
        )
    return int(text)
