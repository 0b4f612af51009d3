"""Reading a shard of documents a few at a time, and writing one, in bounded memory."""

import io
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloze.pipeline.core.schema import DOCUMENT, parquet_errors
from cloze.pipeline.core.storage import Location

_READ_BYTES = 4 << 20  # of documents, at once
_MAX_ROWS, _MAX_BYTES = 1024, 8 << 20  # in a row group; its last document may exceed the bytes


def read_tables(shard: Location, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A shard's documents, a few at a time. Raises DamagedFile."""
    with (
        parquet_errors(shard),
        shard.open(end_first=True) as file,
        pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet,
    ):
        row_bytes = 1 + _uncompressed_bytes(parquet.metadata) // max(parquet.metadata.num_rows, 1)
        for batch in parquet.iter_batches(min(max(_READ_BYTES // row_bytes, 1), _MAX_ROWS), columns=columns):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(parquet.schema_arrow.metadata)


def kept_documents(shard: Location, removed: npt.NDArray[np.int64], counts: Counter[str]) -> Iterator[pa.Table]:
    """A shard's documents without the removed rows, a few at a time. Adds to `counts`."""
    for table in read_tables(shard):
        rows = np.arange(counts["records"], counts["records"] + len(table))
        kept = table.filter(pa.array(~np.isin(rows, removed)))
        heldout = kept["split"].to_pylist().count("heldout")
        words = int(kept["num_words"].to_numpy().sum())
        counts.update(records=len(table), documents=len(kept), words=words, heldout=heldout)
        yield kept


def _uncompressed_bytes(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def shard_bytes(tables: Iterator[pa.Table]) -> bytes:
    """The bytes of a Parquet file in row groups of a thousand documents, or fewer if they are long."""
    sink, pending = io.BytesIO(), []
    with pq.ParquetWriter(sink, DOCUMENT, compression="zstd", write_page_index=True, write_batch_size=16) as writer:
        for table in tables:
            pending.append(table)
            if sum(map(len, pending)) >= _MAX_ROWS or sum(some.nbytes for some in pending) >= _MAX_BYTES:
                writer.write_table(pa.concat_tables(pending))
                pending.clear()
        if any(map(len, pending)):
            writer.write_table(pa.concat_tables(pending))
    return sink.getvalue()
