"""A table that somebody made (Parquet, JSON lines, CSV, TSV) -> its rows: their values by column, where they stand."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.encodings import byte_lines, decompressed, is_gzip, of_stream, unmarked, wrong_byte

FORMATS = ".parquet, .jsonl, .ndjson, .json, .csv, .tsv"  # all also with .gz
_BATCH = 256  # rows of a Parquet file in memory at a time


class TableRow(NamedTuple):
    """The bytes of a row are its lines, with their ends; of a .gz those of the decompressed file.

    In Parquet, whose rows have no bytes of their own, `offset` is the row's number, from 0, and `bytes` is 0.
    """

    number: int  # of its last line, or of the row in a Parquet file, from 1
    where: str  # as an error says it
    values: Mapping[str, Any]  # has all the columns that were asked for
    offset: int
    bytes: int


def suffix(location: Location) -> str:
    """What the name says of a format, in lower case; .gz behind it is left out."""
    return "." + location.name.lower().removesuffix(".gz").rpartition(".")[2]


def rows(location: Location, columns: Sequence[str], encoding: str = "", *, tsv_quotes: bool) -> Iterator[TableRow]:
    """The rows of a file in their order; its format is known by its suffix. Empty lines are none.

    `encoding`: of text without a mark that is not UTF-8. `tsv_quotes`: whether quotes in a .tsv enclose tabs and line
    breaks, as in a .csv, or are characters like others.

    Raises UserError: an unknown suffix, a file that is not what its suffix says, a column that is not there; with the
    file, the line where there are lines, and the mend.
    """
    match suffix(location):
        case ".parquet":
            yield from _parquet(location, columns)
        case ".jsonl" | ".ndjson" | ".json":
            yield from _json_lines(location, columns, encoding)
        case ".csv":
            yield from _csv(location, columns, ",", encoding, quotes=True)
        case ".tsv":
            yield from _csv(location, columns, "\t", encoding, quotes=tsv_quotes)
        case _:
            raise UserError(
                f"{location}: is no table; give one of {FORMATS} (all also with .gz): convert it or correct its suffix"
            )


def _check(where: str, columns: Sequence[str], there: Sequence[str]) -> None:
    for column in columns:
        if column not in there:
            raise UserError(
                f"{where}: has no column {column}; it has {', '.join(there) or 'none'}: set columns to these"
            )


def _parquet(location: Location, columns: Sequence[str]) -> Iterator[TableRow]:
    with decompressed(location) if is_gzip(location) else location.open() as file:
        source = io.BytesIO(file.read()) if is_gzip(location) else file  # what says where the rest lies is its end
        with parquet_errors(location, "is no Parquet file ({}); correct its suffix"):
            parquet = pq.ParquetFile(source)
        _check(str(location), columns, parquet.schema_arrow.names)
        number = 0
        with parquet_errors(location, "is damaged Parquet ({}); write it again"):
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(columns))):
                for values in batch.to_pylist():
                    number += 1
                    yield TableRow(number, f"{location}: row {number}", values, number - 1, 0)


def _json_lines(location: Location, columns: Sequence[str], encoding: str) -> Iterator[TableRow]:
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
        _check(where, columns, list(values))
        yield TableRow(number, where, values, start, stop - start)


def _csv(
    location: Location, columns: Sequence[str], delimiter: str, encoding: str, *, quotes: bool
) -> Iterator[TableRow]:
    csv.field_size_limit(sys.maxsize)
    mend = "quote its text" if quotes else "leave no tab or line break in its text"
    reached = 0

    def texts() -> Iterator[str]:
        nonlocal reached
        for _, stop, line in _lines(location, encoding):
            reached = stop
            yield line

    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        names = next(reader, [])
        _check(str(location), columns, names)
        start = reached
        for fields in reader:
            where = f"{location}:{reader.line_num}"
            if fields and len(fields) != len(names):
                raise UserError(f"{where}: has more or fewer fields than the header; {mend}")
            if fields:
                yield TableRow(reader.line_num, where, dict(zip(names, fields, strict=True)), start, reached - start)
            start = reached
    except csv.Error as error:
        raise UserError(f"{location}:{reader.line_num}: is not CSV ({error}); {mend}") from error


def _lines(location: Location, encoding: str) -> Iterator[tuple[int, int, str]]:
    """A file's lines: the byte where each begins, that behind its end, and its text.

    It is in the encoding set, or that of its mark, or UTF-8.
    """
    with decompressed(location) as file:
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
                f"{location}: is not {found.upper().removesuffix('-SIG')} ({wrong_byte(error, start)}); convert it "
                f"(iconv) or, in a source, set encoding, for example cp1252"
            ) from error
