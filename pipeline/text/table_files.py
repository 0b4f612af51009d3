"""A user's table (Parquet, JSON Lines, CSV, TSV) -> its rows: values by column, and their position in the file."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.character_encodings import (
    bom_length_and_codec,
    byte_lines,
    decompressed,
    describe_invalid_byte,
    is_gzip,
    stream_encoding,
)

FORMATS = ".parquet, .jsonl, .ndjson, .json, .csv, .tsv"  # all also with .gz
_BATCH = 256  # rows of a Parquet file in memory at a time


class TableRow(NamedTuple):
    """A row of a table. `offset` and `bytes` are the position of its lines in the (decompressed) file.

    Rows of Parquet have no bytes of their own: `offset` is the row's number, from 0, and `bytes` is 0.
    """

    number: int  # of its last line, or of the row in a Parquet file, from 1
    where: str  # the file and the row, for error messages
    values: Mapping[Any, Any]  # by name, or by number: has all requested columns
    offset: int
    bytes: int


def table_suffix(location: Location) -> str:
    """Returns the suffix of the name in lower case, without a final .gz."""
    return "." + location.name.lower().removesuffix(".gz").rpartition(".")[2]


def is_table(location: Location) -> bool:
    """Returns whether the suffix is that of a table, and the name is not one that readers ignore."""
    return table_suffix(location) in FORMATS.split(", ") and not location.name.startswith((".", "_"))


def read_rows(
    location: Location,
    columns: Sequence[str | int],
    encoding: str = "",
    *,
    optional: Sequence[str | int] = (),
    tsv_quotes: bool,
    whole_characters: bool = False,
    on_invalid: Callable[[UserError], None] | None = None,
) -> Iterator[TableRow]:
    """Yields the rows of a file in order; its suffix decides the format. Empty lines are skipped.

    A number among the columns means that the file, a .csv or .tsv, has no header: columns are counted from 1. The
    values of a row lack `optional` columns that it does not have.

    `encoding`: of text that is not UTF-8 and has no byte order mark. `tsv_quotes`: whether quotes in a .tsv enclose
    tabs and line breaks, as in a .csv, or are ordinary characters. `whole_characters`: whether half a surrogate pair,
    which JSON can escape and UTF-8 cannot encode, makes a row invalid. `on_invalid`: is called with the error of a row
    that is not JSON, has more or fewer fields than the header or is invalid in this way, and the row is left out; by
    default the error is raised.

    Raises UserError for an unknown suffix, invalid content or a missing column; with the file and, in text, the line.
    """
    suffix = table_suffix(location)
    numbers = [column for column in columns if isinstance(column, int)]
    if numbers and suffix not in (".csv", ".tsv"):
        raise UserError(f"{location}: its columns have names, {numbers[0]} is a number; set columns to their names")
    match suffix:
        case ".parquet":
            yield from _parquet(location, columns, optional)
        case ".jsonl" | ".ndjson" | ".json":
            yield from _json_lines(location, columns, encoding, on_invalid or _raise, whole_characters=whole_characters)
        case ".csv":
            yield from _csv(location, columns, ",", encoding, on_invalid or _raise, quotes=True)
        case ".tsv":
            yield from _csv(location, columns, "\t", encoding, on_invalid or _raise, quotes=tsv_quotes)
        case _:
            raise UserError(
                f"{location}: is not a table; give one of {FORMATS} (all also as .gz): convert it or correct its suffix"
            )


def _raise(error: UserError) -> None:
    raise error


def _check_columns(where: str, columns: Sequence[str | int], existing: Sequence[str | int]) -> None:
    for column in columns:
        if column not in existing:
            names = ", ".join(map(str, existing)) or "none"
            raise UserError(f"{where}: has no column {column}; it has {names}: set columns to these")


def _parquet(location: Location, columns: Sequence[str | int], optional: Sequence[str | int]) -> Iterator[TableRow]:
    with decompressed(location) if is_gzip(location) else location.open() as file:
        source = io.BytesIO(file.read()) if is_gzip(location) else file  # Parquet is read from its end
        with parquet_errors(location, "is not a Parquet file ({}); correct its suffix"):
            parquet = pq.ParquetFile(source)
        _check_columns(str(location), columns, parquet.schema_arrow.names)
        number = 0
        with parquet_errors(location, "is damaged Parquet ({}); create it again"):
            existing = [name for name in dict.fromkeys([*columns, *optional]) if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=existing):
                for values in batch.to_pylist():
                    number += 1
                    yield TableRow(number, f"{location}: row {number}", values, number - 1, 0)


def _json_lines(
    location: Location,
    columns: Sequence[str | int],
    encoding: str,
    on_invalid: Callable[[UserError], None],
    *,
    whole_characters: bool,
) -> Iterator[TableRow]:
    for number, (start, stop, line) in enumerate(_lines(location, encoding), 1):
        if not line.strip():
            continue
        where = f"{location}:{number}"
        try:
            values = _json_object(where, line)
            _check_columns(where, columns, list(values))
            if whole_characters:
                _check_characters(where, values)
        except UserError as error:
            on_invalid(error)
        else:
            yield TableRow(number, where, values, start, stop - start)


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not JSON ({error.msg}); write one whole object per line") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: is JSON that is nested too deeply or too long ({error}); write it flat") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: is a {type(values).__name__}; write one object per line")
    return values


def _check_characters(where: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {name!r} has half a surrogate pair; remove or complete it") from error


def _csv(
    location: Location,
    columns: Sequence[str | int],
    delimiter: str,
    encoding: str,
    on_invalid: Callable[[UserError], None],
    *,
    quotes: bool,
) -> Iterator[TableRow]:
    csv.field_size_limit(sys.maxsize)
    fix = "quote its text" if quotes else "remove tabs and line breaks from its text"
    end = 0

    def texts() -> Iterator[str]:
        nonlocal end
        for _, stop, line in _lines(location, encoding):
            end = stop
            yield line

    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    has_header = not any(isinstance(column, int) for column in columns)
    try:
        names: list[str] | list[int] = next(reader, []) if has_header else []
        if has_header:
            _check_columns(str(location), columns, names)
        start = end
        for fields in reader:
            where = f"{location}:{reader.line_num}"
            if fields and not names:  # the first row of a file without a header
                names = list(range(1, len(fields) + 1))
                _check_columns(where, columns, names)
            if fields and len(fields) != len(names):
                first = "header" if has_header else "first row"
                on_invalid(UserError(f"{where}: has more or fewer fields than the {first}; {fix}"))
            elif fields:
                yield TableRow(reader.line_num, where, dict(zip(names, fields, strict=True)), start, end - start)
            start = end
    except csv.Error as error:
        raise UserError(f"{location}:{reader.line_num}: is not CSV ({error}); {fix}") from error


def _lines(location: Location, encoding: str) -> Iterator[tuple[int, int, str]]:
    """Yields a file's lines: the byte where each begins, the one after its end, and its text.

    The encoding is the one set, that of the byte order mark, or UTF-8.
    """
    with decompressed(location) as file:
        head = file.peek(4)[:4]
        detected = stream_encoding(head, encoding)
        start, codec = bom_length_and_codec(head, detected)
        file.read(start)
        try:
            for line in byte_lines(file, codec):
                yield start, start + len(line), line.decode(codec)
                start += len(line)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{location}: is not {detected.upper().removesuffix('-SIG')} ({describe_invalid_byte(error, start)}); "
                f"convert it (iconv) or, in a source, set encoding, for example cp1252"
            ) from error
