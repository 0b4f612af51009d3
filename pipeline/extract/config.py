"""The configuration of the stage extract."""

from typing import Annotated

from pydantic import Field

from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.extract.sources import Source


class ExtractConfig(Config):
    """Which files are read, and which of their documents are kept."""

    sources: list[Source] = Field(min_length=1)
    """The sources of text: Wikipedia dumps, books, your own documents, files with one sentence per line."""
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    """The fraction of documents that is held out for evaluation, chosen by a hash of doc_id."""
    min_words: int = Field(default=10, ge=0)
    """Documents with fewer words are dropped. In scripts without spaces, such as Japanese, a character is a word."""
    min_letters: float = Field(default=0.6, ge=0, le=1)
    """Documents with a lower fraction of letters among their non-space characters, such as tables, are dropped."""
    beam: Annotated[list[str] | None, Compute] = None
    """Apache Beam's pipeline options, each as --name=value. Unset: all CPUs of the Ray cluster, or of this machine if
    the input is large enough to gain."""
