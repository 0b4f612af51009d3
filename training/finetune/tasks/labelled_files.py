"""A task's files -> rows that each belong to a split: train, dev or test.

A single file has a column that names the split, or is divided here; three files are one split each, and so is every
extra file. The rows of test and of an extra file may have no label: their predictions are written. Without labels in
test, scores are those of dev.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import table_files
from cloze.training.finetune.tasks.invalid_rows import InvalidRow
from cloze.training.finetune.tasks.task import splits_of
from cloze.training.finetune.tasks.task_config import SPLITS, Column

Example = TypeVar("Example", bound="LabelledExample")

_DIVIDED = {"dev": 0.1, "test": 0.1}  # fractions of a file without splits


@dataclass(frozen=True)
class LabelledExample:
    """What the examples of all tasks have. `row` is the line or row number in its file, from 1."""

    row: int
    split: str
    label: Any  # None without a label
    where: str = field(default="", kw_only=True)  # the file and the row, for error messages


@dataclass(frozen=True)
class LabelledRow:
    """A row of a task's file. `split` is empty if the file is still to be divided."""

    number: int
    where: str  # the file and the row, for error messages
    values: Mapping[str | int, Any]
    split: str

    def text(self, column: Column) -> str:
        """The value of a column as text. Raises InvalidRow when it is empty."""
        value = self.values.get(column)
        if value is None or not str(value).strip():
            raise InvalidRow(f"{self.where}: {column} is empty; fill it in or delete the row", "empty text")
        return str(value)


def may_be_unlabelled(split: str) -> bool:
    """Whether the rows of a split may lack labels: those of test and of extra files."""
    return split not in ("", "data", "train", "dev")


def read_rows(
    files: Mapping[str, Location],
    columns: Sequence[Column],
    *,
    label_columns: Sequence[Column] = (),
    split_column: Column | None = None,
    splits_are_named: bool = False,
    skipped: Counter[str] | None = None,
) -> list[LabelledRow]:
    """The rows of a task's files. `files`: "data" -> the single file, or a split -> its file.

    `label_columns` may be missing in the file of test and in extra files. A single file is divided if it lacks
    `split_column`, unless `splits_are_named`: then the column must exist. Rows that are no JSON, have half a surrogate
    pair or another number of fields than the header are counted in `skipped`; without it they are errors.

    Raises UserError for a damaged or empty file, a missing column or an unknown split.
    """
    rows = list[LabelledRow]()
    on_invalid = None if skipped is None else lambda error: skipped.update(["unreadable row"])
    for name, location in files.items():
        required, optional = [*columns, *label_columns], list[Column]()
        if may_be_unlabelled(name):
            required, optional = list(columns), list(label_columns)
        if name == "data" and split_column is not None:
            (required if splits_are_named else optional).append(split_column)
        count, unreadable = len(rows), skipped["unreadable row"] if skipped else 0
        # Tab-separated labelled files, such as GLUE's, contain single quotes as characters.
        for row in table_files.read_rows(
            location, required, optional=optional, tsv_quotes=False, whole_characters=True, on_invalid=on_invalid
        ):
            found = LabelledRow(row.number, row.where, row.values, "" if name == "data" else name)
            if name == "data" and split_column is not None and split_column in row.values:
                found = replace(found, split=_known_split(found, split_column))
            rows.append(found)
        if len(rows) == count:  # otherwise a dev file without rows would be replaced by a tenth of train
            unreadable = (skipped["unreadable row"] if skipped else 0) - unreadable
            others = f" besides {unreadable:,} that cannot be read and are skipped" if unreadable else ""
            raise UserError(f"{location}: has no rows{others}; add some, or leave the file out")
    divided = {row.split == "" for row in rows}
    if len(divided) == 2 and "data" in files:
        first = next(row for row in rows if not row.split)
        raise UserError(f"{first.where}: has no {split_column}, which other rows have; add it")
    return rows


def _known_split(row: LabelledRow, column: Column) -> str:
    split = row.text(column)
    if split not in SPLITS:
        raise UserError(f"{row.where}: {column} is {split!r}; write train, dev or test")
    return split


def with_splits(examples: Sequence[Example], seed: int, strata: Callable[[Example], object]) -> list[Example]:
    """The examples, those without a split divided: a tenth of each stratum for dev, if there is none, and for test.

    The division depends on the seed and the row numbers only. Where train has a file of its own and dev has none, dev
    is a tenth of train, and test stays as it is.
    """
    existing = {example.split for example in examples}
    if "" in existing:
        fractions, undivided = _DIVIDED, ""
    elif "dev" not in existing and "train" in existing:
        fractions, undivided = {"dev": _DIVIDED["dev"]}, "train"
    else:
        return list(examples)
    numbers = [number for number, example in enumerate(examples) if example.split == undivided]
    groups = dict[object, list[int]]()
    for number in numbers:
        groups.setdefault(strata(examples[number]), []).append(number)
    splits = dict.fromkeys(numbers, "train")
    for members in groups.values():
        keys = hash64(seed, np.array([examples[number].row for number in members]))
        order = [members[position] for position in np.argsort(keys, kind="stable")]
        start = 0
        for split, fraction in fractions.items():
            count = round(fraction * len(order))
            splits |= dict.fromkeys(order[start : start + count], split)
            start += count
    return [
        replace(example, split=splits[number]) if number in splits else example
        for number, example in enumerate(examples)
    ]


def check_splits(examples: Iterable[LabelledExample], where: object) -> None:
    """Raises UserError when train or dev is empty or has rows without a label, or another split is labelled in part."""
    found = list(examples)
    for split in SPLITS[:2]:
        if not any(example.split == split for example in found):
            raise UserError(f"{where}: has no row of the split {split}; mark some rows {split}")
        if unlabelled := [example for example in found if example.split == split and example.label is None]:
            raise UserError(f"{unlabelled[0].where}: has no label; add it or delete the row")
    for split in splits_of(found)[2:]:
        of_split = [example for example in found if example.split == split]
        unlabelled = [example for example in of_split if example.label is None]
        if 0 < len(unlabelled) < len(of_split):
            raise UserError(
                f"{unlabelled[0].where}: has no label, other rows of {split} have one; add it or delete the row"
            )


def scored_split(examples: Iterable[LabelledExample]) -> str:
    """The split whose scores are the task's: test if it has labels, otherwise dev."""
    is_labelled = any(example.split == "test" and example.label is not None for example in examples)
    return "test" if is_labelled else "dev"
