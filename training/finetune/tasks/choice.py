"""A file of contexts with several choices each -> [CLS] context [SEP] choice [SEP] -> the choice that fits best."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.baselines import majority
from cloze.training.finetune.heads import ChoiceClassifier
from cloze.training.finetune.metrics.classification import accuracy
from cloze.training.finetune.tasks.glue import NO_LABEL
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import (
    LabelledExample,
    LabelledRow,
    check_splits,
    read_rows,
    scored_split,
    with_splits,
)
from cloze.training.finetune.tasks.task import (
    SPLITS,
    Column,
    EncodedTask,
    RowIndices,
    TrainedTaskConfig,
    TransformersHead,
    score_facts,
)
from cloze.training.finetune.tasks.text_inputs import TextInputs, encode_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


class ChoiceColumns(Config):
    """The columns of the labelled file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    context: Column = "context"
    """Column with the text before the choices."""
    choice_start: Column | None = None
    """Column with the text that every choice begins with: the choices continue it."""
    choices: Column | tuple[Column, ...] = "choices"
    """Column with the list of choices (JSON lines and Parquet), or a column for each."""
    label: Column = "label"
    """Column with the number of the right choice, from 0."""
    split: Column = "split"
    """Column with the split: train, dev or test."""


_DATASETS = {
    "SWAG": ChoiceColumns(
        context="sent1", choice_start="sent2", choices=("ending0", "ending1", "ending2", "ending3"), label="label"
    )
}


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


@dataclass(frozen=True)
class ChoiceExample(LabelledExample):
    """A context and its choices, with the text that each begins with; `label` is the number of the right one."""

    context: str
    choices: tuple[str, ...]


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

    @classmethod
    def read(cls, config: ChoiceConfig, files: Mapping[str, Location]) -> Self:
        where = next(iter(files.values()))
        skipped = Counter[str]() if config.skip_invalid else None
        examples = with_splits(read_choices(config, files, skipped), config.seed, lambda example: example.label)
        check_splits(examples, where)
        if len({example.label for example in examples if example.split == "train"}) < 2:
            raise UserError(f"{where}: train has one label only, the same number for all rows; shuffle the choices")
        return cls(config, examples, len(examples[0].choices), dict(skipped or {}))

    @classmethod
    def for_inputs(cls, config: ChoiceConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        choices = int(head["num_choices"])
        examples = [
            ChoiceExample(row, "test", None, one["context"], tuple(one[name] for name in _choice_names(choices)))
            for row, one in enumerate(inputs, start=1)
        ]
        return cls(config, examples, choices, {})

    @classmethod
    def input_names(cls, config: ChoiceConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("context", *_choice_names(int(head["num_choices"])))

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        """The splits as token ids. The truncated ones are counted as choices."""
        splits, truncated = dict[str, EncodedChoices](), 0
        for split in SPLITS:
            examples = [example for example in self.examples if example.split == split]
            texts, shortened = encode_texts(
                tokenizer,
                [example.context for example in examples for _ in example.choices],
                [choice for example in examples for choice in example.choices],
                self.config.max_seq_length,
            )
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
    ) -> list[dict[str, Any]]:
        return [
            {
                "row": example.row,
                "label": example.label,
                "predicted": int(values.argmax()),
                "probabilities": [round(float(value), 6) for value in values],
            }
            for example, values in zip(examples, answers, strict=True)
        ]

    def prediction_files(
        self, split: str, predictions: Sequence[Mapping[str, Any]], answers: Sequence[Any], data: Any
    ) -> dict[str, bytes]:
        return {}

    def scores(self, examples: Sequence[ChoiceExample], predicted: Sequence[int]) -> dict[str, Any]:
        return score_facts({"accuracy": accuracy([example.label for example in examples], predicted)}, "accuracy")

    def baselines(self, examples: Sequence[ChoiceExample]) -> dict[str, list[Any]]:
        """The most frequent number of train: chance, if the choices are in random order."""
        train = [example.label for example in self.examples if example.split == "train"]
        return {"majority": majority(train, len(examples))}

    def texts(self, example: ChoiceExample) -> list[tuple[str, str]]:
        return [("context", example.context), *(("choice", choice) for choice in example.choices)]

    def sample(self, example: ChoiceExample) -> dict[str, Any]:
        choices = (f"{number}: {choice}" for number, choice in enumerate(example.choices))
        return {"text": " / ".join((example.context, *choices)), "label": example.label}

    def facts(self) -> dict[str, Any]:
        labels = {
            split: Counter(one.label for one in self.examples if one.split == split and one.label is not None)
            for split in SPLITS
        }
        names = range(self.choices)
        return {
            "labels": {split: {str(name): counts[name] for name in names} for split, counts in labels.items()},
            "skipped": dict(self.skipped),
        }

    def head(self) -> TransformersHead:
        return TransformersHead("ForMultipleChoice", {"num_choices": self.choices})


def _choice_names(choices: int) -> list[str]:
    """The names of an input's choices."""
    return [f"choice{number}" for number in range(choices)]


def read_choices(
    config: ChoiceConfig, files: Mapping[str, Location], skipped: Counter[str] | None
) -> list[ChoiceExample]:
    """The examples of the labelled files, in their order; the split is empty where it is still to be drawn.

    Invalid rows are counted in `skipped` by reason; without it, and for any other fault, raises UserError.
    """
    columns = _DATASETS[config.dataset] if config.dataset else config.columns
    listed = columns.choices if isinstance(columns.choices, tuple) else (columns.choices,)
    texts = [columns.context, *([] if columns.choice_start is None else [columns.choice_start]), *listed]
    rows = read_rows(
        files,
        texts,
        label_columns=[columns.label],
        split_column=columns.split,
        splits_are_named="split" in config.columns.model_fields_set,
        skipped=skipped,
    )
    counts = Counter(len(_choices(row, columns)) for row in rows)
    expected = counts.most_common(1)[0][0] if counts else 0
    return valid_rows(rows, partial(_example, columns=columns, expected=expected), skipped)


def _example(row: LabelledRow, columns: ChoiceColumns, expected: int) -> ChoiceExample:
    """The example of a row. Raises InvalidRow."""
    choices = _choices(row, columns)
    if len(choices) != expected or expected < 2:
        raise InvalidRow(
            f"{row.where}: has {len(choices)} choices, most rows have {expected}; give each row the same number, at "
            "least 2",
            "other number of choices",
        )
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise InvalidRow(f"{row.where}: choice {number} is {choice!r}; write its text", "empty text")
    start = "" if columns.choice_start is None else f"{row.values[columns.choice_start] or ''} ".lstrip()
    texts = tuple(f"{start}{choice}" for choice in choices)
    label = _label(row, columns.label, expected)
    return ChoiceExample(row.number, row.split, label, row.text(columns.context), texts, where=row.where)


def _choices(row: LabelledRow, columns: ChoiceColumns) -> list[Any]:
    """The values of the row's choices; none if its column has no list."""
    if isinstance(columns.choices, tuple):
        return [row.values[column] for column in columns.choices]
    value = row.values[columns.choices]
    return value if isinstance(value, list) else []


def _label(row: LabelledRow, column: Column, choices: int) -> int | None:
    """The number of the right choice, or None for a row of test without one."""
    text = str(row.values.get(column, "")).strip()
    if row.split == "test" and text in ("", "None", NO_LABEL):
        return None
    if not text.isdecimal() or int(text) >= choices:
        raise InvalidRow(
            f"{row.where}: {column} is {text!r}; write the number of the right choice, from 0 to {choices - 1}",
            "invalid label",
        )
    return int(text)
