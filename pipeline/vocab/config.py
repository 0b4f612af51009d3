"""The configuration of the stage vocab."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.text.tokenizer import LAYOUTS, SPECIAL_TOKENS


class VocabConfig(Config):
    """A WordPiece vocabulary, trained on the train split or given as a `file`.

    With a `file`, nothing is trained: size, layout, min_frequency and character_coverage have no effect.
    """

    size: int = Field(default=30522, gt=len(SPECIAL_TOKENS))
    """The number of pieces, special tokens and unused places included."""
    layout: Literal["compact", "google"] = "compact"
    """Where special tokens are: first (compact), or as in the published BERT, with 994 [unused] places (google)."""
    file: Annotated[str | None, InputPath()] = None
    """A vocab.txt or tokenizer.json to use instead of training one."""
    compare: Annotated[str | None, InputPath()] = None
    """Another vocab.txt or tokenizer.json, whose quality on the same held-out text is measured."""
    lowercase: bool = True
    """Whether the tokenizer lowercases text."""
    strip_accents: bool | None = None
    """Whether the tokenizer removes accents. Unset: as `lowercase`."""
    min_frequency: int = Field(default=2, gt=0)
    """Pairs of pieces that occur less often are not merged."""
    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    """The alphabet is the most frequent characters that make up this fraction of the text, and at least a 30th of
    `size`. Rarer characters get places only if merges leave some."""
    workers: Annotated[int | None, Compute] = Field(default=None, gt=0)
    """The number of workers that count words. Unset: one for each CPU of this machine or of the Ray cluster."""

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.size <= len(LAYOUTS[self.layout]):
            raise ValueError(
                f"size {self.size} has no room after the layout's {len(LAYOUTS[self.layout])} pieces; raise it"
            )
        return self
