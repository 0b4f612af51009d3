"""Tables of new inputs and a fine-tuned model -> the same rows with predictions, as Parquet parts, on all workers.

Each part has the fingerprint of the model, the settings and the input files in its metadata: an interrupted prediction
continues from the parts that are there, and never mixes those of two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_data import ActorResources, for_each
from cloze.pipeline.core.schema import parquet_bytes, parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.cluster.elastic import Placement, capacity
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.prediction.input_tables import InputTable, open_table
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import TrainedTask
from cloze.training.finetune.tasks.task_config import TaskConfig

VERSION = 1  # of the parts: covered by their fingerprint
SUMMARY_FILE = "_predictions.json"  # readers of a Parquet folder ignore names with an underscore

_ROWS = 4096  # of a part: a multiple of those that FineTunedModel.predict sorts by length
_METADATA = b"cloze"


@dataclass(frozen=True)
class PartRows:
    """The rows of a part: from `start` up to `stop` of a table."""

    table: InputTable
    start: int
    stop: int


@dataclass(frozen=True)
class FilePrediction:
    """A prediction for every row of some tables, written as <to>/part-00000.parquet and so on."""

    model: Location
    config: TaskConfig
    types: Mapping[str, pa.DataType]  # of the columns that are added
    parts: Mapping[str, PartRows]  # by file name
    to: Location
    fingerprint: str

    @classmethod
    def plan(
        cls, model: Location, config: TaskConfig, files: Sequence[Location], to: Location, fingerprint: str
    ) -> "FilePrediction":
        """Raises UserError when a file cannot be read or lacks a column."""
        task = cast(type[TrainedTask], task_of(config))
        head = json.loads((model / "config.json").read_bytes())
        types, wanted = task.prediction_types(head), task.input_columns(config, head)
        tables = [open_table(file, wanted, list(types)) for file in files]
        rows = [
            PartRows(table, start, min(start + _ROWS, table.num_rows))
            for table in tables
            for start in range(0, max(1, table.num_rows), _ROWS)  # an empty table also has a part
        ]
        parts = {f"part-{number:05}.parquet": one for number, one in enumerate(rows)}
        return cls(model, config, types, parts, to, fingerprint)

    @property
    def num_rows(self) -> int:
        return sum(part.stop - part.start for part in self.parts.values())

    def num_finished_rows(self) -> int:
        """The number of rows in the parts that are there, from one listing."""
        parts = (self.parts.get(file.name) for file in self.to.files())
        return sum(part.stop - part.start for part in parts if part)

    def finished(self) -> "dict[str, PartRecord]":
        """The finished parts, each read by its name, as a listing may omit it.

        Raises UserError when the folder has a part of another prediction, or another file.
        """
        for file in self.to.files():
            name = file.uri.removeprefix(f"{self.to}/")
            if name not in self.parts and name != SUMMARY_FILE:
                raise UserError(f"{self.to}: has {name}, which is not of this prediction; give another folder")
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
            raise UserError(
                f"{location}: is not a prediction of this model, these settings and these inputs; give another folder"
            )
        return PartRecord(metadata.num_rows, content["without_prediction"])

    def run(self, names: Sequence[str]) -> None:
        """Predict these parts. Requires a Ray session."""
        placement = Placement.fitting(
            capacity(),
            stage=f"predict {self.config.name}",
            gpus=self.config.gpus,
            workers=self.config.workers,
            threads=self.config.threads,
            without_gpus=len(names),
        )
        resources = ActorResources(placement.threads, int(placement.gpus))
        work = partial(write_part, prediction=self, threads=placement.threads, gpu=placement.gpus)
        for_each(work, names, placement.workers, resources)


@dataclass(frozen=True)
class PartRecord:
    """What a part contains: its rows, and how many of them have no prediction, as their input is blank."""

    rows: int
    without_prediction: int


def write_part(name: str, prediction: FilePrediction, threads: int, gpu: bool) -> None:
    """Predict and write a part: the columns of its rows, and those of the predictions."""
    part = prediction.parts[name]
    # Prediction does not use the task's files; `extra` is a dict, which has no hash.
    config = cast(Any, prediction.config.model_copy(update={"files": None}))  # Any: type checkers do not know its hash
    model = _model(prediction.model, config, threads, gpu)
    table = part.table.rows(part.start, part.stop)
    if len(table) != part.stop - part.start:
        raise UserError(f"{part.table.location}: has fewer rows than before; leave it as it is while it is read")
    inputs = part.table.inputs(table)
    predicted = model.predict(one for one in inputs if one is not None)
    predictions = [None if one is None else next(predicted) for one in inputs]
    for column, kind in prediction.types.items():
        values = pa.array([one and one[column] for one in predictions], kind)
        table = table.append_column(pa.field(column, kind), values)
    record = {"fingerprint": prediction.fingerprint, "without_prediction": inputs.count(None)}
    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(record).encode()}
    (prediction.to / name).write_bytes(parquet_bytes(table.replace_schema_metadata(metadata), _ROWS))


@lru_cache(maxsize=1)
def _model(folder: Location, config: TaskConfig, threads: int, gpu: bool) -> FineTunedModel:
    """One for each worker process."""
    torch.set_num_threads(threads)
    found = FineTunedModel.from_folder(folder, config)
    if gpu:
        found.model.to("cuda")
    return found
