"""A file of your own documents (Parquet, JSON lines, CSV, TSV, text) -> rows with a text and its metadata."""

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import sentence_lines
from cloze.pipeline.text import table_files
from cloze.pipeline.text.character_encodings import decode, decompressed
from cloze.pipeline.text.sentences import STOPS

_MAX_TEXT_BYTES = 32 << 20  # of a text file, which is one document
_LAYOUT_SAMPLE_BYTES = 1 << 20
_PARAGRAPH_BREAK = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(rf"[{STOPS}][\"'”’»)\]]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, such as "\\ud83d" alone in JSON: UTF-8 cannot encode it


class DocumentColumns(Config):
    """The names of the columns that hold each field. Only `text` is required. A .txt file is one text, no columns."""

    text: str = "text"
    """The column with the document's text."""
    doc_id: str | None = None
    """The column with an identifier, unique in its source. Unset: the file's digest and the row's number."""
    title: str | None = None
    """The column with the title."""
    url: str | None = None
    """The column with the address."""
    language: str | None = None
    """The column with the ISO 639 code of the language."""
    timestamp: str | None = None
    """The column with the date or time."""
    licence: str | None = None
    """The column with the licence."""

    @property
    def by_field(self) -> dict[str, str]:
        """Field -> column, for the fields that have one."""
        return {name: value for name, value in self if value is not None}


class DocumentRow(NamedTuple):
    """A document as its file has it; a field without a column or value is empty."""

    text: str
    doc_id: str = ""
    title: str = ""
    url: str = ""
    language: str = ""
    timestamp: str = ""
    licence: str = ""


def read_rows(
    location: Location, columns: DocumentColumns, encoding: str = ""
) -> Iterator[tuple[RecordPosition, DocumentRow]]:
    """The rows of a file in their order, and where in the file each is. The suffix determines the format.

    Raises UserError: an unknown suffix, a file that does not match its suffix, a missing column, a value that is not
    text. The message names the file, the line if there are lines, and the fix.
    """
    suffix = table_files.table_suffix(location)
    if suffix == ".txt":
        yield _read_text_file(location, encoding)
    elif suffix in table_files.FORMATS.split(", "):
        needed = list(columns.by_field.values())
        for row in table_files.read_rows(location, needed, encoding, tsv_quotes=True):
            yield RecordPosition(0, row.offset, row.bytes), _document_row(row.values, columns, row.where)
    else:
        raise UserError(
            f"{location}: documents are {table_files.FORMATS} or .txt (all also with .gz); "
            "convert it or correct its suffix"
        )


def paragraphs(text: str) -> list[str]:
    """Split a text at blank lines; without any, a line that ends with the end of a sentence ends a paragraph."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    parts = _PARAGRAPH_BREAK.split(text)
    if len(parts) == 1 and "\n" in text:
        groups: list[list[str]] = [[]]
        for line in text.split("\n"):
            groups[-1].append(line)
            if _SENTENCE_END.search(line.rstrip()):
                groups.append([])
        parts = [" ".join(group) for group in groups]
    return [joined for part in parts if (joined := " ".join(part.split()))]


def _document_row(values: Mapping[str, Any], columns: DocumentColumns, where: str) -> DocumentRow:
    fields = {}
    for name, column in columns.by_field.items():
        value = values[column]
        if value is None:
            continue
        if name == "text" and not isinstance(value, str):
            raise UserError(
                f"{where}: {column} holds {type(value).__name__} {value!r:.40}, not text; name another column"
            )
        as_text = value.isoformat() if isinstance(value, date | datetime) else str(value)
        fields[name] = _SURROGATE.sub("\ufffd", as_text)
    return DocumentRow(**{"text": "", **fields})


def _read_text_file(location: Location, encoding: str) -> tuple[RecordPosition, DocumentRow]:
    """The whole file. Raises UserError if it is too large for one document, or has one sentence per line."""
    with decompressed(location) as file:
        data = file.read(_MAX_TEXT_BYTES + 1)
    sentence_lines.check_prose(location, data[:_LAYOUT_SAMPLE_BYTES].decode("utf-8", "replace"))
    if len(data) > _MAX_TEXT_BYTES:
        raise UserError(
            f"{location}: has more than {_MAX_TEXT_BYTES:,} bytes, too many for one document; split it into one file "
            f"per document"
        )
    return RecordPosition(0, 0, len(data)), DocumentRow(decode(data, str(location), encoding))
