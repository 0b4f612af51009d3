"""Document, Example and their Parquet schemas: the contract between the stages."""

import hashlib
import io
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import UserError
from pipeline.storage import Location
from pipeline.streams import Record
from pipeline.words import case_folded, count_ascii, count_folded

_NOWHERE = Record()
_SPACES = bytes(code for code in range(128) if chr(code).isspace())

Split = Literal["train", "heldout"]
IGNORED = -100  # a next_sentence_label that counts for nothing, as in PyTorch's losses

DOCUMENT = pa.schema(
    [
        pa.field("doc_id", pa.string(), False, {"about": "stable: from the source's own identity"}),
        pa.field("source", pa.string(), False, {"about": "the source's name in the configuration"}),
        pa.field("language", pa.string(), False, {"about": "ISO 639 code, empty if not known"}),
        pa.field("title", pa.string(), False),
        pa.field("url", pa.string(), False),
        pa.field("revision", pa.int64(), False, {"about": "0 where the source has none"}),
        pa.field("timestamp", pa.string(), False, {"about": "ISO 8601, empty if not known"}),
        pa.field(
            "text",
            pa.string(),
            False,
            {"about": "paragraphs, a blank line between them; or sentences, each with a line break behind it; NFC"},
        ),
        pa.field("split", pa.string(), False, {"about": "train or heldout, by a hash of doc_id"}),
        pa.field("num_chars", pa.int64(), False),
        pa.field("num_words", pa.int64(), False, {"about": "as pipeline/words.py defines a word"}),
        pa.field("content_hash", pa.string(), False, {"about": "SHA-256 of the text without case and white space"}),
        pa.field("licence", pa.string(), False),
        pa.field("file_sha256", pa.string(), False, {"about": "SHA-256 of the source file, as it was brought"}),
        pa.field(
            "record_stream",
            pa.int64(),
            False,
            {"about": "byte of the file from which on to decompress; 0 where it is not compressed"},
        ),
        pa.field(
            "record_offset",
            pa.int64(),
            False,
            {"about": "bytes from there to the record, decompressed; of Parquet the row's number, from 0"},
        ),
        pa.field("record_bytes", pa.int64(), False, {"about": "the record's length, decompressed; of Parquet 0"}),
    ]
)


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
    record: Record = _NOWHERE,
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


def parquet_bytes(table: pa.Table, row_group_size: int = 1024, numbers: bool = False) -> bytes:
    """A table -> the bytes of a Parquet file: the same bytes for the same rows (zstd, no timestamps inside).

    `numbers`: it holds nothing but numbers; bytes of equal weight are laid together instead of a dictionary, which
    takes half the time and four fifths of the room for ids of pieces.
    """
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=row_group_size,
        write_page_index=True,
        use_dictionary=not numbers,
        use_byte_stream_split=numbers,
    )
    return sink.getvalue()


@contextmanager
def parquet_file(location: Location, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file of an artifact's; its footer is read unless it is given. Raises UserError where it is damaged."""
    with (
        parquet_errors(location),
        location.open() as file,
        pq.ParquetFile(file, metadata=metadata, pre_buffer=location.is_s3) as opened,
    ):
        yield opened


@contextmanager
def parquet_errors(location: Location, said: str = "is damaged; run its stage again with --force") -> Iterator[None]:
    """Arrow's errors of what a Parquet file holds become UserErrors in one line; those of its disk stay what they are.

    `said` may show Arrow's words as {}.
    """
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{location}: {said.format(str(error).partition(chr(10))[0])}") from error


def read_table(location: Location, columns: list[str] | None = None) -> pa.Table:
    """A whole file, or some of its columns. Raises UserError where it is damaged."""
    with parquet_file(location) as file:
        return file.read(columns)


def text_key(text: str) -> int:
    """64 bits for a doc_id or the name of a source; of a doc_id, others than those that decide its split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[8:16], "big")


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def example_schema(vocab_size: int, masked: bool) -> pa.Schema:
    """A row is one training example: [CLS] first [SEP] second [SEP], or, where there are no pairs, [CLS] and sentences
    with a [SEP] behind those of each document. `masked`: its masks are stored with it.
    """
    ids = pa.list_(pa.field("element", pa.from_numpy_dtype(id_type(vocab_size)), False))
    fields = [
        pa.field("input_ids", ids, False, {"about": "without padding; masked where masks are stored"}),
        pa.field(
            "segment_b", pa.int32(), False, {"about": "where token_type_ids turn from 0 to 1; the length: nowhere"}
        ),
        pa.field(
            "next_sentence_label",
            pa.int8(),
            False,
            {"about": "0: the second follows the first, 1: it is random, or the two changed places; -100: no pair"},
        ),
    ]
    if masked:
        positions = pa.list_(pa.field("element", pa.int16(), False))
        fields += [
            pa.field("masked_lm_positions", positions, False, {"about": "ascending"}),
            pa.field("masked_lm_labels", ids, False, {"about": "what stood there"}),
        ]
    return pa.schema(fields)
