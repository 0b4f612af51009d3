"""Files of texts, or pairs of texts, with a label each -> examples, in a user's columns or GLUE's."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from numpy.typing import NDArray

from cloze.pipeline.core.config import Config, Given
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.glue import NO_LABEL, Layout, is_submitted
from cloze.training.finetune.tasks.invalid_rows import reasons_in_words, valid_rows
from cloze.training.finetune.tasks.labelled_files import LabelledExample, LabelledRow, may_be_unlabelled, read_rows
from cloze.training.finetune.tasks.task import EncodedTask, InputColumns, splits_of
from cloze.training.finetune.tasks.task_config import Column
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ReadLabel = Callable[[str, str], Any]  # (file and row for error messages, the text of the label) -> the label


class LabelledColumns(Config):
    """The columns of the labelled file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    text: Column = "text"
    """Column with the text."""
    text_b: Column | None = None
    """Column with the second text of a pair."""
    label: Column = "label"
    """Column with the label: a word or a number."""
    split: Annotated[Column, Given] = "split"
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

    def named_texts(self) -> list[tuple[str, str]]:
        """The one or two texts after their names."""
        return [("text", self.text)] if self.text_b is None else [("text", self.text), ("text_b", self.text_b)]

    def sample(self) -> dict[str, Any]:
        """The example as the report shows it."""
        return {"text": self.text if self.text_b is None else f"{self.text} / {self.text_b}", "label": self.label}


@dataclass(frozen=True)
class EncodedTexts:
    """The examples of one split: token ids, and the target of each [n, ...] as the task's loss reads it."""

    texts: TextInputs
    targets: NDArray[Any]

    @property
    def lengths(self) -> Ints:
        return self.texts.lengths


def encode_examples(
    examples: Sequence[LabelledText],
    tokenizer: "Tokenizer",
    max_seq_length: int,
    targets: Callable[[Sequence[LabelledText]], NDArray[Any]],
) -> EncodedTask:
    """The splits of the examples, each as EncodedTexts. `targets`: the examples of a split -> their targets."""
    splits, truncated = dict[str, EncodedTexts](), 0
    for split in splits_of(examples):
        of_split = [example for example in examples if example.split == split]
        texts, shortened = encode_texts(tokenizer, *LabelledText.columns(of_split), max_seq_length=max_seq_length)
        splits[split] = EncodedTexts(texts, targets(of_split))
        truncated += shortened
    return EncodedTask(splits, truncated)


def text_names(columns: LabelledColumns, layout: Layout | None) -> tuple[str, ...]:
    """The names of an input's texts."""
    second = layout.text_b if layout else columns.text_b
    return ("text",) if second is None else ("text", "text_b")


def text_columns(text: Column, text_b: Column | None, layout: Layout | None = None) -> InputColumns:
    """The columns of an input's texts: the user's, or those of GLUE's layout."""
    first = [text]
    if layout:
        first, text_b = [column for column in (layout.test_text, layout.text) if column is not None], layout.text_b
    return {"text": first} if text_b is None else {"text": first, "text_b": [text_b]}


def read_texts(
    columns: LabelledColumns,
    layout: Layout | None,
    files: Mapping[str, Location],
    read_label: ReadLabel,
    skipped: Counter[str] | None,
) -> list[LabelledText]:
    """The examples of the labelled files, in their order; the split is empty where it is still to be drawn.

    Invalid rows are counted in `skipped` by reason; without it, in a file that GLUE's server scores, and when a format
    is unknown, a file is damaged, a column is missing or a split has another name, raises UserError.
    """
    examples = list[LabelledText]()
    for name, location in files.items():
        found = _glue_columns(layout, name) if layout else columns
        before = Counter(skipped)
        rows = read_rows(
            {name: location},
            [found.text] if found.text_b is None else [found.text, found.text_b],
            label_columns=[found.label],
            split_column=None if layout else found.split,
            splits_are_named="split" in found.model_fields_set,
            skipped=skipped,
        )
        no_label = NO_LABEL if layout else None
        build = partial(_example, columns=found, no_label=no_label, read_label=read_label)
        of_file = valid_rows(rows, build, skipped)
        new = Counter(skipped) - before
        if new and layout and of_file and is_submitted(of_file[0].split, of_file[0].label):
            raise UserError(
                f"{location}: has invalid rows ({reasons_in_words(new)}), and GLUE's server takes an answer to every "
                "row; correct them: without skip_invalid the error names the first"
            )
        examples += of_file
    return examples


def _glue_columns(layout: Layout, name: str) -> LabelledColumns:
    """The columns of GLUE's file of the split `name`."""
    if name != "test":
        return LabelledColumns(text=layout.text, text_b=layout.text_b, label=layout.label)
    label = "label" if isinstance(layout.label, int) else layout.label  # its test file has a header, and no label
    return LabelledColumns(text=layout.test_text or layout.text, text_b=layout.text_b, label=label)


def _example(row: LabelledRow, columns: LabelledColumns, no_label: str | None, read_label: ReadLabel) -> LabelledText:
    """The example of a row. Raises InvalidRow."""
    label = _label(row, columns.label, no_label, read_label)
    text_b = None if columns.text_b is None else row.text(columns.text_b)
    return LabelledText(row.number, row.split, label, row.text(columns.text), text_b, where=row.where)


def _label(row: LabelledRow, column: Column, no_label: str | None, read_label: ReadLabel) -> Any:
    """The label, or None for a row of test or of an extra file without one."""
    if may_be_unlabelled(row.split) and row.values.get(column) in (None, "", no_label):
        return None
    return read_label(row.where, row.text(column))
