"""The token ids of a task's splits <-> Arrow files, which every worker maps into its memory.

A file has the arrays of one split: a column for each field of its dataclass, named by its path such as
`texts.ids.values`, and a single row that holds the whole array.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_type_hints

import numpy as np
import pyarrow as pa

from cloze.pipeline.core.ragged import Ragged
from cloze.pipeline.core.schema import parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.task import EncodedSplit

_SUFFIX = ".arrow"
_ARRAYS = b"arrays"  # key of the file's metadata: JSON, name -> type and shape of each array


class StoredSplits(Mapping[str, EncodedSplit]):
    """The splits in a folder, each read when it is first used. A worker receives their location, not their content."""

    def __init__(self, folder: Location, splits: Sequence[str], kind: type) -> None:
        """`kind`: the class of the task's encoded splits."""
        self._folder, self._splits, self._kind = folder, splits, kind
        self._read = dict[str, EncodedSplit]()

    def __getitem__(self, split: str) -> EncodedSplit:
        if split not in self._splits:
            raise KeyError(split)
        if split not in self._read:
            self._read[split] = read_split(self._folder / f"{split}{_SUFFIX}", self._kind)
        return self._read[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": {}}


def split_files(splits: Mapping[str, EncodedSplit]) -> dict[str, bytes]:
    """Name -> content of the files of encoded splits: the same bytes for the same splits."""
    return {f"{name}{_SUFFIX}": _arrow_bytes(dict(_arrays(split, ()))) for name, split in splits.items()}


def read_split(file: Location, kind: type) -> EncodedSplit:
    """An encoded split of the class `kind`; its arrays are read-only. Raises UserError for a damaged file."""
    with parquet_errors(file):
        source = pa.memory_map(str(file.local_path)) if file.local_path else pa.BufferReader(file.read_bytes())
        batch = pa.ipc.open_file(source).get_batch(0)
        shapes = json.loads((batch.schema.metadata or {})[_ARRAYS])
    arrays = {
        name: batch.column(name).values.to_numpy(zero_copy_only=True).view(dtype).reshape(shape)
        for name, (dtype, shape) in shapes.items()
    }
    return _with_arrays(kind, arrays, ())


def _arrow_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    columns = [_column(array) for array in arrays.values()]
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in zip(arrays, columns, strict=True)],
        {_ARRAYS: json.dumps(shapes).encode()},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def _column(array: np.ndarray) -> pa.Array:
    """A column with one row. Arrow would pack truth values into bits, which NumPy cannot map: they are bytes."""
    flat = np.ascontiguousarray(array).reshape(-1)
    values = pa.array(flat.view(np.uint8) if flat.dtype == np.bool_ else flat)
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), values)


def _arrays(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each array inside a dataclass with the path of its field; a number is an array without dimensions."""
    if isinstance(value, Ragged):
        yield from ((".".join((*path, name)), array) for name, array in value._asdict().items())
    elif is_dataclass(value):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name), (*path, field.name))
    else:
        yield ".".join(path), np.asarray(value)


def _with_arrays(kind: Any, arrays: Mapping[str, np.ndarray], path: tuple[str, ...]) -> Any:
    """The inverse of `_arrays`: a value of the type `kind`."""
    if kind is Ragged:
        return Ragged(*(arrays[".".join((*path, name))] for name in Ragged._fields))
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        values = (_with_arrays(kinds[field.name], arrays, (*path, field.name)) for field in fields(kind))
        return cast(type, kind)(*values)
    array = arrays[".".join(path)]
    return array if array.ndim else array.item()
