"""A team's own file (Parquet, JSON lines, CSV, TSV, text) -> rows with a text and what else its columns say."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline import lines
from pipeline.config import Config, UserError
from pipeline.encodings import decode, of_stream, wrong_byte
from pipeline.storage import Location

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


def rows(location: Location, columns: Columns, encoding: str = "") -> Iterator[Row]:
    """The rows of a file in their order, its format by its suffix.

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
        yield Row(_text(location, encoding))
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


def _parquet(location: Location, columns: Columns) -> Iterator[Row]:
    with location.open() as file:
        with _damage(location, "is no Parquet file ({}); correct its suffix"):
            parquet = pq.ParquetFile(file)
        _check(location, columns, parquet.schema_arrow.names)
        wanted = list(dict.fromkeys(columns.named.values()))
        number = 0
        with _damage(location, "is damaged Parquet ({}); write it again"):
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    yield _row(values, columns, f"{location}: row {number}")


@contextmanager
def _damage(location: Location, said: str) -> Iterator[None]:
    """Arrow's errors of what a file holds become UserErrors in one line."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{location}: {said.format(str(error).partition(chr(10))[0])}") from error


def _json_lines(location: Location, columns: Columns, encoding: str) -> Iterator[Row]:
    with _lines(location, encoding) as file:
        for number, line in enumerate(file, 1):
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
            yield _row(values, columns, where)


def _csv(location: Location, columns: Columns, delimiter: str, encoding: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _lines(location, encoding) as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _check(location, columns, list(reader.fieldnames or []))
            for values in reader:
                where = f"{location}:{reader.line_num}"
                if None in values or None in values.values():
                    raise UserError(f"{where}: has more or fewer fields than the header; quote its text")
                yield _row(values, columns, where)
        except csv.Error as error:
            raise UserError(f"{location}:{reader.line_num}: is not CSV ({error}); quote its text") from error


def _text(location: Location, encoding: str) -> str:
    """All of a text file. Raises UserError for one that is too large to be a document, or a sentence a line."""
    with lines.decompressed(location) as file:
        data = file.read(_TEXT + 1)
    lines.refuse(location, data[: 1 << 20].decode("utf-8", "replace"))
    if len(data) > _TEXT:
        raise UserError(f"{location}: has more than {_TEXT:,} bytes, too many for a document; give a file for each")
    return decode(data, str(location), encoding)


@contextmanager
def _lines(location: Location, encoding: str) -> Iterator[TextIO]:
    """The file as text that can be read line by line: in the encoding set, or that of its mark, or UTF-8."""
    with lines.decompressed(location) as file:
        found = of_stream(file.peek(4)[:4], encoding)
        try:
            yield io.TextIOWrapper(file, encoding=found, newline="")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{location}: is not {found.upper().removesuffix('-SIG')} ({wrong_byte(error)} of what was read); set "
                f"the source's encoding, for example cp1252, or convert it (iconv)"
            ) from error
