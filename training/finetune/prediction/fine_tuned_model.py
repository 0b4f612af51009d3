"""The folder of a fine-tuned model -> predictions for new inputs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import load_tokenizer
from cloze.training.finetune.encoders.pretrained_encoder import load_fine_tuned
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import TrainedTask
from cloze.training.finetune.tasks.task_config import TaskConfig

_BATCH = 64  # rows that are computed at once
_READ_AHEAD = 1024  # inputs that are sorted by length, so that batches have little padding


class FineTunedModel:
    """A fine-tuned model with its tokenizer, ready to predict."""

    def __init__(self, model: nn.Module, task: type[TrainedTask], config: TaskConfig, head: Mapping[str, Any]) -> None:
        self.model, self.task, self.config, self.head = model.eval(), task, config, head
        self.tokenizer: Tokenizer

    @classmethod
    def from_folder(cls, folder: Location, config: TaskConfig) -> "FineTunedModel":
        """The model that the task `config` has saved in a folder. Raises UserError when it is damaged."""
        head = json.loads((folder / "config.json").read_bytes())
        task = cast(type[TrainedTask], task_of(config))
        model = load_fine_tuned(folder, task.for_inputs(config, head, []))
        found = cls(model, task, config, head)
        found.tokenizer = load_tokenizer(folder / "tokenizer.json")
        return found

    def predict(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """A prediction for each input, in order. An input has the task's columns, such as `text` and `text_b`."""
        iterator = iter(inputs)
        while rows := list(islice(iterator, _READ_AHEAD)):
            yield from self._predict(rows)

    @torch.inference_mode()
    def _predict(self, inputs: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        task = self.task.for_inputs(self.config, self.head, inputs)
        data = task.encode(self.tokenizer).splits["test"]
        device = next(self.model.parameters()).device
        order = np.argsort(data.lengths, kind="stable")
        answers: list[Any] = [None] * len(order)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            outputs = self.model(*task.inputs(data, rows, device))
            for row, answer in zip(rows, task.answers(outputs, data, rows), strict=True):
                answers[row] = answer
        return [
            {key: value for key, value in row.items() if key not in ("row", "id", "label")}
            for row in task.predictions(task.examples, answers, data).rows
        ]
