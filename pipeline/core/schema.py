"""The Parquet schemas of documents and training examples, and how Parquet files are read and written."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cloze.pipeline.core.artifacts import damage
from cloze.pipeline.core.errors import DamagedFile, StorageError
from cloze.pipeline.core.storage import Location


class RecordPosition(NamedTuple):
    """The position of a record in its file: decompress the file from byte `stream`, skip `offset` bytes, read `bytes`.

    `stream` is where a compressed stream (of bz2 or xz; a gzip member) begins: in a dump, the one in which the record
    begins; 0 in a file that is not compressed. The record may continue in the next streams.
    """

    stream: int = 0
    offset: int = 0
    bytes: int = 0


IGNORE_INDEX = -100  # a next_sentence_label that the loss ignores, as PyTorch's ignore_index

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


def parquet_bytes(table: pa.Table, row_group_size: int = 1024) -> bytes:
    """A table -> the bytes of a Parquet file, the same for the same rows (zstd, no timestamps inside)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size, write_page_index=True)
    return sink.getvalue()


def number_parquet_bytes(batches: Iterable[pa.RecordBatch], schema: pa.Schema, row_group_size: int) -> bytes:
    """Rows of numbers -> the bytes of a Parquet file, as `parquet_bytes`. Each batch begins a new row group.

    Numbers are encoded by BYTE_STREAM_SPLIT instead of a dictionary, which takes half the time and four fifths of the
    space for token ids.
    """
    sink = io.BytesIO()
    options = {"compression": "zstd", "write_page_index": True, "use_dictionary": False, "use_byte_stream_split": True}
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size)
    return sink.getvalue()


@contextmanager
def parquet_file(location: Location, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of an artifact; reads its footer unless `metadata` is given. Raises DamagedFile."""
    with (
        parquet_errors(location),
        location.open(end_first=metadata is None) as file,
        pq.ParquetFile(file, metadata=metadata, pre_buffer=location.is_s3) as opened,
    ):
        yield opened


@contextmanager
def parquet_errors(location: Location, message: str = "") -> Iterator[None]:
    """Turn Arrow's errors about the content of a Parquet file into one-line DamagedFiles; other errors of the disk and
    of S3 stay as they are.

    {} in `message` stands for Arrow's message. The message about an artifact's file depends on its digest.
    """
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        problem = str(error).partition(chr(10))[0]
        if message:
            raise DamagedFile(f"{location}: {message.format(problem)}") from error
        raise damage(location, problem) from error


def read_table(location: Location, columns: list[str] | None = None) -> pa.Table:
    """Returns a whole Parquet file, or some of its columns. Raises DamagedFile."""
    with parquet_file(location) as file:
        return file.read(columns)


def text_key(text: str) -> int:
    """Returns a 64-bit hash of a doc_id or a source's name; its bits are not those that decide a document's split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[8:16], "big")


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the smallest integer type for the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def example_schema(vocab_size: int, masked: bool) -> pa.Schema:
    """Returns the schema of training examples, one per row.

    A row is [CLS] first [SEP] second [SEP], or, without pairs, [CLS] and sentences with a [SEP] after those of each
    document. `masked`: rows contain their masks.
    """
    ids = pa.list_(pa.field("element", pa.from_numpy_dtype(id_dtype(vocab_size)), False))
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
