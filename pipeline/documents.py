"""A team's own file (Parquet, JSON lines, CSV, TSV, text) -> rows with a text and what else its columns say."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pydantic import Field

from pipeline import lines
from pipeline.config import Config, UserError
from pipeline.encodings import byte_lines, decode, of_stream, unmarked, wrong_byte
from pipeline.schema import parquet_errors
from pipeline.storage import Location
from pipeline.streams import Record

_TEXT = 32 << 20  # bytes of a text file that is one document
_BATCH = 256  # rows of a Parquet file in memory at a time
_PARAGRAPHS = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, as "\\ud83d" alone in JSON: no UTF-8 holds it
_FORMATS = ".parquet, .jsonl, .ndjson, .json, .csv, .tsv or .txt (all but .parquet also with .gz)"


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


def rows(location: Location, columns: Columns, encoding: str = "") -> Iterator[tuple[Record, Row]]:
    """The rows of a file in their order, and where each lies; its format is known by its suffix.

    A record is the lines of a row, with their ends; of a .gz in the decompressed file. In Parquet, whose rows have no
    bytes of their own, `offset` is the row's number, from 0, and `bytes` is 0.

    Raises UserError: an unknown suffix, a file that is not what its suffix says, a column that is not there, a value
    that is no text; with the file, the line where there are lines, and the mend.
    """
    name = location.name.lower().removesuffix(".gz")
    suffix = "." + name.rpartition(".")[2]
    if suffix == ".parquet":
        yield from _parquet(location, columns)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        yield from _json_lines(location, columns, encoding)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(location, columns, "\t" if suffix == ".tsv" else ",", encoding)
    elif suffix == ".txt":
        yield _text(location, encoding)
    else:
        raise UserError(f"{location}: documents are {_FORMATS}; convert it or correct its suffix")


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


def _check(location: Location, columns: Columns, there: list[str]) -> None:
    for column in columns.named.values():
        if column not in there:
            raise UserError(
                f"{location}: has no column {column}; it has {', '.join(there) or 'none'}: set columns to these"
            )


def _parquet(location: Location, columns: Columns) -> Iterator[tuple[Record, Row]]:
    with location.open() as file:
        with parquet_errors(location, "is no Parquet file ({}); correct its suffix"):
            parquet = pq.ParquetFile(file)
        _check(location, columns, parquet.schema_arrow.names)
        wanted = list(dict.fromkeys(columns.named.values()))
        number = 0
        with parquet_errors(location, "is damaged Parquet ({}); write it again"):
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=wanted):
                for values in batch.to_pylist():
                    yield Record(offset=number), _row(values, columns, f"{location}: row {number + 1}")
                    number += 1


def _json_lines(location: Location, columns: Columns, encoding: str) -> Iterator[tuple[Record, Row]]:
    for number, (start, stop, line) in enumerate(_lines(location, encoding), 1):
        if not line.strip():
            continue
        where = f"{location}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: is not JSON ({error.msg}); write one whole object a line") from error
        except (RecursionError, ValueError) as error:
            raise UserError(f"{where}: is JSON too deep or too long to read ({error}); write it flat") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: holds a {type(values).__name__}; write one object a line")
        for column in columns.named.values():
            if column not in values:
                raise UserError(f"{where}: has no {column}; it has {', '.join(values)}: set columns to these")
        yield Record(0, start, stop - start), _row(values, columns, where)


def _csv(location: Location, columns: Columns, delimiter: str, encoding: str) -> Iterator[tuple[Record, Row]]:
    csv.field_size_limit(sys.maxsize)
    reached = 0

    def texts() -> Iterator[str]:
        nonlocal reached
        for _, stop, line in _lines(location, encoding):
            reached = stop
            yield line

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        _check(location, columns, names)
        start = reached
        for fields in reader:
            where = f"{location}:{reader.line_num}"
            if fields and len(fields) != len(names):
                raise UserError(f"{where}: has more or fewer fields than the header; quote its text")
            if fields:
                values = dict(zip(names, fields, strict=True))
                yield Record(0, start, reached - start), _row(values, columns, where)
            start = reached
    except csv.Error as error:
        raise UserError(f"{location}:{reader.line_num}: is not CSV ({error}); quote its text") from error


def _text(location: Location, encoding: str) -> tuple[Record, Row]:
    """All of a text file. Raises UserError for one that is too large to be a document, or a sentence a line."""
    with lines.decompressed(location) as file:
        data = file.read(_TEXT + 1)
    lines.refuse(location, data[: 1 << 20].decode("utf-8", "replace"))
    if len(data) > _TEXT:
        raise UserError(f"{location}: has more than {_TEXT:,} bytes, too many for a document; give a file for each")
    return Record(0, 0, len(data)), Row(decode(data, str(location), encoding))


def _lines(location: Location, encoding: str) -> Iterator[tuple[int, int, str]]:
    """A file's lines: the byte where each begins, that behind its end, and its text.

    It is in the encoding set, or that of its mark, or UTF-8.
    """
    with lines.decompressed(location) as file:
        head = file.peek(4)[:4]
        found = of_stream(head, encoding)
        start, codec = unmarked(head, found)
        file.read(start)
        try:
            for line in byte_lines(file, codec):
                yield start, start + len(line), line.decode(codec)
                start += len(line)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{location}: is not {found.upper().removesuffix('-SIG')} ({wrong_byte(error, start)}); set the "
                f"source's encoding, for example cp1252, or convert it (iconv)"
            ) from error
