"""Document, Example and their Parquet schemas: the contract between the stages."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


class Record(NamedTuple):
    """Where in its file a record lies: decompress the file from `stream` on, skip `offset` bytes, take `bytes`.

    `stream` is the byte of the file at which a compressed stream (of bz2 or xz; a gzip member) begins: in a dump, the
    one in which the record begins; 0 where the file is not compressed. The record may go on in the streams behind it.
    """

    stream: int = 0
    offset: int = 0
    bytes: int = 0


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
