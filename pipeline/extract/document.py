"""Paragraphs and what is known of them -> a document: its split, its counts and its hash."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import pyarrow as pa

from cloze.pipeline.core.schema import DOCUMENT, RecordPosition
from cloze.pipeline.text.words import case_folded, count_ascii, count_folded

_NOWHERE = RecordPosition()

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
    record: RecordPosition = _NOWHERE,
) -> Document:
    """Paragraphs and what is known of them -> a Document with its split, counts and hash filled in.

    `record` is where in the file of `file_sha256` the document is from: its dump's whole <page>, its line of JSON, its
    row of CSV, its lines of a book.
    """
    text = unicodedata.normalize("NFC", "\n\n".join(paragraphs))
    num_words, digest = _measured(text)
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
    """Train or held-out, by the first 64 bits of the SHA-256 of doc_id: the same wherever and whenever it is asked."""
    draw = int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big") / 2**64
    return "heldout" if draw < heldout_fraction else "train"


def content_hash(text: str) -> str:
    """SHA-256 (hex) of the text without case, compatibility forms and white space: equal for exact duplicates."""
    return _measured(text)[1]


def _measured(text: str) -> tuple[int, str]:
    """The number of words and the content hash. Lines of ASCII, the most by far in English, are taken at once."""
    plain, others, bare = [], [], []
    for line in text.split("\n"):
        folded = case_folded(line)
        if line.isascii():
            plain.append(line)
            bare.append(folded)
        else:
            others.append(folded)
            bare.append("".join(folded.split()))
    words = count_ascii("\n".join(plain)) + count_folded("\n".join(others))
    return words, hashlib.sha256("".join(bare).encode().translate(None, _SPACES)).hexdigest()


def document_table(documents: Sequence[Document]) -> pa.Table:
    columns = zip(*map(astuple, documents), strict=True) if documents else [[] for _ in DOCUMENT]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, DOCUMENT, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DOCUMENT)
