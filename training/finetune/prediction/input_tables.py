"""A user's tables of new inputs (Parquet, JSON Lines, CSV, TSV) -> any range of their rows, with all columns."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import table_files
from cloze.training.finetune.tasks.task import InputColumns
from cloze.training.finetune.tasks.task_config import Column

_BATCH = 1024  # rows in memory at a time
_LISTS = ("words", "choices")  # inputs of several texts
_MAY_BE_BLANK = "choice_start"


@dataclass(frozen=True)
class InputTable:
    """A table of new inputs. Columns of a file without a header are named 1, 2 and so on."""

    location: Location
    columns: Mapping[str, Column]  # name of an input's value -> the column that has it
    schema: pa.Schema
    num_rows: int

    def rows(self, start: int, stop: int) -> pa.Table:
        """The rows from `start`, from 0, up to `stop`. Raises UserError for damaged content."""
        if _is_parquet(self.location):
            return _parquet_rows(self.location, start, stop)
        rows = list(itertools.islice(_text_rows(self.location, self.columns), start, stop))
        return pa.Table.from_pydict(_by_column(rows, self.schema.names), self.schema)

    def inputs(self, rows: pa.Table) -> list[dict[str, Any] | None]:
        """The input in each of some rows; None for a row in which a value that it needs is missing or blank."""
        values = {name: rows[str(column)].to_pylist() for name, column in self.columns.items()}
        cleaned = [
            [_cleaned(value, "" if name == _MAY_BE_BLANK else None) for value in column]
            for name, column in values.items()
        ]
        return [None if None in row else dict(zip(values, row, strict=True)) for row in zip(*cleaned, strict=True)]


def open_table(location: Location, wanted: InputColumns, added: Sequence[str]) -> InputTable:
    """Find the columns with an input's values, and count the rows: text is read as a whole, of Parquet the footer.

    Raises UserError when the file cannot be read, a column is missing, there twice, of bytes or of lists where the
    input is one text, or one of the columns `added` exists already.
    """
    if _is_parquet(location):
        with location.open() as file, parquet_errors(location, "is not a Parquet file ({}); correct its suffix"):
            metadata = pq.read_metadata(file)
            schema, num_rows = metadata.schema.to_arrow_schema(), metadata.num_rows
        columns = _found_columns(location, schema.names, wanted)
    else:
        first = next(table_files.read_rows(location, [], tsv_quotes=False, whole_characters=True), None)
        if first is None:
            raise UserError(f"{location}: has no rows; leave it out")
        columns = _found_columns(location, list(first.values), wanted)
        schema, num_rows = _schema_of_text(location, columns)
    _check_columns(location, schema, columns)
    if existing := [name for name in added if name in schema.names]:
        raise UserError(
            f"{location}: has a column {existing[0]} already; rename it, as a column with that name is added"
        )
    return InputTable(location, columns, schema, num_rows)


def _is_parquet(location: Location) -> bool:
    return table_files.table_suffix(location) == ".parquet"


def _found_columns(location: Location, existing: Sequence[Any], wanted: InputColumns) -> dict[str, Column]:
    """The first existing column of each value, by its name in the configuration or else in `cloze predict`."""
    found: dict[str, Column | None] = {
        name: next((column for column in (*columns, name) if column in existing), None)
        for name, columns in wanted.items()
    }
    if None in found.values() and table_files.table_suffix(location) in (".csv", ".tsv"):
        numbers = {name: [one for one in columns if isinstance(one, int)] for name, columns in wanted.items()}
        if all(numbers.values()):  # the file has no header
            return {name: columns[0] for name, columns in numbers.items()}
    for name, column in found.items():
        if column is None:
            has = ", ".join(map(str, existing)) or "none"
            expected = " or ".join(dict.fromkeys(map(str, (*wanted[name], name))))
            raise UserError(f"{location}: has no column {expected}; it has {has}: rename the one with the {name}")
    return {name: column for name, column in found.items() if column is not None}


def _check_columns(location: Location, schema: pa.Schema, columns: Mapping[str, Column]) -> None:
    """Raises UserError for columns that are there twice, or that are no texts."""
    for name, column in zip(columns, map(str, columns.values()), strict=True):
        if len(found := schema.get_all_field_indices(column)) > 1:
            raise UserError(f"{location}: has {len(found)} columns {column}; rename or remove all but one")
        kind = schema.field(column).type
        no_text = pa.types.is_nested(kind) and name not in _LISTS
        if no_text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise UserError(f"{location}: the column {column} has the type {kind}; convert it to string")


def _text_rows(location: Location, columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
    for row in table_files.read_rows(location, list(columns.values()), tsv_quotes=False, whole_characters=True):
        yield {str(name): value for name, value in row.values.items()}


def _schema_of_text(location: Location, columns: Mapping[str, Column]) -> tuple[pa.Schema, int]:
    """The columns of all rows with a type that fits them, and the number of rows."""
    rows, schema, count = _text_rows(location, columns), pa.schema([]), 0
    while batch := list(itertools.islice(rows, _BATCH)):
        names = dict.fromkeys(name for row in batch for name in row)
        for name, values in _by_column(batch, list(names)).items():
            try:
                one = pa.schema([(name, pa.array(values).type)])
                schema = pa.unify_schemas([schema, one], promote_options="permissive")
            except (pa.ArrowException, OverflowError) as error:
                problem = str(error).partition("\n")[0]
                raise UserError(
                    f"{location}: the column {name} has values of different types ({problem}); write one type"
                ) from error
        count += len(batch)
    return schema, count


def _by_column(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet_rows(location: Location, start: int, stop: int) -> pa.Table:
    """Reads the row groups that contain the rows from `start` up to `stop`, in batches."""
    with (
        location.open() as file,
        parquet_errors(location, "is damaged Parquet ({}); create it again"),
        pq.ParquetFile(file, pre_buffer=location.is_s3) as parquet,
    ):
        groups, position, offset = list[int](), 0, 0  # `offset`: the first row of the first group
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if position < stop and position + rows > start:
                offset = offset if groups else position
                groups.append(group)
            position += rows
        batches, position = list[pa.RecordBatch](), offset
        for batch in parquet.iter_batches(_BATCH, row_groups=groups):
            end = position + len(batch)
            if end > start:
                first = max(start, position)
                batches.append(batch.slice(first - position, min(stop, end) - first))
            position = end
            if position >= stop:
                break
        return pa.Table.from_batches(batches, parquet.schema_arrow)


def _cleaned(value: Any, blank: str | None) -> str | list[str] | None:
    """A text, or a list of texts; `blank` if it is missing or blank."""
    if isinstance(value, list):
        return ["" if item is None else str(item) for item in value] or blank
    return blank if value is None or not str(value).strip() else str(value)
