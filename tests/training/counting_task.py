"""A kind of fine-tuning task that a test adds: counting. It shows all that a new kind requires."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.task import SPLITS, EncodedTask, TrainedTaskConfig, TransformersHead
from cloze.training.model.bert import BertConfig, initialize


class CountingConfig(TrainedTaskConfig):
    kind: Literal["counting"] = "counting"
    column: str = "label"


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids, with a number each."""

    ids: list[list[int]]
    targets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.ids])


@dataclass(frozen=True)
class NumberedText:
    row: int
    text: str
    number: float
    split: str


class Counter(nn.Module):
    def __init__(self, encoder: nn.Module, config: BertConfig, seed: int) -> None:
        super().__init__()
        self.bert = encoder
        self.head = nn.Linear(config.hidden_size, 1)
        initialize(self, 0.02, seed)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        _, pooled = self.bert(ids, torch.zeros_like(ids), ids > 0)
        return self.head(pooled)[:, 0].float()


@dataclass(frozen=True)
class Counting:
    """Predicts a number for each text, here 1 for a shape and 0 for a colour, by the mean squared error."""

    config: CountingConfig
    examples: list[NumberedText]

    @classmethod
    def read(cls, config: CountingConfig, files: Mapping[str, Location]) -> "Counting":
        location = files["data"]
        rows = map(json.loads, location.read_text().splitlines())
        examples = [
            NumberedText(row_number, row["text"], float(row[config.column] == "shape"), row["split"])
            for row_number, row in enumerate(rows, start=1)
        ]
        if not any(example.number for example in examples):
            raise UserError(f"{location}: every {config.column} is 0; give some that are not")
        return cls(config, examples)

    def encode(self, tokenizer: Any) -> EncodedTask:
        def encoded(split: str) -> EncodedTexts:
            chosen = [example for example in self.examples if example.split == split]
            ids = [tokenizer.encode(example.text).ids for example in chosen]
            return EncodedTexts(ids, np.array([example.number for example in chosen], np.float32))

        return EncodedTask({split: encoded(split) for split in SPLITS}, 0)

    @property
    def scored_split(self) -> str:
        return "test"

    def model(self, encoder: nn.Module, config: BertConfig) -> nn.Module:
        return Counter(encoder, config, self.config.seed)

    def inputs(self, data: EncodedTexts, rows: np.ndarray, device: torch.device) -> list[torch.Tensor]:
        ids = [torch.tensor(data.ids[row], device=device) for row in rows]
        return [nn.utils.rnn.pad_sequence(ids, batch_first=True)]

    def loss(self, outputs: torch.Tensor, data: EncodedTexts, rows: np.ndarray) -> torch.Tensor:
        return ((outputs - torch.from_numpy(data.targets[rows]).to(outputs.device)) ** 2).sum()

    def loss_terms(self, data: EncodedTexts, rows: np.ndarray) -> int:
        return len(rows)

    def answers(self, outputs: torch.Tensor, data: EncodedTexts, rows: np.ndarray) -> list[float]:
        return outputs.tolist()

    def evaluate(self, answers: Sequence[float], data: EncodedTexts) -> dict[str, float]:
        return {"error": float(np.mean((np.array(answers) - data.targets) ** 2))}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float]:
        return (-metrics["error"],)

    def predictions(
        self, examples: Sequence[NumberedText], answers: Sequence[float], data: Any
    ) -> list[dict[str, Any]]:
        pairs = zip(examples, answers, strict=True)
        return [{"row": example.row, "label": example.number, "predicted": answer} for example, answer in pairs]

    def scores(self, examples: Sequence[NumberedText], predicted: Sequence[float]) -> dict[str, Any]:
        pairs = zip(examples, predicted, strict=True)
        return {"error": sum((example.number - answer) ** 2 for example, answer in pairs) / len(examples)}

    def baselines(self, examples: Sequence[NumberedText]) -> dict[str, list[float]]:
        return {"mean": [0.5] * len(examples)}

    def texts(self, example: NumberedText) -> list[tuple[str, str]]:
        return [("text", example.text)]

    def sample(self, example: NumberedText) -> dict[str, Any]:
        return {"text": example.text, "label": example.number}

    def facts(self) -> dict[str, Any]:
        return {"shapes": sum(example.number for example in self.examples)}

    def prediction_files(
        self, split: str, predictions: Sequence[Mapping[str, Any]], answers: Sequence[float], data: Any
    ) -> dict[str, bytes]:
        return {"column.txt": self.config.column.encode()}

    def head(self) -> TransformersHead:
        return TransformersHead("ForCounting", {})
