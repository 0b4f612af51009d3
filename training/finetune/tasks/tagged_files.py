"""Files of sentences with a tag for each word -> examples.

A file has one word per line with its tags in columns, as CoNLL-2003, or one sentence per row with lists of words and
tags, as JSON lines or Parquet.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from cloze.pipeline.core.config import Config, Given
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.character_encodings import Encoding, decode, decompressed
from cloze.pipeline.text.table_files import table_suffix
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import LabelledExample, LabelledRow, may_be_unlabelled, read_rows

_TABLES = (".parquet", ".jsonl", ".ndjson", ".json")
DOCUMENT_MARK = "-DOCSTART-"


def _not_zero(column: str | int | None) -> str | int | None:
    if column == 0:
        raise ValueError("columns are counted from 1, or from the end: -1 is the last")
    return column


_Column = Annotated[str | int | None, AfterValidator(_not_zero)]


class TaggedColumns(Config):
    """The columns of a file of tagged words.

    Where each line is a word: their numbers, from 1, or from the end: -1 is the last. They are separated by tabs if the
    first word's line has one, otherwise by spaces. In JSON lines and Parquet: their names.
    """

    token: _Column = None
    """Column with the word, by default the first; in JSON lines and Parquet, with the list of words, by default
    `tokens`."""
    tag: _Column = None
    """Column with the word's tag, by default the last; in JSON lines and Parquet, with the list of tags, by default
    `tags`."""
    document: str | None = None
    """Column of JSON lines or Parquet with the name of the sentence's document. Other files have -DOCSTART- lines."""
    split: Annotated[str, Given] = "split"
    """Column of JSON lines or Parquet with the split: train, dev or test."""
    comment: str | None = Field(default=None, min_length=1)
    """Lines that begin with this are comments: # in CoNLL-U, where `# newdoc` begins a document. By default none."""
    tag_names: tuple[str, ...] | None = None
    """The tags in the order of their numbers, from 0, if the lists of tags in JSON lines or Parquet are numbers."""
    encoding: Encoding = ""
    """Encoding of a file with a word per line; by default it is detected."""


@dataclass(frozen=True)
class TaggedSentence(LabelledExample):
    """A sentence as words. `label` has a tag for each; `row` is the line of the first word, or the row of the table.
    `where` is the file, or in a table the file and the row."""

    words: tuple[str, ...]
    document: str | int | None  # its name or number within the file; None if unknown
    lines: tuple[str, ...] = ()  # of a file with a word per line

    def where_of(self, position: int) -> str:
        """The position of a word, for error messages."""
        return f"{self.where}:{self.row + position}" if self.lines else f"{self.where}: word {position + 1}"


def read_sentences(
    columns: TaggedColumns, files: Mapping[str, Location], skipped: Counter[str] | None
) -> list[TaggedSentence]:
    """The sentences of the labelled files, in their order; the split is empty where it is still to be drawn.

    Invalid sentences are counted in `skipped` by reason; without it, and for any other fault, raises UserError.
    """
    sentences, tag_number = list[TaggedSentence](), 0
    for name, location in files.items():
        if (suffix := table_suffix(location)) in _TABLES:
            sentences += _read_table(columns, name, location, skipped)
        elif suffix == ".csv":
            raise UserError(f"{location}: is CSV; write a word per line with columns separated by tabs, or JSON lines")
        else:
            file = _ColumnFile(columns, name, location, tag_number)
            tag_number = file.tag  # as in train, where it may have been counted from the end
            sentences += file.sentences(skipped)
    return sentences


class _Block(NamedTuple):
    """The lines of a sentence in a file with a word per line."""

    split: str
    where: str  # the file
    document: int  # its number, from 1; 0 before the first
    first_line: int  # its number
    lines: list[str]


