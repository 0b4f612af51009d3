"""The configuration of contrastive training: the pairs' columns, and which vector of a text is trained."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Compute, Config, Given, InputPath
from cloze.training.finetune.tasks.task_config import Column, PositiveFloat, TrainedTaskConfig, Training
from cloze.training.vectors.representation import Representation, check_special_tokens

RetrievalMetric = Literal["mrr", "accuracy_at_1"]


class PairColumns(Config):
    """The columns of the file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    text: Column = "text"
    """Column with the text, such as a question or a title."""
    text_b: Column = "text_b"
    """Column with the text that belongs to it, such as its answer."""
    split: Annotated[Column, Given] = "split"
    """Column with the split: train, dev or test."""


class ContrastiveConfig(TrainedTaskConfig):
    """Contrastive: a file of pairs of texts that belong together, with which vectors of texts are trained.

    Each text is to be nearer to its text_b, by cosine, than to every other text_b of the batch: a larger batch_size has
    more of these. Scores are of finding the text_b of a text among all of the split.
    """

    kind: Literal["contrastive"] = "contrastive"
    """Kind of the task."""
    columns: PairColumns = PairColumns()
    """The columns of the file."""
    file: Annotated[str | None, InputPath("data")] = None
    """Path of the pairs: .parquet, .jsonl, .ndjson, .json, .csv or .tsv, also with .gz; local or s3://.

    Without a column that names the split, a tenth of the rows is dev and another tenth test, drawn by the seed. A text
    of several rows may then be in train and in test: give files, or the split, to keep it in one."""
    micro_batch_size: Annotated[int | None, Compute, Field(gt=0)] = None
    """Maximum number of rows that a worker computes at once, which limits memory. They are then computed twice, and
    have the negatives of the whole batch."""
    freeze_encoder: Annotated[bool, Training] = False
    """Is not possible: there is no head that could be trained alone."""
    pooling: Annotated[Literal["mean", "cls"], Training] = "mean"
    """The vector of a text: the mean over its tokens in the last layer, or the vector of [CLS]."""
    special_tokens: Annotated[bool, Training] = True
    """Whether [CLS] and [SEP] count in the mean. sentence-transformers counts them, and cannot do otherwise."""
    temperature: Annotated[PositiveFloat, Training] = 0.05
    """What a cosine is divided by: a lower one gives more weight to the nearest wrong texts."""
    metric: Annotated[RetrievalMetric, Training] = "mrr"
    """The score by which epochs and trials are compared: the mean reciprocal rank of the right text_b, or the fraction
    of texts whose nearest text_b is right."""
    skip_invalid: bool = False
    """Leave out rows with an empty text or with another number of columns, and count them, in place of an error."""

    loss_of_batch: ClassVar[bool] = True
    scored_value: ClassVar[str] = "rank"

    @model_validator(mode="after")
    def _keys_belong_together(self) -> Self:
        check_special_tokens(self.name, self.pooling, self.special_tokens)
        if 1 in self.batch_size:
            raise ValueError(f"{self.name}: batch_size 1 has no other text to compare with; give 2 or more")
        if self.freeze_encoder:
            raise ValueError(f"{self.name}: freeze_encoder leaves nothing to train, as there is no head; leave it out")
        return self

    @property
    def representation(self) -> Representation:
        """The vector of a text, as `cloze embed` computes it."""
        return Representation(pooling=self.pooling, special_tokens=self.special_tokens)
