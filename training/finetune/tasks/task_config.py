"""The configuration of any fine-tuning task: its files, the model that it starts from, training and hardware."""

import hashlib
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cloze.pipeline.core.config import NAME, Compute, Config, InputPath
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import is_name, weights_files

SPLITS = ("train", "dev", "test")

Column = str | int  # a column's name, or its number, from 1, in a file without a header

# Names that no extra file may have: inputs of a task's stages, and counts next to those of the splits.
_RESERVED = {
    *(*SPLITS, "data", "init", "checkpoint", "vocab", "tokenizer", "encoded", "finetuned"),
    *("rows", "truncated", "divided_sentences", "words_without_pieces", "documents"),
}
_ExtraName = Annotated[str, Field(pattern=f"^{NAME}$")]


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]

# One value, or a list to choose from on dev.
_Integers = BeforeValidator(as_tuple, json_schema_input_type=_Positive | tuple[_Positive, ...])
Numbers = BeforeValidator(as_tuple, json_schema_input_type=PositiveFloat | tuple[PositiveFloat, ...])


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
        if taken := [name for name in extra or () if name in _RESERVED]:
            raise ValueError(f"{taken[0]} has another meaning; give the file another name")
        return extra


class TaskConfig(Config):
    """The files of a task, the model that it starts from, and the hardware."""

    name: Annotated[str, Training, Field(pattern=f"^{NAME}$")]
    """Name of the task: its stages are encode-NAME, finetune-NAME and overlap-NAME."""
    file: Annotated[str | None, InputPath("data")] = None
    """Path of the labelled file: .parquet, .jsonl, .ndjson, .json, .csv or .tsv, also with .gz; local or s3://.

    Without a column that names the split, a tenth is dev and another tenth test, of each label, drawn by the seed."""
    files: SplitFiles | None = None
    """A file for each split, in place of `file`."""
    init: Annotated[str | None, InputPath(files_in=weights_files, is_name=is_name)] = None
    """The model to start from: the digest of a finished checkpoint, NAME@promoted, or the Hugging Face folder of a
    BERT, or of another encoder that transformers runs. By default the checkpoint that this run's pretraining ends
    with."""
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
    trials that run at once."""
    workers: Annotated[int | None, Compute, Field(gt=0)] = None
    """Number of worker processes of a trial; by default one per GPU, or one where there is no GPU."""
    threads: Annotated[int, Compute, Field(gt=0)] = 2
    """CPU cores per worker."""

    #: The name of the value in a row of predictions that `Task.scores` reads.
    scored_value: ClassVar[str] = "predicted"

    @model_validator(mode="after")
    def _has_files(self) -> Self:
        if (self.file is None) == (self.files is None):
            raise ValueError(f"{self.name}: give either file, or files with train, dev and test")
        return self

    @property
    def without_training(self) -> Self:
        """The same configuration with None for the fields that its encoded examples do not depend on."""
        fields = type(self).model_fields.items()
        unused = [name for name, field in fields if Training in field.metadata or Compute in field.metadata]
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

    learning_rate: Annotated[tuple[PositiveFloat, ...], Numbers, Training, Field(min_length=1)]
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

    #: Whether the loss of a row depends on the other rows of its batch, which are then computed before any loss.
    loss_of_batch: ClassVar[bool] = False

    @field_validator("learning_rate", "batch_size", "epochs", "seeds")
    @classmethod
    def _values_differ(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        names = [f"{value:g}" if isinstance(value, float) else value for value in values or ()]  # as in Trial.name
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{repeated[0]} is there more than once; give different values")
        return values

    @property
    def trials(self) -> list[Trial]:
        """The combinations to choose from; those that differ in their seed only are next to each other."""
        seeds: tuple[int | None, ...] = self.seeds or (None,)
        return [Trial(*values) for values in itertools.product(self.learning_rate, self.batch_size, self.epochs, seeds)]


def task_files(config: TaskConfig, inputs: Mapping[str, Any]) -> dict[str, Location]:
    """The labelled files among the inputs of a stage (SourceFile), by the names that tasks know.

    Raises UserError when one has changed since its digest was computed: the stages of a task must read the same rows.
    """
    extra = (config.files and config.files.extra) or ()
    files = {name: inputs[name] for name in ("data", *SPLITS, *extra) if name in inputs}
    for file in files.values():
        if hashlib.sha256(file.location.read_bytes()).hexdigest() != file.sha256:
            raise UserError(f"{file.uri}: has changed since the run began; run again")
    return {name: file.location for name, file in files.items()}
