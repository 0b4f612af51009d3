"""A team's own file (Parquet, JSON lines, CSV, TSV, text) -> rows with a text and what else its columns say."""

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

from pydantic import Field

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import sentence_lines
from cloze.pipeline.text import tables
from cloze.pipeline.text.encodings import decode, decompressed

_TEXT = 32 << 20  # bytes of a text file that is one document
_PARAGRAPHS = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, as "\\ud83d" alone in JSON: no UTF-8 holds it


class Columns(Config):
    """The names of the columns that hold each field; only `text` must be there. A .txt file is one text, no columns."""

    text: str = "text"
    doc_id: str | None = Field(
        default=None, description="unique in its source; else the file's digest and the row's number"
    )
    title: str | None = None
    url: str | None = None
    language: str | None = None
    timestamp: str | None = None
    licence: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Field -> column, of the fields that have one."""
        return {name: value for name, value in self if value is not None}


class Row(NamedTuple):
    """One document as it was brought; a field without a column, or without a value, is empty."""

    text: str
    doc_id: str = ""
    title: str = ""
    url: str = ""
    language: str = ""
    timestamp: str = ""
    licence: str = ""


def rows(location: Location, columns: Columns, encoding: str = "") -> Iterator[tuple[RecordPosition, Row]]:
    """The rows of a file in their order, and where each lies, as a TableRow says; its format is known by its suffix.

    Raises UserError: an unknown suffix, a file that is not what its suffix says, a column that is not there, a value
    that is no text; with the file, the line where there are lines, and the mend.
    """
    suffix = tables.table_suffix(location)
    if suffix == ".txt":
        yield _text(location, encoding)
    elif suffix in tables.FORMATS.split(", "):
        wanted = list(columns.named.values())
        for row in tables.read_rows(location, wanted, encoding, tsv_quotes=True):
            yield RecordPosition(0, row.offset, row.bytes), _row(row.values, columns, row.where)
    else:
        raise UserError(
            f"{location}: documents are {tables.FORMATS} or .txt (all also with .gz); convert it or correct its suffix"
        )


def paragraphs(text: str) -> list[str]:
    """Paragraphs lie between blank lines; where there are none, every line that ends a sentence ends a paragraph."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    parts = _PARAGRAPHS.split(text)
    if len(parts) == 1 and "\n" in text:
        parts = [""]
        for line in text.split("\n"):
            parts[-1] += line + " "
            if _SENTENCE_END.search(line.rstrip()):
                parts.append("")
    return [joined for part in parts if (joined := " ".join(part.split()))]


def _row(values: Mapping[str, Any], columns: Columns, where: str) -> Row:
    fields = {}
    for name, column in columns.named.items():
        value = values[column]
        if value is None:
            continue
        if name == "text" and not isinstance(value, str):
            raise UserError(
                f"{where}: {column} holds {type(value).__name__} {value!r:.40}, not text; name another column"
            )
        said = value.isoformat() if isinstance(value, date | datetime) else str(value)
        fields[name] = _SURROGATE.sub("\ufffd", said)
    return Row(**{"text": "", **fields})


def _text(location: Location, encoding: str) -> tuple[RecordPosition, Row]:
    """All of a text file. Raises UserError for one that is too large to be a document, or a sentence a line."""
    with decompressed(location) as file:
        data = file.read(_TEXT + 1)
    sentence_lines.refuse(location, data[: 1 << 20].decode("utf-8", "replace"))
    if len(data) > _TEXT:
        raise UserError(f"{location}: has more than {_TEXT:,} bytes, too many for a document; give a file for each")
    return RecordPosition(0, 0, len(data)), Row(decode(data, str(location), encoding))
