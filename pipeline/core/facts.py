"""What the manifests of the data stages tell their readers: later stages, the report, the card, status.

The stage writes the model, `Facts.of` reads it back. Defaults stand for what manifests of earlier versions lack.
"""

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts


class Warnings(Facts):
    """What any stage may tell: what came out otherwise than asked for, or worse than it should, each with the mend."""

    warnings: list[str] = Field(default=[])


class DroppedRecord(Fact):
    """A record of a source that gave no document: its name, and how its text begins."""

    record: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        return self.record


class TruncatedFile(Fact):
    """A source's file that is cut off, of which all that is whole was kept."""

    file: str
    reason: str


class ExtractFacts(Facts):
    """What each source gave, and what was lost of it."""

    sources: dict[str, dict[str, int]] = Field(default={})  # source -> its counts and drops
    samples: dict[str, list[DroppedRecord]] = Field(default={})  # reason -> some of what was dropped for it
    truncated: list[TruncatedFile] = Field(default=[])
    templates: dict[str, int] = Field(default={})  # the most frequent of those without prose


class DroppedDocument(Fact):
    """A document that is gone, and the one that stays in its place."""

    doc_id: str = ""
    title: str = ""
    source: str = ""
    text: str = ""  # how it begins
    kept: "DroppedDocument | None" = None

    @property
    def name(self) -> str:
        return self.title or self.doc_id


class DedupFacts(Facts):
    """Reason -> some of the documents that went for it."""

    samples: dict[str, list[DroppedDocument]] = Field(default={})


class Quality(Fact):
    """How a vocabulary fares on counted words; nothing is set where there are none."""

    words: int = 0
    unknown_share: float = 0.0
    pieces_per_word: float = 0.0


class Compared(Fact):
    """How another vocabulary fares on the same words."""

    name: str
    size: int
    words: int = 0
    unknown_share: float = 0.0
    pieces_per_word: float = 0.0


class LeftOut(Fact):
    """Which characters of the training text the pieces lack, and how many words are unknown for that.

    Each figure stands beside that of the whole.
    """

    distinct_characters: int = 0
    of_distinct_characters: int = 0
    characters: int = 0
    of_characters: int = 0
    words: int = 0
    long_words: int = 0  # unknown whatever they are made of
    of_words: int = 0
    most_frequent: list[str] = Field(default=[])


class VocabFacts(Facts):
    """A vocabulary and how it fares on held-out text. `asked` and `left_out` are of one that was learnt."""

    size: int = 0
    longest: list[str] = Field(default=[])
    sample: list[str] = Field(default=[])
    heldout: Quality = Quality()
    asked: int | None = None
    left_out: LeftOut = LeftOut()
    note: str = ""
    warnings: list[str] = Field(default=[])
    compared: Compared | None = None


class ExamplesFacts(Facts):
    """File -> the rows in it, which lie in row groups of `row_group_size`, the last one smaller."""

    rows: dict[str, int] = Field(default={})
    row_group_size: int = 0

    def row_groups(self, file: str) -> list[int]:
        """How many rows each row group of a file has. Raises KeyError for a file that is not among them."""
        whole, rest = divmod(self.rows[file], self.row_group_size)
        return [self.row_group_size] * whole + [rest] * (rest > 0)
