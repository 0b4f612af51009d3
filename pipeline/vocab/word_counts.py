"""Counted words as columns: tables of counts -> their sum, and words -> their characters, without an object per word.

Workers count the words of a group of shards and split them by hash into buckets. The same word of all groups is in one
bucket, so that the buckets are added one at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.text.tokenizer import MAX_CHARS_PER_WORD

#: Each distinct word, and how often it occurs in the train split and in the held-out split.
SPLIT_COUNTS = pa.schema({"word": pa.string(), "train": pa.int64(), "heldout": pa.int64()})
_ROW_GROUP = 1 << 16  # rows


class WordCounts(NamedTuple):
    """Distinct words, none of them empty, and how often each occurs."""

    words: pa.StringArray
    counts: npt.NDArray[np.int64]

    def filter(self, kept: npt.NDArray[np.bool_]) -> "WordCounts":
        return WordCounts(self.words.filter(pa.array(kept)), self.counts[kept])

    def characters(self) -> Ragged:
        """Returns the code points of each word."""
        whole = pa.ListArray.from_arrays(pa.array([0, len(self.words)], pa.int32()), self.words)
        text: str = pc.call_function("binary_join", [whole, pa.scalar("")])[0].as_py()
        return Ragged(np.frombuffer(text.encode("utf-32-le"), np.uint32), offsets_of(self.lengths()))

    def lengths(self) -> npt.NDArray[np.int32]:
        """Returns the number of characters of each word."""
        return pc.call_function("utf8_length", [self.words]).to_numpy()


def short_words(words: Iterable[WordCounts]) -> Iterator[WordCounts]:
    """Yields the words that are not too long for WordPiece."""
    for some in words:
        yield some.filter(some.lengths() <= MAX_CHARS_PER_WORD)


def counts_table(train: dict[str, int], heldout: dict[str, int]) -> pa.Table:
    """The counted words of the two splits -> a table of SPLIT_COUNTS, sorted by word."""
    words = sorted(train.keys() | heldout.keys())
    columns = [words, [train.get(word, 0) for word in words], [heldout.get(word, 0) for word in words]]
    return pa.table(columns, schema=SPLIT_COUNTS)


def words_file(table: pa.Table) -> bytes:
    """A table of SPLIT_COUNTS -> the bytes of a Parquet file."""
    return parquet_bytes(table, row_group_size=_ROW_GROUP)


def add_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of SPLIT_COUNTS -> one with their sums, in the order in which the words first occur."""
    groups = pa.concat_tables([SPLIT_COUNTS.empty_table(), *tables]).group_by("word", use_threads=False)
    return groups.aggregate([("train", "sum"), ("heldout", "sum")]).rename_columns(SPLIT_COUNTS.names)


def split_by_hash(table: pa.Table, num_buckets: int) -> list[bytes]:
    """A table of SPLIT_COUNTS -> one words file per bucket."""
    hashes = [crc32(word.encode()) for word in table["word"].to_pylist()]
    buckets = np.array(hashes, np.int64) % num_buckets
    return [words_file(table.filter(pa.array(buckets == bucket))) for bucket in range(num_buckets)]


def add_words_files(files: Iterable[bytes]) -> tuple[WordCounts, WordCounts]:
    """Words files of one bucket -> the summed counts of the train split and of the held-out split."""
    table = add_counts([pq.read_table(pa.BufferReader(data)) for data in files])
    words = table["word"].combine_chunks()
    train, heldout = (WordCounts(words, table[split].to_numpy()) for split in ("train", "heldout"))
    return train.filter(train.counts > 0), heldout.filter(heldout.counts > 0)
