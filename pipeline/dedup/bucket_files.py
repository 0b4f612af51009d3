"""Records of numbers <-> a file from which those of one bucket can be read alone.

A file holds the offsets of the buckets, then the records in the order of their buckets.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.storage import Location


def write_buckets(file: Location, records: npt.NDArray[Any], bucket: npt.NDArray[Any], num_buckets: int) -> None:
    """Write records; `bucket` holds the number of each one's bucket."""
    order = np.argsort(bucket, kind="stable")
    offsets = offsets_of(np.bincount(bucket.astype(np.int64), minlength=num_buckets))
    file.write_bytes(offsets.tobytes() + records[order].tobytes())


def read_bucket(
    file: Location, dtype: np.dtype[Any], num_buckets: int, bucket: int | None = None
) -> tuple[npt.NDArray[Any], int]:
    """The records of a bucket, or of all; and the number of records in the file."""
    with file.open() as opened:
        offsets = np.frombuffer(opened.read(8 * (num_buckets + 1)), np.int64)
        start, end = (0, offsets[-1]) if bucket is None else offsets[bucket : bucket + 2]
        opened.seek(8 * (num_buckets + 1) + int(start) * dtype.itemsize)
        return np.frombuffer(opened.read(int(end - start) * dtype.itemsize), dtype), int(offsets[-1])
