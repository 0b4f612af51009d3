"""Files of texts, or pairs of texts, with a label each -> examples, in a user's columns or GLUE's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.glue import NO_LABEL, Layout
from cloze.training.finetune.tasks.labelled_files import LabelledExample, LabelledRow, read_rows
from cloze.training.finetune.tasks.task import Column

ReadLabel = Callable[[str, str], Any]  # (file and row for error messages, the text of the label) -> the label


class LabelledColumns(Config):
    """The columns of the labelled file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    text: Column = "text"
    """Column with the text."""
    text_b: Column | None = None
    """Column with the second text of a pair."""
    label: Column = "label"
    """Column with the label: a word or a number."""
    split: Column = "split"
    """Column with the split: train, dev or test."""


@dataclass(frozen=True)
class LabelledText(LabelledExample):
    """A text, or a pair of texts."""

    text: str
    text_b: str | None = None

    @classmethod
    def of_inputs(cls, inputs: Sequence[Mapping[str, Any]]) -> "list[LabelledText]":
        """Unlabelled examples of the split test."""
        return [cls(row, "test", None, one["text"], one.get("text_b")) for row, one in enumerate(inputs, start=1)]

    @staticmethod
    def columns(examples: "Sequence[LabelledText]") -> tuple[list[str], list[str] | None]:
        """The first texts of the examples, and the second ones if these are pairs."""
        first = [example.text for example in examples]
        pairs = any(example.text_b is not None for example in examples)
        return first, [example.text_b or "" for example in examples] if pairs else None

    def sample(self) -> dict[str, Any]:
        """The example as the report shows it."""
        return {"text": self.text if self.text_b is None else f"{self.text} / {self.text_b}", "label": self.label}


def text_names(columns: LabelledColumns, layout: Layout | None) -> tuple[str, ...]:
    """The names of an input's texts."""
    second = layout.text_b if layout else columns.text_b
    return ("text",) if second is None else ("text", "text_b")


def read_texts(
    columns: LabelledColumns, layout: Layout | None, files: Mapping[str, Location], read_label: ReadLabel
) -> list[LabelledText]:
    """The examples of the labelled files, in their order; the split is empty where it is still to be drawn.

    Raises UserError when a format is unknown, a file is damaged, a column is missing, a value is empty or a split has
    another name.
    """
    examples = list[LabelledText]()
    for name, location in files.items():
        if layout:
            text = layout.test_text or layout.text if name == "test" else layout.text
            text_b, label = layout.text_b, layout.label
            if name == "test" and isinstance(label, int):  # its test file has a header, and no label
                label = "label"
            split, splits_are_named = None, False
        else:
            text, text_b, label, split = columns.text, columns.text_b, columns.label, columns.split
            splits_are_named = "split" in columns.model_fields_set
        rows = read_rows(
            {name: location},
            [column for column in (text, text_b) if column is not None],
            label_columns=[label],
            split_column=split,
            splits_are_named=splits_are_named,
        )
        no_label = NO_LABEL if layout else None
        examples += [
            LabelledText(
                row.number,
                row.split,
                _label(row, label, no_label, read_label),
                row.text(text),
                None if text_b is None else row.text(text_b),
            )
            for row in rows
        ]
    return examples


def _label(row: LabelledRow, column: Column, no_label: str | None, read_label: ReadLabel) -> Any:
    """The label, or None for a row of test without one."""
    if row.split == "test" and row.values.get(column) in (None, "", no_label):
        return None
    return read_label(row.where, row.text(column))
