"""Records of numbers <-> the contents of a file with buckets (core/bucket_files.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.bucket_files import read_bucket
from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.storage import Location


def split_records(records: npt.NDArray[Any], bucket: npt.NDArray[Any], num_buckets: int) -> list[memoryview]:
    """Records, and the number of each one's bucket -> the content of each bucket. Records keep their order in it."""
    bucket = bucket.astype(np.uint16 if num_buckets <= 1 << 16 else np.int64)  # 16 bits are sorted five times faster
    offsets = offsets_of(np.bincount(bucket, minlength=num_buckets)) * records.itemsize
    data = records[np.argsort(bucket, kind="stable")].view(np.uint8).data
    return [data[start:end] for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def read_records(files: Sequence[Location], dtype: np.dtype[Any], num_buckets: int, bucket: int) -> npt.NDArray[Any]:
    """Returns the records of a bucket in all files, in the order of the files. Raises as `read_bucket` does."""
    contents = read_bucket(files, num_buckets, bucket)
    return np.concatenate([np.zeros(0, dtype), *(np.frombuffer(content, dtype) for content in contents)])
