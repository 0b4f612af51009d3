"""The kinds of sources that a configuration lists under extract.sources, and their keys."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Config, InputPath
from cloze.pipeline.extract import document_files, sentence_lines
from cloze.pipeline.text.character_encodings import Encoding


class _Source(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The source's name, unique in the configuration, recorded with each document."""
    files: Annotated[list[str], InputPath("")] = Field(min_length=1)
    """Paths or globs of the source's files, local or s3://."""
    language: str = ""
    """ISO 639 code of the documents' language, such as en. Empty: the language that the file names, if any."""
    only_languages: list[str] = Field(default=[])
    """ISO 639 codes. Documents that are certainly in another language are dropped. Empty: all are kept."""


class WikipediaSource(_Source):
    """A MediaWiki XML dump: its articles. `language` overrides the language that the dump's header names."""

    kind: Literal["wikipedia"]
    """The kind of source: a MediaWiki XML dump."""
    licence: str = "CC BY-SA 4.0"
    """The licence of the texts, recorded with each document."""
    templates: dict[str, str] = Field(default={})
    """Additional templates whose arguments are running text: name -> pattern, such as nobr: "{1}"."""
    disambiguation: list[str] = Field(default=[])
    """Names of additional templates that mark a page as a disambiguation page. Such pages are dropped."""
    keep_headings: bool = False
    """Whether section headings become paragraphs."""
    keep_lists: bool = False
    """Whether list items become paragraphs, also those of lists in HTML."""


class BooksSource(_Source):
    """Plain-text books. A document is a chapter, a book, or a fixed number of sentences: "sentences:200"."""

    kind: Literal["books"]
    """The kind of source: plain-text books, one per file."""
    licence: str = ""
    """The licence of the texts, recorded with each document."""
    encoding: Encoding = ""
    """The files' character encoding, such as cp1252. Empty: detected, or an error if it is not certain."""
    unit: str = Field(default="chapter", pattern=r"^(chapter|book|sentences:[1-9]\d{0,6})$")
    """What a document is: chapter, book, or sentences:N for N sentences each."""

    @property
    def sentences_per_document(self) -> int:
        """N of the unit "sentences:N"; 0 for other units."""
        return int(self.unit.partition(":")[2] or 0)


class DocumentsSource(_Source):
    """Your own Parquet, JSON lines, CSV, TSV and text files. `licence` and `language` apply to rows without one."""

    kind: Literal["documents"]
    """The kind of source: tables with one document per row, or text files with one document each."""
    licence: str = ""
    """The licence of documents whose row names none."""
    encoding: Encoding = ""
    """The files' character encoding, such as cp1252. Empty: detected, or an error if it is not certain."""
    columns: document_files.DocumentColumns = document_files.DocumentColumns()
    """The names of the files' columns."""


class SentencesSource(_Source):
    """Text with one sentence per line and a blank line between documents: the input format of the original BERT.

    The sentences stay as they are. For files without blank lines set `marker` or `every`.
    """

    kind: Literal["sentences"]
    """The kind of source: text files with one sentence per line."""
    licence: str = ""
    """The licence of the texts, recorded with each document."""
    encoding: Encoding = ""
    """The files' character encoding, such as cp1252. Empty: UTF-8."""
    marker: str = ""
    """The text that begins the line between two documents. Empty: a blank line separates them."""
    every: int = Field(default=0, ge=0)
    """The number of sentences in a document, for files without boundaries. 0: boundaries are in the file."""

    @model_validator(mode="after")
    def _one_boundary(self) -> "SentencesSource":
        if self.marker and self.every:
            raise ValueError("marker and every are two rules for where a document ends; keep one")
        if self.encoding and "\n".encode(self.encoding) != b"\n":
            raise ValueError(f"encoding {self.encoding} cannot be read line by line; convert the files to UTF-8")
        return self

    @property
    def boundary(self) -> sentence_lines.DocumentBoundary:
        return sentence_lines.DocumentBoundary(self.marker, self.every)


Source = Annotated[WikipediaSource | BooksSource | DocumentsSource | SentencesSource, Field(discriminator="kind")]
