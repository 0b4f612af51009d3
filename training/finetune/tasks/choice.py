"""A file of contexts with several choices each -> [CLS] context [SEP] choice [SEP] -> the choice that fits best."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.baselines import bag_of_words_choice, majority
from cloze.training.finetune.heads import ChoiceClassifier
from cloze.training.finetune.metrics.classification import accuracy
from cloze.training.finetune.tasks.choice_files import DATASETS, ChoiceColumns, ChoiceExample, read_choices
from cloze.training.finetune.tasks.labelled_files import check_splits, scored_split, with_splits
from cloze.training.finetune.tasks.published_scores import published_fact
from cloze.training.finetune.tasks.task import (
    EncodedTask,
    InputColumns,
    Predictions,
    RowIndices,
    TransformersHead,
    score_facts,
    splits_of,
)
from cloze.training.finetune.tasks.task_config import Column, TrainedTaskConfig
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


_SHOWN_CHARS = 60


class ChoiceConfig(TrainedTaskConfig):
    """Choice: a file of contexts, each with the same number of choices, of which one is right."""

    kind: Literal["choice"] = "choice"
    """Kind of the task."""
    columns: ChoiceColumns = ChoiceColumns()
    """The columns of the file."""
    dataset: Literal["SWAG"] | None = None
    """The dataset whose published files these are; it sets the columns."""
    skip_invalid: bool = False
    """Leave out rows with an empty text, another number of choices or an invalid label, and count them, in place of an
    error."""

    @property
    def file_columns(self) -> ChoiceColumns:
        """The columns of the files: those of the dataset, or the user's."""
        return DATASETS[self.dataset] if self.dataset else self.columns


@dataclass(frozen=True)
class EncodedChoices:
    """The examples of one split: a row for each choice, those of an example next to each other; and the number of the
    right choice of each example [n], -1 without a label."""

    texts: TextInputs
    targets: NDArray[np.int64]
    choices: int  # of each example

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each example's longest row."""
        return self.texts.lengths.reshape(-1, self.choices).max(1)


