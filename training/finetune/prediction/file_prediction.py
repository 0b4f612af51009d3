"""Tables of new inputs and a model -> the same rows with what it computes, as Parquet parts, on all workers.

Each part has the fingerprint of the model, the settings and the input files in its metadata: an interrupted prediction
continues from the parts that are there, and never mixes those of two.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_data import ActorResources, for_each
from cloze.pipeline.core.schema import parquet_bytes, parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.cluster.elastic import Placement, capacity
from cloze.training.finetune.prediction.input_tables import InputTable, open_table
from cloze.training.finetune.tasks.task import InputColumns

VERSION = 1  # of the parts: covered by their fingerprint

_ROWS = 4096  # of a part: a multiple of those that FineTunedModel.predict sorts by length
_METADATA = b"cloze"

#: The inputs of some rows, None where one is blank -> the columns that are added, and counts by name.
ComputeColumns = Callable[[Sequence[Mapping[str, Any] | None]], tuple[Mapping[str, pa.Array], Mapping[str, int]]]


class Predictor(Protocol):
    """A model that adds columns to the rows of tables. Workers receive it without its weights; it has a hash."""

    @property
    def name(self) -> str:
        """For messages: "predict authors"."""
        ...

    @property
    def summary_file(self) -> str:
        """Written next to the parts. Readers of a Parquet folder ignore names with an underscore."""
        ...

    @property
    def input_columns(self) -> InputColumns: ...

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        """The types of the columns that are added, by name."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the metadata of each part says of the model and the settings."""
        ...

    @property
    def gpus(self) -> int | Literal["auto"]: ...

    @property
    def workers(self) -> int | None: ...

    @property
    def threads(self) -> int:
        """The processor cores of a worker."""
        ...

    def load(self, *, gpu: bool) -> ComputeColumns: ...


@dataclass(frozen=True)
class PartRows:
    """The rows of a part: from `start` up to `stop` of a table."""

    table: InputTable
    start: int
    stop: int


@dataclass(frozen=True)
class FilePrediction:
    """What a model computes for every row of some tables, written as <to>/part-00000.parquet and so on."""

    predictor: Predictor
    parts: Mapping[str, PartRows]  # by file name
    to: Location
    fingerprint: str

    @classmethod
    def plan(cls, predictor: Predictor, files: Sequence[Location], to: Location, fingerprint: str) -> "FilePrediction":
        """Raises UserError when a file cannot be read or lacks a column."""
        wanted, added = predictor.input_columns, list(predictor.types)
        tables = [open_table(file, wanted, added) for file in files]
        rows = [
            PartRows(table, start, min(start + _ROWS, table.num_rows))
            for table in tables
            for start in range(0, max(1, table.num_rows), _ROWS)  # an empty table also has a part
        ]
        parts = {f"part-{number:05}.parquet": one for number, one in enumerate(rows)}
        return cls(predictor, parts, to, fingerprint)

    @property
    def num_rows(self) -> int:
        return sum(part.stop - part.start for part in self.parts.values())

    def num_finished_rows(self) -> int:
        """The number of rows in the parts that are there, from one listing."""
        parts = (self.parts.get(file.name) for file in self.to.files())
        return sum(part.stop - part.start for part in parts if part)

    def finished(self) -> "dict[str, PartRecord]":
        """The finished parts, each read by its name, as a listing may omit it.

        Raises UserError when the folder has a part of another model or other inputs, or another file.
        """
        for file in self.to.files():
            name = file.uri.removeprefix(f"{self.to}/")
            if name not in self.parts and name != self.predictor.summary_file:
                raise UserError(f"{self.to}: has {name}, which is not of these inputs; give another folder")
        records = zip(self.parts, map_in_threads(self._record, list(self.parts)), strict=True)
        return {name: record for name, record in records if record}

    def _record(self, name: str) -> "PartRecord | None":
        location = self.to / name
        try:
            with location.open() as file, parquet_errors(location, "is damaged ({}); delete it"):
                metadata = pq.read_metadata(file)
        except FileNotFoundError:
            return None
        content = json.loads((metadata.metadata or {}).get(_METADATA, b"{}"))
        if content.get("fingerprint") != self.fingerprint:
            raise UserError(f"{location}: is not of this model, these settings and these inputs; give another folder")
        counts = {key: value for key, value in content.items() if key not in {"fingerprint", *self.predictor.facts}}
        return PartRecord(metadata.num_rows, counts)

    def run(self, names: Sequence[str]) -> None:
        """Predict these parts. Requires a Ray session."""
        placement = Placement.fitting(
            capacity(),
            stage=self.predictor.name,
            gpus=self.predictor.gpus,
            workers=self.predictor.workers,
            threads=self.predictor.threads,
            without_gpus=len(names),
        )
        resources = ActorResources(placement.threads, int(placement.gpus))
        work = partial(write_part, prediction=self, threads=placement.threads, gpu=placement.gpus)
        for_each(work, names, placement.workers, resources)


@dataclass(frozen=True)
class PartRecord:
    """What a part contains: its rows, and the model's counts, such as those without a prediction."""

    rows: int
    counts: Mapping[str, int]


def write_part(name: str, prediction: FilePrediction, threads: int, gpu: bool) -> None:
    """Compute and write a part: the columns of its rows, and those of the model."""
    part, predictor = prediction.parts[name], prediction.predictor
    compute = _loaded(predictor, threads, gpu)
    table = part.table.rows(part.start, part.stop)
    if len(table) != part.stop - part.start:
        raise UserError(f"{part.table.location}: has fewer rows than before; leave it as it is while it is read")
    columns, counts = compute(part.table.inputs(table))
    for column, kind in predictor.types.items():
        table = table.append_column(pa.field(column, kind), columns[column])
    record = {"fingerprint": prediction.fingerprint, **predictor.facts, **counts}
    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(record).encode()}
    (prediction.to / name).write_bytes(parquet_bytes(table.replace_schema_metadata(metadata), _ROWS))


@lru_cache(maxsize=1)
def _loaded(predictor: Predictor, threads: int, gpu: bool) -> ComputeColumns:
    """One for each worker process."""
    torch.set_num_threads(threads)
    return predictor.load(gpu=gpu)
