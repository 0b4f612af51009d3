"""Paragraphs and metadata -> a document with its split, counts and content hash."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import pyarrow as pa

from cloze.pipeline.core.schema import DOCUMENT, RecordPosition
from cloze.pipeline.text.words import case_folded, count_ascii, count_folded

_NO_RECORD = RecordPosition()

_SPACES = bytes(code for code in range(128) if chr(code).isspace())

Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document, as a row of DOCUMENT."""

    doc_id: str
    source: str
    language: str
    title: str
    url: str
    revision: int
    timestamp: str
    text: str
    split: str
    num_chars: int
    num_words: int
    content_hash: str
    licence: str
    file_sha256: str
    record_stream: int
    record_offset: int
    record_bytes: int


def document(
    paragraphs: Sequence[str],
    *,
    doc_id: str,
    source: str,
    heldout_fraction: float,
    language: str = "",
    title: str = "",
    url: str = "",
    revision: int = 0,
    timestamp: str = "",
    licence: str = "",
    file_sha256: str = "",
    record: RecordPosition = _NO_RECORD,
) -> Document:
    """Build a Document: split, counts and content hash are computed.

    `record` is where the document comes from in the file of `file_sha256`: the whole <page> of a dump, the line of
    JSON, the row of CSV, the lines of a book.
    """
    text = unicodedata.normalize("NFC", "\n\n".join(paragraphs))
    num_words, digest = _words_and_hash(text)
    return Document(
        doc_id=doc_id,
        source=source,
        language=language,
        title=title,
        url=url,
        revision=revision,
        timestamp=timestamp,
        text=text,
        split=split_of(doc_id, heldout_fraction),
        num_chars=len(text),
        num_words=num_words,
        content_hash=digest,
        licence=licence,
        file_sha256=file_sha256,
        record_stream=record.stream,
        record_offset=record.offset,
        record_bytes=record.bytes,
    )


def split_of(doc_id: str, heldout_fraction: float) -> Split:
    """Train or held-out, by the first 64 bits of the SHA-256 of doc_id, and so the same in every run."""
    draw = int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big") / 2**64
    return "heldout" if draw < heldout_fraction else "train"


def content_hash(text: str) -> str:
    """SHA-256 (hex) of the text without case, compatibility forms and white space: equal for exact duplicates."""
    return _words_and_hash(text)[1]


def _words_and_hash(text: str) -> tuple[int, str]:
    """The number of words and the content hash. Lines of ASCII, most lines of English, are processed together."""
    ascii_lines, other_lines, hashed = [], [], []
    for line in text.split("\n"):
        folded = case_folded(line)
        if line.isascii():
            ascii_lines.append(line)
            hashed.append(folded)
        else:
            other_lines.append(folded)
            hashed.append("".join(folded.split()))
    words = count_ascii("\n".join(ascii_lines)) + count_folded("\n".join(other_lines))
    return words, hashlib.sha256("".join(hashed).encode().translate(None, _SPACES)).hexdigest()


def document_table(documents: Sequence[Document]) -> pa.Table:
    """Documents -> a table of the schema DOCUMENT."""
    columns = zip(*map(astuple, documents), strict=True) if documents else [[] for _ in DOCUMENT]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, DOCUMENT, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DOCUMENT)
