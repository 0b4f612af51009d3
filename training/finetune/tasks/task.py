"""What every fine-tuning task has, and what training/finetune/stage.py asks of a kind of them.

A new kind is a file beside this one, with its configuration and its `Task`, and a row in registry.py.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    from cloze.training.checkpoints.checkpoint import SavedConfig

SPLITS = ("train", "dev", "test")

Rows = NDArray[np.int64]  # numbers of examples within their split


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


_Tried = BeforeValidator(_several)  # one value, or a list whose best is chosen on dev
_Positive = Annotated[int, Field(gt=0)]
_PositiveFloat = Annotated[float, Field(gt=0)]


class Trial(NamedTuple):
    """One way to train, out of those to try on dev."""

    learning_rate: float
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.learning_rate:g}-batch-{self.batch_size}-epochs-{self.epochs}"


class TaskConfig(Config):
    """A labelled file, and how and where to train on it; each kind adds its name, as `kind`, and its columns.

    Of several rates, batch sizes or epochs each combination is tried.
    The paper's own search: learning_rate [5e-5, 3e-5, 2e-5], batch_size [16, 32], epochs [2, 3, 4].
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    file: Annotated[str, InputPath("data")]
    max_seq_length: int = Field(default=128, ge=3)
    learning_rate: Annotated[tuple[_PositiveFloat, ...], _Tried, Field(min_length=1)]
    batch_size: Annotated[tuple[_Positive, ...], _Tried, Field(min_length=1)] = (32,)
    epochs: Annotated[tuple[_Positive, ...], _Tried, Field(min_length=1)] = (3,)
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    workers: Annotated[int | None, Compute, Field(gt=0)] = None  # one for each GPU, one without any
    threads: Annotated[int, Compute, Field(gt=0)] = 2  # of a worker's processor cores

    @property
    def trials(self) -> list[Trial]:
        return [Trial(*values) for values in itertools.product(self.learning_rate, self.batch_size, self.epochs)]


class Example(Protocol):
    """A row of the user's file."""

    @property
    def split(self) -> str: ...


class Encoded(Protocol):
    """The examples of one split, as the model reads them."""

    @property
    def lengths(self) -> Ints:
        """How many pieces each example has [n]: those of like length are put together."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A task's data, ready for workers."""

    splits: Mapping[str, Encoded]
    truncated: int  # examples that were cut to max_seq_length


class Task(Protocol):
    """A user's task: what of its file a model reads, and what that model's answers are worth.

    The driver makes it, and every worker is given it. An answer is whatever the task has the model say of an example,
    such as the probability of each label; a prediction is a row of predictions.jsonl, in which `label` is what is true
    and `predicted` what the model says: where they are equal it is right.
    """

    @property
    def examples(self) -> Sequence[Any]:
        """Its `Example`s, of all splits, in the file's order."""
        ...

    @classmethod
    def read(cls, config: Any, location: Location) -> Self:
        """The task of a labelled file. Raises UserError where it cannot be read, learned from or scored."""
        ...

    def prepare(self, tokenizer: "Tokenizer") -> Prepared: ...

    def model(self, saved: "SavedConfig") -> "nn.Module":
        """The encoder of a checkpoint, as `bert`, and the task's head: of random weights, keyed by the task's seed."""
        ...

    def inputs(self, data: Any, rows: Rows, device: "torch.device") -> Sequence["Tensor"]:
        """What the model is called with for some rows of a split."""
        ...

    def loss(self, outputs: Any, data: Any, rows: Rows) -> "Tensor":
        """What the model is to lower: of what it gave for these rows, the sum of each one's loss."""
        ...

    def answers(self, outputs: Any, data: Any, rows: Rows) -> Sequence[Any]:
        """Of what the model gave for these rows, an answer for each."""
        ...

    def evaluate(self, answers: Sequence[Any], data: Any) -> dict[str, float]:
        """What a split's answers are worth while training: plain numbers by name; the page shows accuracy and loss."""
        ...

    def merit(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """What epochs and trials are compared by, by such metrics of dev: the greater, the better."""
        ...

    def predictions(self, examples: Sequence[Any], answers: Sequence[Any]) -> list[dict[str, Any]]: ...

    def scores(self, examples: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
        """What predictions are worth: numbers by name. The report reads accuracy, interval, macro_f1 and matthews."""
        ...

    def baseline(self, examples: Sequence[Any]) -> tuple[str, list[Any]]:
        """The name of what needs no model, and what it predicts of these examples, knowing those of train."""
        ...

    def sample(self, example: Any) -> dict[str, Any]:
        """An example as the report shows it: `text` and `label`."""
        ...

    def facts(self) -> dict[str, Any]:
        """What else the manifest tells of the file, by names other than FinetuneFacts' own; the page shows `labels`."""
        ...

    def model_files(self) -> dict[str, bytes]:
        """What is to lie beside the model's weights, for its answers to be read."""
        ...
