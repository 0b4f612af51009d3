"""The base of all fine-tuning tasks: the configuration, and the interface that stage.py and trainer.py call.

A new kind of task is a file next to this one, with its configuration and its `Task`, and an entry in registry.py.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, field_validator, model_validator

from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import is_digest, weights_files

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from cloze.training.finetune.metrics.estimates import Estimate
    from cloze.training.model.bert import BertConfig

SPLITS = ("train", "dev", "test")

Column = str | int  # a column's name, or its number, from 1, in a file without a header

# The inputs of a task's stages, and the counts of encode next to those of splits: no extra file may have these names.
_INPUTS = (*SPLITS, "data", "init", "checkpoint", "vocab", "tokenizer", "encoded", "finetuned")
_COUNTS = ("rows", "truncated", "divided_sentences", "words_without_pieces")
_ExtraName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]

RowIndices = NDArray[np.int64]  # of examples within their split


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_Positive = Annotated[int, Field(gt=0)]
_PositiveFloat = Annotated[float, Field(gt=0)]

# One value, or a list to choose from on dev.
_Integers = BeforeValidator(_as_tuple, json_schema_input_type=_Positive | tuple[_Positive, ...])
_Numbers = BeforeValidator(_as_tuple, json_schema_input_type=_PositiveFloat | tuple[_PositiveFloat, ...])


class _Training:
    """The type of `Training`."""


#: Marks a field of a task that affects how it is trained, predicted or scored, but not its examples as token ids:
#: `epochs: Annotated[int, Training] = 3`. Encoded examples are used again when only such fields change.
Training = _Training()


class Trial(NamedTuple):
    """One combination of the hyperparameters to choose from, with one seed."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int | None = None  # one of the task's `seeds`; None: its `seed`

    @property
    def name(self) -> str:
        of_seed = "" if self.seed is None else f"-seed-{self.seed}"
        return f"{self.learning_rate:g}-batch-{self.batch_size}-epochs-{self.epochs}{of_seed}"

    @property
    def hyperparameters(self) -> "Trial":
        """The trial without its seed."""
        return self._replace(seed=None)

    def facts(self) -> dict[str, Any]:
        """The trial as the manifest has it."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class SplitFiles(Config):
    """A file for each split."""

    train: Annotated[str, InputPath()]
    """Path of the labelled examples to learn from."""
    dev: Annotated[str | None, InputPath()] = None
    """Path of the labelled examples on which epochs and trials are compared; a tenth of train if unset."""
    test: Annotated[str | None, InputPath()] = None
    """Path of the examples to predict at the end. If they have no labels, the scores are those of dev."""
    extra: Annotated[dict[_ExtraName, str] | None, InputPath()] = None
    """Further files to predict at the end, each by a name, as MNLI's second dev part: {mismatched:
    dev_mismatched.tsv}. Those with labels are scored, too. With glue, the submission for one without is NAME.tsv."""

    @field_validator("extra")
    @classmethod
    def _names_are_free(cls, extra: dict[str, str] | None) -> dict[str, str] | None:
        if taken := [name for name in extra or () if name in (*_INPUTS, *_COUNTS)]:
            raise ValueError(f"{taken[0]} has another meaning; give the file another name")
        return extra


class TaskConfig(Config):
    """The files of a task, the model that it starts from, and the hardware."""

    name: Annotated[str, Training, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the task: its stages are encode-NAME, finetune-NAME and overlap-NAME."""
    file: Annotated[str | None, InputPath("data")] = None
    """Path of the labelled file: .parquet, .jsonl, .ndjson, .json, .csv or .tsv, also with .gz; local or s3://.

    Without a column that names the split, a tenth is dev and another tenth test, of each label, drawn by the seed."""
    files: SplitFiles | None = None
    """A file for each split, in place of `file`."""
    init: Annotated[str | None, InputPath(files_in=weights_files, is_name=is_digest)] = None
    """The model to start from: the digest of a finished checkpoint, or the Hugging Face folder of a BERT, or of another
    encoder that transformers runs. By default the checkpoint that this run's pretraining ends with."""
    compare_random: Annotated[bool, Training] = False
    """Train the same model from random weights as well, which shows what the pretraining is worth."""
    max_seq_length: int = Field(default=128, ge=3)
    """Longest input in tokens, with [CLS] and [SEP]; longer texts are truncated."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the splits, the data order, of dropout and of the head's initial weights."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Training] = "auto"
    """Precision of matrix products: auto is bf16 where the hardware supports it, otherwise fp32."""
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    """Number of GPUs of a trial, one per worker. 0 trains on CPUs. auto uses all GPUs of the cluster, divided among the
    trials if there are several."""
    workers: Annotated[int | None, Compute, Field(gt=0)] = None
    """Number of worker processes of a trial; by default one per GPU, or one where there is no GPU."""
    threads: Annotated[int, Compute, Field(gt=0)] = 2
    """CPU cores per worker."""

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if (self.file is None) == (self.files is None):
            raise ValueError(f"{self.name}: give either file, or files with train, dev and test")
        return self

    @property
    def without_training(self) -> Self:
        """The same configuration with None for the fields that its encoded examples do not depend on."""
        unused = [name for name, field in type(self).model_fields.items() if Training in field.metadata]
        if self.files and self.files.dev:  # nothing is divided at random
            unused.append("seed")
        return self.model_copy(update=dict.fromkeys([*unused, "init"]))

    @property
    def trials(self) -> list[Trial]:
        """The combinations of hyperparameters to choose from; none for a task that trains nothing."""
        return []


class TrainedTaskConfig(TaskConfig):
    """A task with training.

    With several learning rates, batch sizes or numbers of epochs every combination is tried, and the best on the dev
    split is kept. The search of the BERT paper: learning_rate [5e-5, 3e-5, 2e-5], batch_size [16, 32], epochs
    [2, 3, 4].
    """

    learning_rate: Annotated[tuple[_PositiveFloat, ...], _Numbers, Training, Field(min_length=1)]
    """Peak learning rate, or a list to choose from on dev. It rises for 10 % of the steps, then falls linearly to 0."""
    batch_size: Annotated[tuple[_Positive, ...], _Integers, Training, Field(min_length=1)] = (32,)
    """Examples per optimizer step, over all workers; or a list to choose from on dev."""
    epochs: Annotated[tuple[_Positive, ...], _Integers, Training, Field(min_length=1)] = (3,)
    """Passes over the train split, or a list to choose from on dev. The best epoch on dev is kept."""
    micro_batch_size: Annotated[int | None, Compute, Field(gt=0)] = None
    """Maximum number of rows that a worker computes at once, which limits memory; gradients are accumulated."""
    freeze_encoder: Annotated[bool, Training] = False
    """Keep the encoder as it is: only the head, and the pooler if the head uses it, are trained."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] | None, Training, Field(min_length=1)] = None
    """Seeds to train every combination of hyperparameters with, in place of `seed`, which still draws the splits. The
    combination with the best mean over the seeds on dev is kept, and of its models the best on dev."""

    early_stopping: Annotated[Annotated[int, Field(gt=0)] | None, Training] = None
    """End a trial after this many epochs in a row without a better one on dev; by default none ends early. The learning
    rate falls as it does in a trial of all epochs."""
    max_concurrent_trials: Annotated[int | None, Compute, Field(gt=0)] = None
    """Maximum number of trials that run at once; by default as many as the cluster has processor cores and GPUs for."""

    @field_validator("learning_rate", "batch_size", "epochs", "seeds")
    @classmethod
    def _values_differ(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if repeated := [value for value in values or () if (values or ()).count(value) > 1]:
            raise ValueError(f"{repeated[0]} is there more than once; give different values")
        return values

    @property
    def trials(self) -> list[Trial]:
        """The combinations to choose from; those that differ in their seed only are next to each other."""
        seeds: tuple[int | None, ...] = self.seeds or (None,)
        return [Trial(*values) for values in itertools.product(self.learning_rate, self.batch_size, self.epochs, seeds)]


def task_files(config: TaskConfig, inputs: Mapping[str, Any]) -> dict[str, Location]:
    """The labelled files among the inputs of a stage (SourceFile), by the names that tasks know."""
    extra = (config.files and config.files.extra) or ()
    return {name: inputs[name].location for name in ("data", *SPLITS, *extra) if name in inputs}


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
    """A fine-tuning task: how its files become model inputs, and how the model's answers are scored.

    The driver creates it and sends it to every worker. An answer is the model's output for one row of an EncodedSplit,
    in the form that the task chooses, such as the probability of each label. A prediction is a row of predictions.jsonl
    for an example, with the true value as `label` and the model's as `predicted`; it is correct where they are equal.
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

    def scores(self, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
        """The scores of predictions as `score_facts` returns them: the task's metric is the first."""
        ...

    def baselines(self, examples: Sequence[Any]) -> dict[str, list[Any]]:
        """Predictions for these examples without a model, fitted on train: name of the baseline -> predictions."""
        ...

    def texts(self, example: Any) -> list[tuple[str, str]]:
        """The texts that an example consists of, each after its name, such as "question" or "context"."""
        ...

    def sample(self, example: Any) -> dict[str, Any]:
        """An example as the report shows it: `text` and `label`."""
        ...

    def facts(self) -> dict[str, Any]:
        """The task's own facts for the manifest, under names that FinetuneFacts does not use; the report shows
        `labels`."""
        ...

    def head(self) -> "TransformersHead | None":
        """How transformers loads the fine-tuned model; None if the task trains nothing, and no model is saved."""
        ...


class TrainedTask(Task, Protocol):
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
        """The sum of the rows' losses, from the model's outputs for these rows."""
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


class TransformersHead(NamedTuple):
    """What a fine-tuned model's config.json says of its head."""

    class_name: str  # after the architecture's name: "ForSequenceClassification"
    settings: Mapping[str, Any]  # id2label, label2id, problem_type
    has_pooler: bool = True  # whether the head takes the pooled [CLS]
