"""The facts in the manifests of the data stages, for later stages, the report, the model card and `status`.

A stage writes its model, `Facts.of` reads it. Fields that manifests of earlier versions lack have defaults.
"""

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts


class WarningFacts(Facts):
    """Warnings of any stage, each with the fix: a result differs from the request or is worse than it should be."""

    warnings: list[str] = Field(default=[])


class DroppedRecord(Fact):
    """A record of a source that was dropped: its name, and the beginning of its text."""

    record: str = ""
    text: str = ""

    @property
    def name(self) -> str:
        return self.record


class TruncatedFile(Fact):
    """A source file that ends early. Its complete records were kept."""

    file: str
    reason: str


class ExtractFacts(Facts):
    """What was extracted from each source, and what was dropped."""

    sources: dict[str, dict[str, int]] = Field(default={})  # source -> its counts and drops
    samples: dict[str, list[DroppedRecord]] = Field(default={})  # reason -> some of the dropped records
    truncated: list[TruncatedFile] = Field(default=[])
    templates: dict[str, int] = Field(default={})  # the most frequent templates that were removed -> their number
    residue: dict[str, int] = Field(default={})  # source of wikitext -> its documents with left-over markup


class DroppedDocument(Fact):
    """A removed duplicate, and the document that was kept instead."""

    doc_id: str = ""
    title: str = ""
    source: str = ""
    text: str = ""  # its beginning
    kept: "DroppedDocument | None" = None

    @property
    def name(self) -> str:
        return self.title or self.doc_id


class DedupFacts(Facts):
    """Reason -> some of the documents that were dropped for it."""

    samples: dict[str, list[DroppedDocument]] = Field(default={})


class VocabQuality(Fact):
    """How well a vocabulary covers counted words. No field is set if there are none."""

    words: int = 0
    unknown_share: float = 0.0
    pieces_per_word: float = 0.0


class ComparedVocab(Fact):
    """How well another vocabulary covers the same words."""

    name: str
    size: int
    words: int = 0
    unknown_share: float = 0.0
    pieces_per_word: float = 0.0


class UncoveredCharacters(Fact):
    """The characters of the training text that no piece contains, and the words that are unknown because of them.

    Fields named of_... count the whole text.
    """

    distinct_characters: int = 0
    of_distinct_characters: int = 0
    characters: int = 0
    of_characters: int = 0
    words: int = 0
    long_words: int = 0  # unknown because of their length
    of_words: int = 0
    most_frequent: list[str] = Field(default=[])


class VocabFacts(Facts):
    """A vocabulary and how well it covers held-out text. `asked` and `left_out` are set if it was trained."""

    size: int = 0
    longest: list[str] = Field(default=[])
    sample: list[str] = Field(default=[])
    heldout: VocabQuality = VocabQuality()
    asked: int | None = None
    left_out: UncoveredCharacters = UncoveredCharacters()
    note: str = ""
    warnings: list[str] = Field(default=[])
    compared: ComparedVocab | None = None


class ExamplesFacts(Facts):
    """File -> its number of rows, in row groups of `row_group_size`; the last one may be smaller."""

    rows: dict[str, int] = Field(default={})
    row_group_size: int = 0

    def row_groups(self, file: str) -> list[int]:
        """Returns the number of rows of each row group of a file. Raises KeyError for an unknown file."""
        whole, rest = divmod(self.rows[file], self.row_group_size)
        return [self.row_group_size] * whole + [rest] * (rest > 0)
