"""The configuration of a probe: which layers' vectors a classifier reads, and what it predicts."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cloze.pipeline.core.config import Config, Given, InputPath
from cloze.training.finetune.tasks.classification import GlueName
from cloze.training.finetune.tasks.labelled_texts import LabelledColumns
from cloze.training.finetune.tasks.tag_schemes import Scheme
from cloze.training.finetune.tasks.tagged_files import TaggedColumns
from cloze.training.finetune.tasks.task_config import Column, Numbers, PositiveFloat, TaskConfig, Training, as_tuple
from cloze.training.vectors.representation import Layers, check_special_tokens

#: The keys that only one of the two has.
_KEYS_OF = {
    "classification": ("glue", "pooling", "special_tokens"),
    "tagging": ("scheme", "context", "dataset", "bilstm"),
}
_NOT_OF_THE_TASK = ("pooling", "special_tokens", "bilstm")
_COLUMNS_OF = {"classification": LabelledColumns, "tagging": TaggedColumns}


class ProbeColumns(TaggedColumns):
    """The columns of the file. With `of: classification`: text, text_b, label and split, by name, or by number, from 1,
    in a .csv or .tsv without a header. With `of: tagging`: the others and split, as tagging has them."""

    text: Column = "text"
    """Column with the text."""
    text_b: Column | None = None
    """Column with the second text of a pair."""
    label: Column = "label"
    """Column with the label: a word or a number."""
    split: Annotated[str, Given] = "split"
    """Column with the split: train, dev or test."""


class BiLSTMConfig(Config):
    """A bidirectional LSTM over the words of a sentence, with a linear layer, trained by Adam at a constant rate.

    The layers and their size are the paper's (section 5.3), which does not say how it was trained.
    """

    num_layers: int = Field(default=2, gt=0)
    """Number of layers."""
    hidden_size: int = Field(default=768, gt=0)
    """Size of a layer, in each direction."""
    epochs: int = Field(default=10, gt=0)
    """Passes over the train split."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate."""
    batch_size: int = Field(default=32, gt=0)
    """Sentences per step; a sentence longer than max_seq_length counts as several."""


class ProbeConfig(TaskConfig):
    """Probe: logistic regression on the vectors of a pretrained model, which is not trained.

    With several layers, each choice is a row of a table; dev decides which one is scored on test.
    """

    kind: Literal["probe"] = "probe"
    """Kind of the task."""
    of: Literal["classification", "tagging"]
    """What is predicted: a label for each text, or a tag for each word, from the vector of its first piece. The files
    are those of the tasks of this name."""
    file: Annotated[str | None, InputPath("data")] = None
    """Path of the labelled file, as classification or tagging has it. Without a column that names the split, a tenth is
    dev and another tenth test, drawn by the seed."""
    columns: ProbeColumns = ProbeColumns()
    """The columns of the file."""
    glue: GlueName | None = None
    """The GLUE task whose published files these are; it sets the columns and the metric. Of classification."""
    scheme: Scheme | None = None
    """How tags mark entities: see tagging."""
    context: Literal["sentence", "document"] = "sentence"
    """What a row of the model's input has besides the sentence to tag: see tagging."""
    dataset: Annotated[Literal["CoNLL-2003"] | None, Training] = None
    """The dataset whose published files these are: the table has the dev F1 of the BERT paper beside each choice of
    layers. Of tagging."""
    skip_invalid: bool = False
    """Leave out invalid rows or sentences, and count them, in place of an error."""
    layers: Annotated[
        tuple[Layers, ...],
        BeforeValidator(as_tuple, json_schema_input_type=Layers | tuple[Layers, ...]),
        Training,
        Field(min_length=1),
    ] = ("last",)
    """The layers whose vectors are read, or a list to compare: the number of a layer (0: the output of the embeddings),
    last, second-to-last, sum-all (all layers, without the embeddings), sum-last-4 or concat-last-4."""
    pooling: Annotated[Literal["mean", "cls"], Training] = "mean"
    """The vector of a text: the mean over its tokens, or the vector of [CLS]. Of classification."""
    special_tokens: Annotated[bool, Training] = True
    """Whether [CLS] and [SEP] count in the mean. Of classification."""
    C: Annotated[tuple[PositiveFloat, ...], Numbers, Training, Field(min_length=1)] = (1.0,)
    """Inverse strength of the L2 penalty, as in scikit-learn's LogisticRegression, or a list to choose from on dev."""
    bilstm: Annotated[BiLSTMConfig | None, Training] = None
    """A BiLSTM on the vectors of a sentence's words, in place of the regression, as in the BERT paper. `{}` has the
    paper's layers. Of tagging."""
    cross_validation: Annotated[int, Training] = 0
    """Number of folds of train, at least 2, over which C and the layers are compared, in place of dev; 0: none."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Training] = "fp32"
    """Precision of the model's matrix products; `cloze embed` computes in fp32."""

    @field_validator("layers", "C")
    @classmethod
    def _values_differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if repeated := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"{repeated[0]} is there more than once; give different values")
        return values

    @field_validator("cross_validation")
    @classmethod
    def _has_two_folds(cls, folds: int) -> int:
        if folds < 0 or folds == 1:
            raise ValueError("give 0, or the number of folds, at least 2")
        return folds

    @model_validator(mode="after")
    def _keys_belong_together(self) -> Self:
        keys = [key for kind, keys in _KEYS_OF.items() if kind != self.of for key in keys]
        columns = [name for name in ProbeColumns.model_fields if name not in _COLUMNS_OF[self.of].model_fields]
        given = [key for key in keys if not _is_default(self, key)]
        given += [f"columns.{name}" for name in columns if not _is_default(self.columns, name)]
        if given:
            raise ValueError(f"{self.name}: {given[0]} has no meaning with of: {self.of}; leave it out")
        if self.bilstm and not _is_default(self, "C"):
            raise ValueError(f"{self.name}: C has no meaning with bilstm; leave it out")
        check_special_tokens(self.name, self.pooling, self.special_tokens)
        return self

    @property
    def task_columns(self) -> Any:
        """The columns as the configuration of the task has them."""
        columns = _COLUMNS_OF[self.of]
        given = {
            name: getattr(self.columns, name) for name in columns.model_fields if name in self.columns.model_fields_set
        }
        return columns.model_validate(given)

    @property
    def task_settings(self) -> dict[str, Any]:
        """The settings that the task reads, besides its columns."""
        names = ("name", "file", "files", "max_seq_length", "seed", "skip_invalid", *_KEYS_OF[self.of])
        return {name: getattr(self, name) for name in names if name not in _NOT_OF_THE_TASK}


def _is_default(config: Config, name: str) -> bool:
    """Whether a field has its default: a stored configuration, which is read again, has all of them."""
    return getattr(config, name) == type(config).model_fields[name].default