class _ColumnFile:
    """A file with a word per line, and an empty line between sentences."""

    def __init__(self, columns: TaggedColumns, name: str, location: Location, tag_number: int) -> None:
        """`tag_number`: the number of the tags' column in the files before this one; 0 in the first."""
        for key in ("token", "tag"):
            if isinstance(column := getattr(columns, key), str):
                raise UserError(f"{location}: has columns without names, set columns.{key} to a number, not {column!r}")
        self.location, self.split, self.comment = location, "" if name == "data" else name, columns.comment
        with decompressed(location) as file:
            self.all_lines = decode(file.read(), str(location), columns.encoding).split("\n")
        first = next((number for number, line in enumerate(self.all_lines, 1) if self._is_word(line)), 0)
        if not first:
            raise UserError(f"{location}: has no words; write a word and its tag per line")
        line = self.all_lines[first - 1]
        self.has_tabs = "\t" in line
        self.width = len(self._fields(line))
        self.token = self._number(columns.token or 1)
        self.tag = tag_number or self._number(columns.tag or -1)
        self.is_labelled = self.tag <= self.width
        if self.token > self.width or not (self.is_labelled or may_be_unlabelled(name)):
            column = self.token if self.token > self.width else self.tag
            raise UserError(f"{location}:{first}: has no column {column}, it has {self.width}; set columns to these")
        if self.token == self.tag:
            raise UserError(
                f"{location}:{first}: column {self.tag} of {self.width} is both token and tag; add the tags, or set "
                "columns.token and columns.tag"
            )

    def _number(self, column: str | int) -> int:
        number = int(column)
        return number if number > 0 else max(self.width + 1 + number, 1)

    def _fields(self, line: str) -> list[str]:
        """The columns of a line. Other white space than tabs and spaces may be part of a word."""
        fields = [field.strip(" ") for field in line.split("\t" if self.has_tabs else " ")]
        return fields if self.has_tabs else [field for field in fields if field]

    def _is_comment(self, line: str) -> bool:
        return self.comment is not None and line.startswith(self.comment)

    def _is_word(self, line: str) -> bool:
        return bool(line.strip()) and not line.startswith(DOCUMENT_MARK) and not self._is_comment(line)

    def sentences(self, skipped: Counter[str] | None) -> list[TaggedSentence]:
        blocks = list(self._blocks())
        has_documents = any(block.document for block in blocks)
        return valid_rows(blocks, partial(self._sentence, has_documents=has_documents), skipped)

    def _blocks(self) -> Iterator[_Block]:
        document, block = 0, list[str]()
        for number, line in enumerate([*self.all_lines, ""], 1):
            if self._is_word(line):
                block.append(line)
                continue
            if block:
                if self._is_comment(line):
                    raise UserError(f"{self.location}:{number}: is a comment inside a sentence; move it before it")
                yield _Block(self.split, str(self.location), document, number - len(block), block)
                block = []
            is_new_document = line[len(self.comment or "") :].split()[:1] == ["newdoc"] and self._is_comment(line)
            document += line.startswith(DOCUMENT_MARK) or is_new_document

    def _sentence(self, block: _Block, has_documents: bool) -> TaggedSentence:
        first, lines = block.first_line, block.lines
        words, tags = list[str](), list[str]()
        for number, line in enumerate(lines, first):
            fields = self._fields(line)
            if len(fields) != self.width:
                separator = "tabs" if self.has_tabs else "spaces"
                hint = ", or set columns.comment if it is a comment" if line.startswith("#") else ""
                raise InvalidRow(
                    f"{self.location}:{number}: has {len(fields)} columns, the file's first word has {self.width}; "
                    f"separate {self.width} columns by {separator}{hint}",
                    "other number of columns",
                )
            words.append(fields[self.token - 1])
            tags += [fields[self.tag - 1]] if self.is_labelled else []
            if not words[-1] or (self.is_labelled and not tags[-1]):
                empty = "tag" if words[-1] else "word"
                raise InvalidRow(f"{self.location}:{number}: the {empty} is empty; fill it in", f"empty {empty}")
        label = tuple(tags) if self.is_labelled else None
        mark = block.document if has_documents else None
        return TaggedSentence(first, self.split, label, tuple(words), mark, tuple(lines), where=block.where)


def _read_table(
    columns: TaggedColumns, name: str, location: Location, skipped: Counter[str] | None
) -> list[TaggedSentence]:
    """The sentences of JSON lines or Parquet."""
    token, tag = columns.token or "tokens", columns.tag or "tags"
    document = [columns.document] if columns.document else []
    rows = read_rows(
        {name: location},
        [token, *document],
        label_columns=[tag],
        split_column=columns.split,
        splits_are_named="split" in columns.model_fields_set,
        skipped=skipped,
    )

    def sentence(row: LabelledRow) -> TaggedSentence:
        words = _strings(row, token, row.values[token])
        label, value = None, row.values.get(tag)
        if value is not None or not may_be_unlabelled(row.split):
            label = _strings(row, tag, _named(row, tag, value, columns.tag_names))
            if len(label) != len(words):
                raise InvalidRow(
                    f"{row.where}: has {len(words)} {token} and {len(label)} {tag}; give a tag for each word",
                    "other number of tags",
                )
        mark = row.text(columns.document) if columns.document else None
        return TaggedSentence(row.number, row.split, label, words, mark, where=row.where)

    return valid_rows(rows, sentence, skipped)


def _strings(row: LabelledRow, column: str | int, value: Any) -> tuple[str, ...]:
    """A list of strings that are not empty. Raises InvalidRow for any other value."""
    items = value if isinstance(value, list) and value else [value]
    if wrong := [item for item in items if not isinstance(item, str) or not item or items is not value]:
        raise InvalidRow(
            f"{row.where}: {column} is or contains {wrong[0]!r}; write a list of texts", f"invalid {column}"
        )
    return tuple(value)


def _named(row: LabelledRow, column: str | int, value: Any, names: Sequence[str] | None) -> Any:
    """A list of tags, with names in place of numbers."""
    if not isinstance(value, list) or not any(isinstance(item, int) for item in value):
        return value
    if names is None:
        raise UserError(
            f"{row.where}: {column} are numbers ({value[0]!r}); set columns.tag_names to their names in that order"
        )
    for item in value:
        if not isinstance(item, int) or not 0 <= item < len(names):
            raise InvalidRow(
                f"{row.where}: {column} has {item!r}, columns.tag_names has {len(names)} names; add its name or "
                "correct the number",
                f"invalid {column}",
            )
    return [names[item] for item in value]