@dataclass(frozen=True)
class Choice:
    """The task of predicting which choice fits its context."""

    config: ChoiceConfig
    examples: list[ChoiceExample]
    choices: int  # of each example
    skipped: Mapping[str, int]  # invalid rows that were left out, by reason
    split_kind: ClassVar[type] = EncodedChoices

    @classmethod
    def read(cls, config: ChoiceConfig, files: Mapping[str, Location]) -> Self:
        where = next(iter(files.values()))
        skipped = Counter[str]() if config.skip_invalid else None
        examples = with_splits(
            read_choices(config.file_columns, files, skipped), config.seed, lambda example: example.label
        )
        check_splits(examples, where)
        if len({example.label for example in examples if example.split == "train"}) < 2:
            raise UserError(f"{where}: train has one label only, the same number for all rows; shuffle the choices")
        return cls(config, examples, len(examples[0].choices), dict(skipped or {}))

    @classmethod
    def for_inputs(cls, config: ChoiceConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        """The task of new contexts: their choices are `choice0`, `choice1` and so on, or a list, `choices`; each may
        begin with `choice_start`."""
        choices = int(head["num_choices"])
        examples = [
            ChoiceExample(row, "test", None, one["context"], _choices_of_input(one, choices))
            for row, one in enumerate(inputs, start=1)
        ]
        return cls(config, examples, choices, {})

    @classmethod
    def input_names(cls, config: ChoiceConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("context", *_choice_names(int(head["num_choices"])))

    @classmethod
    def input_columns(cls, config: ChoiceConfig, head: Mapping[str, Any]) -> InputColumns:
        columns = config.file_columns
        found: dict[str, list[Column]] = {"context": [columns.context]}
        if columns.choice_start is not None:
            found["choice_start"] = [columns.choice_start]
        if not isinstance(columns.choices, tuple):
            return {**found, "choices": [columns.choices]}
        return found | {f"choice{number}": [column] for number, column in enumerate(columns.choices)}

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.int64(), "probabilities": pa.list_(pa.float64())}

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        """The splits as token ids. The truncated ones are counted as choices."""
        splits, truncated = dict[str, EncodedChoices](), 0
        for split in splits_of(self.examples):
            examples = [example for example in self.examples if example.split == split]
            texts, shortened = encode_texts(tokenizer, *_pairs(examples), self.config.max_seq_length)
            targets = [-1 if example.label is None else example.label for example in examples]
            splits[split] = EncodedChoices(texts, np.array(targets, np.int64), self.choices)
            truncated += shortened
        return EncodedTask(splits, truncated)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return ChoiceClassifier(encoder, config, self.choices, self.config.seed)

    def inputs(self, data: EncodedChoices, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask, each [batch * choices, length of the longest row]."""
        rows_of_choices = (rows[:, None] * data.choices + np.arange(data.choices)).reshape(-1)
        return data.texts.batch(rows_of_choices, device)

    def loss(self, outputs: Tensor, data: EncodedChoices, rows: RowIndices) -> Tensor:
        """The sum of the cross-entropies of logits [batch, choices]."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return functional.cross_entropy(outputs, targets, reduction="sum")

    def loss_terms(self, data: EncodedChoices, rows: RowIndices) -> int:
        return len(rows)

    def answers(self, outputs: Tensor, data: EncodedChoices, rows: RowIndices) -> list[NDArray[np.float32]]:
        """The probability of each choice [choices] for each example."""
        return list(outputs.softmax(-1).cpu().numpy())

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: EncodedChoices) -> dict[str, float]:
        """The accuracy, and the mean negative log likelihood of the right choices."""
        probabilities = np.stack(answers)  # [n, choices]
        right = probabilities[np.arange(len(data.targets)), data.targets].astype(np.float64)
        hits = (probabilities.argmax(-1) == data.targets).mean()
        return {"accuracy": float(hits), "loss": float(-np.log(right.clip(min=1e-12)).mean())}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The accuracy, then the lower loss."""
        return metrics["accuracy"], -metrics["loss"]

    def predictions(
        self, examples: Sequence[ChoiceExample], answers: Sequence[NDArray[np.float32]], data: EncodedChoices
    ) -> Predictions:
        rows = [
            {
                "row": example.row,
                "label": example.label,
                "predicted": int(values.argmax()),
                "probabilities": [round(float(value), 6) for value in values],
            }
            for example, values in zip(examples, answers, strict=True)
        ]
        return Predictions(rows)

    def scores(self, examples: Sequence[ChoiceExample], predicted: Sequence[int]) -> dict[str, Any]:
        return score_facts({"accuracy": accuracy([example.label for example in examples], predicted)}, "accuracy")

    def baselines(self, examples: Sequence[ChoiceExample]) -> dict[str, list[Any]]:
        """The most frequent number of train (chance, if the choices are in random order), and a bag of words."""
        train = [example for example in self.examples if example.split == "train"]
        is_right = [number == example.label for example in train for number in range(self.choices)]
        return {
            "majority": majority([example.label for example in train], len(examples)),
            "bag_of_words": bag_of_words_choice(_pairs(train), is_right, _pairs(examples), self.choices),
        }

    def texts(self, example: ChoiceExample) -> list[tuple[str, str]]:
        return [("context", example.context), *(("choice", choice) for choice in example.choices)]

    def sample(self, example: ChoiceExample, predicted: Any) -> dict[str, Any]:
        choices = (f"{number}: {choice}" for number, choice in enumerate(example.choices))
        return {"text": " / ".join((example.context, *choices)), "label": example.label}

    def facts(self) -> dict[str, Any]:
        labels = {
            split: Counter(one.label for one in self.examples if one.split == split and one.label is not None)
            for split in splits_of(self.examples)
        }
        names = range(self.choices)
        return {
            "labels": {split: {str(name): counts[name] for name in names} for split, counts in labels.items()},
            "skipped": dict(self.skipped),
            **published_fact(self.config.dataset),
        }

    def head(self) -> TransformersHead:
        return TransformersHead("ForMultipleChoice", {"num_choices": self.choices})


def _pairs(examples: Sequence[ChoiceExample]) -> tuple[list[str], list[str]]:
    """The context and the text of each choice of each example."""
    contexts = [example.context for example in examples for _ in example.choices]
    return contexts, [choice for example in examples for choice in example.choices]


def _choice_names(choices: int) -> list[str]:
    """The names of an input's choices."""
    return [f"choice{number}" for number in range(choices)]


def _choices_of_input(one: Mapping[str, Any], choices: int) -> tuple[str, ...]:
    """The texts of an input's choices. Raises UserError for another number than the model was trained with."""
    texts = one["choices"] if "choices" in one else [one[name] for name in _choice_names(choices)]
    if len(texts) != choices:
        raise UserError(
            f"the context {one['context'][:_SHOWN_CHARS]!r} has {len(texts)} choices; give {choices}, as in training"
        )
    start = f"{one['choice_start']} ".lstrip() if "choice_start" in one else ""
    return tuple(f"{start}{text}" for text in texts)
