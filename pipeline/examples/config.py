"""The configuration of the stage examples, and what each sequence length adds to it."""

from typing import Annotated, Literal

from pydantic import Field

from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.text.masking import MaskUnit


class ExamplesConfig(Config):
    """How examples of every sequence length are built."""

    objective: Literal["mlm+nsp", "mlm", "mlm+sop"] = "mlm+nsp"
    """The training objective: masked LM with next-sentence prediction (mlm+nsp, as BERT), alone (mlm, as RoBERTa), or
    with sentence-order prediction (mlm+sop, as ALBERT)."""
    dupe_factor: int = Field(default=5, gt=0)
    """The number of passes over the documents, each with different pairs and stored masks."""
    passes: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """Passes over the documents of single sources, by the source's name, instead of dupe_factor."""
    short_seq_prob: float = Field(default=0.1, ge=0, le=1)
    """The probability of a pair shorter than the sequence length. Objective mlm has no pairs."""
    masked_lm_prob: float = Field(default=0.15, gt=0, lt=1)
    """The fraction of tokens that are masked, up to max_predictions_per_seq."""
    masking: Literal["dynamic", "static"] = "dynamic"
    """When masks are drawn: for each batch (dynamic), or once and stored (static). Held-out masks are always stored."""
    mask_unit: MaskUnit = "token"
    """What is masked as a whole: single tokens, words, or n-grams of words."""
    seed: int = Field(default=1, ge=0)
    """The seed of all randomness in the examples."""
    workers: Annotated[int | None, Compute] = Field(default=None, gt=0)
    """The number of parallel workers. Unset: one for each CPU of this machine or of the Ray cluster."""


class LengthConfig(ExamplesConfig):
    """Examples of one sequence length."""

    max_seq_length: int = Field(ge=5, le=1 << 15)
    """The maximum number of tokens in an example, special tokens included; at least 5: [CLS] a [SEP] b [SEP]."""
    max_predictions_per_seq: int = Field(gt=0)
    """The maximum number of masked tokens in an example."""
