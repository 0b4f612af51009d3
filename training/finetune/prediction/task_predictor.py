"""A fine-tuned model -> columns with its predictions for the rows of tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pyarrow as pa

from cloze.pipeline.core.storage import Location
from cloze.training.finetune.prediction.file_prediction import ComputeColumns
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import InputColumns, TrainedTask
from cloze.training.finetune.tasks.task_config import TaskConfig


@dataclass(frozen=True)
class TaskPredictor:
    """The Predictor (see file_prediction.py) of a task's fine-tuned model."""

    folder: Location
    config: TaskConfig
    input_columns: InputColumns = field(compare=False)
    types: Mapping[str, pa.DataType] = field(compare=False)
    summary_file: str = "_predictions.json"

    @classmethod
    def of(cls, folder: Location, config: TaskConfig) -> "TaskPredictor":
        """Without the task's files, which prediction does not use: `extra` is a dict, which has no hash."""
        task = cast(type[TrainedTask], task_of(config))
        head = json.loads((folder / "config.json").read_bytes())
        without_files = config.model_copy(update={"files": None})
        return cls(folder, without_files, task.input_columns(without_files, head), task.prediction_types(head))

    @property
    def name(self) -> str:
        return f"predict {self.config.name}"

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    @property
    def gpus(self) -> int | Literal["auto"]:
        return self.config.gpus

    @property
    def workers(self) -> int | None:
        return self.config.workers

    @property
    def threads(self) -> int:
        return self.config.threads

    def load(self, *, gpu: bool) -> ComputeColumns:
        model, types = FineTunedModel.from_folder(self.folder, self.config), self.types
        if gpu:
            model.model.to("cuda")

        def compute(inputs: Sequence[Mapping[str, Any] | None]) -> tuple[dict[str, pa.Array], dict[str, int]]:
            predicted = model.predict(one for one in inputs if one is not None)
            predictions = [None if one is None else next(predicted) for one in inputs]
            columns = {name: pa.array([one and one[name] for one in predictions], kind) for name, kind in types.items()}
            return columns, {"without_prediction": inputs.count(None)}

        return compute
