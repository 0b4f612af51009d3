"""The interface of all fine-tuning tasks, which the stages, trainer.py and the predictions call.

A new kind of task is a file next to this one, with its TaskConfig and its `Task`, and an entry in registry.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.task_config import SPLITS, Column

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from cloze.training.finetune.metrics.estimates import Estimate
    from cloze.training.model.bert import BertConfig

RowIndices = NDArray[np.int64]  # of examples within their split


class TaskExample(Protocol):
    """A row of the labelled file; `row` is its number there, from 1."""

    @property
    def row(self) -> int: ...

    @property
    def split(self) -> str:
        """train, dev, test or the name of an extra file."""
        ...

    @property
    def label(self) -> Any:
        """None without a label."""
        ...


def splits_of(examples: Iterable[TaskExample]) -> list[str]:
    """train, dev and test, then the names of the extra files."""
    return list(dict.fromkeys((*SPLITS, *(example.split for example in examples))))


class EncodedSplit(Protocol):
    """The examples of one split as token ids: a dataclass of arrays, Ragged, numbers and such dataclasses, which
    encoded_files.py stores."""

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each row [n], by which rows are batched. A long example may be several rows."""
        ...


@dataclass(frozen=True)
class EncodedTask:
    """A task's splits as token ids."""

    splits: Mapping[str, EncodedSplit]  # those that have examples, at least
    truncated: int  # examples that were longer than max_seq_length
    counts: Mapping[str, int] = field(default_factory=dict)  # others for the manifest, by name


#: Name of an input's value -> the columns that may have it: the first that exists does.
InputColumns = Mapping[str, Sequence[Column]]


class Predictions(NamedTuple):
    """The predictions for a split: a row for each example, and name -> content of files in which other programs read
    them, such as GLUE's submissions."""

    rows: list[dict[str, Any]]
    files: Mapping[str, bytes] = {}


class Task(Protocol):
    """A fine-tuning task: how its files become token ids, and how predictions are scored.

    The driver creates it and sends it to every worker. A prediction is a row of predictions.jsonl for an example, with
    the true value as `label` and the model's as `predicted`; it is correct where they are equal.
    """

    split_kind: ClassVar[type]  # the class of its encoded splits, an EncodedSplit

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of rows that were left out as invalid, by reason."""
        ...

    @property
    def config(self) -> Any:
        """The TaskConfig."""
        ...

    @property
    def examples(self) -> Sequence[Any]:
        """The `TaskExample`s of all splits, in the files' order. Train and dev have some; test may have none."""
        ...

    @property
    def scored_split(self) -> str:
        """The split whose scores are the task's: "test", or "dev" if there are no labelled test examples."""
        ...

    @classmethod
    def read(cls, config: Any, files: Mapping[str, Location]) -> Self:
        """The task of its labelled files: "data" -> the only one, or train, dev, test and extra names -> theirs.

        Raises UserError when a file cannot be read, learned from or scored.
        """
        ...

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask: ...

    def scores(self, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
        """The scores of predictions as `score_facts` returns them: the task's metric is the first.

        `predicted`: of each example the value that `config.scored_value` names, and so are those of `baselines`.
        """
        ...

    def baselines(self, examples: Sequence[Any]) -> dict[str, list[Any]]:
        """Predictions for these examples without a model, fitted on train: name of the baseline -> predictions."""
        ...

    def texts(self, example: Any) -> list[tuple[str, str]]:
        """The texts that an example consists of, each after its name, such as "question" or "context"."""
        ...

    def sample(self, example: Any, predicted: Any) -> dict[str, Any]:
        """An example as the report shows it beside its prediction: `text` and `label`, equal to a right prediction."""
        ...

    def facts(self) -> dict[str, Any]:
        """The task's own facts for the manifest, under names that FinetuneFacts does not use; the report shows
        `labels`."""
        ...


class ModelTask(Task, Protocol):
    """A task with a model of its own on the encoder, whose answers become predictions.

    An answer is the model's output for one row of an EncodedSplit, in the form that the task chooses, such as the
    probability of each label.
    """

    def model(self, encoder: "nn.Module", config: "BertConfig") -> "nn.Module":
        """The task's model on an encoder, as `bert`. All of its weights are random, from the task's seed."""
        ...

    def inputs(self, data: Any, rows: RowIndices, device: "torch.device") -> Sequence["Tensor"]:
        """The model's arguments for some rows of an `EncodedSplit`."""
        ...

    def answers(self, outputs: Any, data: Any, rows: RowIndices) -> Sequence[Any]:
        """An answer for each of these rows, from the model's outputs for them."""
        ...

    def predictions(self, examples: Sequence[Any], answers: Sequence[Any], data: Any) -> "Predictions":
        """The predictions for the examples of a split, from the answers for the rows of its EncodedSplit."""
        ...

    def head(self) -> "TransformersHead | None":
        """How transformers loads the fine-tuned model; None if the task trains nothing, and no model is saved."""
        ...


class TrainedTask(ModelTask, Protocol):
    """A task with training, whose model is saved and predicts new inputs. Its configuration is a TrainedTaskConfig."""

    @classmethod
    def for_inputs(cls, config: Any, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        """The task of new inputs, which become unlabelled examples of the split test.

        `head` is the config.json of the fine-tuned model, with the settings of `head()`. An input has the names of
        `input_names`. Raises UserError for an input that lacks one.
        """
        ...

    @classmethod
    def input_names(cls, config: Any, head: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of an input's values, in the order of a line with tabs: ("text",) or ("text", "text_b").

        `head`: see `for_inputs`.
        """
        ...

    @classmethod
    def input_columns(cls, config: Any, head: Mapping[str, Any]) -> "InputColumns":
        """The columns of a table that have an input's values: those of the labelled files."""
        ...

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> "Mapping[str, pa.DataType]":
        """The types of a prediction's values, by name; those that are part of the input are left out."""
        ...

    def loss(self, outputs: Any, data: Any, rows: RowIndices) -> "Tensor":
        """The sum of the rows' losses, from the model's outputs for these: a batch, if `config.loss_of_batch`."""
        ...

    def loss_terms(self, data: Any, rows: RowIndices) -> float:
        """The number of losses in the sum that `loss` returns for these rows: a step's loss is their mean."""
        ...

    def evaluate(self, answers: Sequence[Any], data: Any) -> dict[str, float]:
        """The metrics of the dev split during training, by name. The report plots the task's metric and the loss."""
        ...

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The dev metrics as a key by which epochs and trials are compared: the greatest is the best."""
        ...


def score_facts(scores: Mapping[str, "Estimate"], metric: str) -> dict[str, Any]:
    """Scores by name -> their values, `metric` first, then its `interval` of 95 % and the `intervals` of all."""
    ordered = {metric: scores[metric], **scores}
    intervals = {name: [score.low, score.high] for name, score in ordered.items()}
    values = {name: score.value for name, score in ordered.items()}
    return {**values, "interval": intervals[metric], "intervals": intervals}


class MissingHead(UserError):
    """The pretrained model has no masked-LM head, or no mask token."""


class TransformersHead(NamedTuple):
    """What a fine-tuned model's config.json says of its head."""

    class_name: str  # after the architecture's name: "ForSequenceClassification"
    settings: Mapping[str, Any]  # id2label, label2id, problem_type
    has_pooler: bool = True  # whether the head takes the pooled [CLS]
