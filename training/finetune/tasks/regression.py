"""A labelled file -> [CLS] text [SEP] text_b [SEP] -> a number for each, such as the similarity of two sentences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.heads import SequenceClassifier
from cloze.training.finetune.metrics.correlation import pearson, spearman
from cloze.training.finetune.tasks import glue
from cloze.training.finetune.tasks.invalid_rows import InvalidRow
from cloze.training.finetune.tasks.labelled_files import check_splits, scored_split, with_splits
from cloze.training.finetune.tasks.labelled_texts import (
    EncodedTexts,
    LabelledColumns,
    LabelledText,
    encode_examples,
    read_texts,
    text_columns,
    text_names,
)
from cloze.training.finetune.tasks.task import (
    EncodedTask,
    InputColumns,
    Predictions,
    RowIndices,
    TransformersHead,
    score_facts,
)
from cloze.training.finetune.tasks.task_config import TrainedTaskConfig, Training

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


class RegressionConfig(TrainedTaskConfig):
    """Regression: a file of texts, or of pairs of texts, each with one number."""

    kind: Literal["regression"] = "regression"
    """Kind of the task."""
    columns: LabelledColumns = LabelledColumns()
    """The columns of the file; `label` is the number."""
    glue: Literal["STS-B"] | None = None
    """The GLUE task whose published files these are; it sets the columns."""
    metric: Annotated[Literal["spearman", "pearson"], Training] = "spearman"
    """The correlation by which epochs and trials are compared."""
    skip_invalid: bool = False
    """Leave out rows with an empty text, with another number of columns or with a label that is not a number, and count
    them, in place of an error."""


@dataclass(frozen=True)
class Regression:
    """The task of predicting the number of each text or pair of texts, by the mean squared error."""

    config: RegressionConfig
    examples: list[LabelledText]  # labels are numbers
    skipped: Mapping[str, int] = field(default_factory=dict)  # invalid rows that were left out, by reason
    split_kind: ClassVar[type] = EncodedTexts

    @classmethod
    def read(cls, config: RegressionConfig, files: Mapping[str, Location]) -> Self:
        where = next(iter(files.values()))
        layout = glue.layout_of(config.glue)
        skipped = Counter[str]() if config.skip_invalid else None
        texts = read_texts(config.columns, layout, files, _number, skipped)
        examples = with_splits(texts, config.seed, lambda example: 0)
        check_splits(examples, where)
        if len({example.label for example in examples if example.split == "train"}) < 2:
            raise UserError(f"{where}: all numbers of train are equal; give examples with at least two")
        return cls(config, examples, dict(skipped or {}))

    @classmethod
    def for_inputs(cls, config: RegressionConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        return cls(config, LabelledText.of_inputs(inputs))

    @classmethod
    def input_names(cls, config: RegressionConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return text_names(config.columns, glue.layout_of(config.glue))

    @classmethod
    def input_columns(cls, config: RegressionConfig, head: Mapping[str, Any]) -> InputColumns:
        return text_columns(config.columns.text, config.columns.text_b, glue.layout_of(config.glue))

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.float64()}

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        return encode_examples(self.examples, tokenizer, self.config.max_seq_length, self._targets)

    def _targets(self, examples: Sequence[LabelledText]) -> NDArray[np.float32]:
        """The numbers [n], NaN without one."""
        return np.array([math.nan if one.label is None else one.label for one in examples], np.float32)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return SequenceClassifier(encoder, config, 1, self.config.seed)

    def inputs(self, data: EncodedTexts, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return data.texts.batch(rows, device)

    def loss(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> Tensor:
        """The sum of the squared errors of outputs [batch, 1]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return (outputs[:, 0] - targets).square().sum()

    def loss_terms(self, data: EncodedTexts, rows: RowIndices) -> int:
        return len(rows)

    def answers(self, outputs: Tensor, data: EncodedTexts, rows: RowIndices) -> list[float]:
        """The number of each example."""
        return outputs[:, 0].tolist()

    def evaluate(self, answers: Sequence[float], data: EncodedTexts) -> dict[str, float]:
        """The two correlations and the mean squared error."""
        targets = data.targets.tolist()
        loss = float(np.mean((np.array(answers) - data.targets) ** 2))
        return {"spearman": spearman(targets, answers).value, "pearson": pearson(targets, answers).value, "loss": loss}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The task's metric, then the lower loss."""
        return metrics[self.config.metric], -metrics["loss"]

    def predictions(
        self, examples: Sequence[LabelledText], answers: Sequence[float], data: EncodedTexts
    ) -> Predictions:
        pairs = zip(examples, answers, strict=True)
        rows = [{"row": one.row, "label": one.label, "predicted": float(f"{answer:.7g}")} for one, answer in pairs]
        return Predictions(rows, glue.submission_files(self.config.glue, examples, rows))

    def scores(self, examples: Sequence[LabelledText], predicted: Sequence[float]) -> dict[str, Any]:
        truth = [example.label for example in examples]
        found = {"spearman": spearman(truth, predicted), "pearson": pearson(truth, predicted)}
        return score_facts(found, self.config.metric)

    def baselines(self, examples: Sequence[LabelledText]) -> dict[str, list[Any]]:
        """None: the mean of train has no correlation."""
        return {}

    def texts(self, example: LabelledText) -> list[tuple[str, str]]:
        return example.named_texts()

    def sample(self, example: LabelledText, predicted: Any) -> dict[str, Any]:
        return example.sample()

    def facts(self) -> dict[str, Any]:
        return {"skipped": dict(self.skipped), **(glue.paper_fact(self.config.glue) if self.config.glue else {})}

    def head(self) -> TransformersHead:
        return TransformersHead("ForSequenceClassification", {"num_labels": 1, "problem_type": "regression"})


def _number(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRow(f"{where}: the label {text!r} is not a number; correct it or delete the row", "invalid label")
    return number
