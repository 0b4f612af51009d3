"""A kind of fine-tuning task that a test adds: counting. It shows all that a new kind requires."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.task import EncodedTask, Predictions, TransformersHead
from cloze.training.finetune.tasks.task_config import SPLITS, TrainedTaskConfig
from cloze.training.model.bert import BertConfig, initialize


class CountingConfig(TrainedTaskConfig):
    kind: Literal["counting"] = "counting"
    column: str = "label"


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as token ids, with a number each."""

    ids: Ragged
    targets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.ids.lengths


@dataclass(frozen=True)
class NumberedText:
    row: int
    text: str
    label: float
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
    split_kind: ClassVar[type] = EncodedTexts
    skipped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, config: CountingConfig, files: Mapping[str, Location]) -> "Counting":
        location = files["data"]
        rows = map(json.loads, location.read_text().splitlines())
        examples = [
            NumberedText(row_number, row["text"], float(row[config.column] == "shape"), row["split"])
            for row_number, row in enumerate(rows, start=1)
        ]
        if not any(example.label for example in examples):
            raise UserError(f"{location}: every {config.column} is 0; give some that are not")
        return cls(config, examples)

    def encode(self, tokenizer: Any) -> EncodedTask:
        def encoded(split: str) -> EncodedTexts:
            chosen = [example for example in self.examples if example.split == split]
            ids = [tokenizer.encode(example.text).ids for example in chosen]
            flat = np.array(list(itertools.chain(*ids)), np.int64)
            ragged = Ragged(flat, offsets_of([len(row) for row in ids]))
            return EncodedTexts(ragged, np.array([example.label for example in chosen], np.float32))

        return EncodedTask({split: encoded(split) for split in SPLITS}, 0)

    @property
    def scored_split(self) -> str:
        return "test"

    def model(self, encoder: nn.Module, config: BertConfig) -> nn.Module:
        return Counter(encoder, config, self.config.seed)

    def inputs(self, data: EncodedTexts, rows: np.ndarray, device: torch.device) -> list[torch.Tensor]:
        ids = [torch.tensor(data.ids.take(np.array([row])).values, device=device) for row in rows]
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

    def predictions(self, examples: Sequence[NumberedText], answers: Sequence[float], data: Any) -> Predictions:
        pairs = zip(examples, answers, strict=True)
        rows = [{"row": example.row, "label": example.label, "predicted": answer} for example, answer in pairs]
        return Predictions(rows, {"column.txt": self.config.column.encode()})

    def scores(self, examples: Sequence[NumberedText], predicted: Sequence[float]) -> dict[str, Any]:
        pairs = zip(examples, predicted, strict=True)
        return {"error": sum((example.label - answer) ** 2 for example, answer in pairs) / len(examples)}

    def baselines(self, examples: Sequence[NumberedText]) -> dict[str, list[float]]:
        return {"mean": [0.5] * len(examples)}

    def texts(self, example: NumberedText) -> list[tuple[str, str]]:
        return [("text", example.text)]

    def sample(self, example: NumberedText, predicted: Any) -> dict[str, Any]:
        return {"text": example.text, "label": example.label}

    def facts(self) -> dict[str, Any]:
        return {"shapes": sum(example.label for example in self.examples)}

    def head(self) -> TransformersHead:
        return TransformersHead("ForCounting", {})
