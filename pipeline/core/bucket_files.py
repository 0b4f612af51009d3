"""Exchange between the items of two steps: files with a content for each of a number of buckets.

An item of the first step writes one file with a content for every item of the next step (a bucket). An item of the next
step reads its bucket of every file: a request for each file and bucket. To keep them few, the first step's items are
groups of shards (`shard_groups`), and a process reads the header of a file once. Up to 512 shards the number of groups
stays nearly the same, so that requests grow with the input; beyond, they grow with its square, divided by 32.

A file is a header of 8-byte integers (the offsets [buckets + 1] of the contents, the CRC-32 of each, and the header's
own), followed by the contents. Files are never replaced by others with a different content.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from zlib import crc32

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads

_MIN_GROUPS, _MAX_GROUP = 16, 32  # groups; shards in a group
_CACHED_HEADERS = 4096  # per process


def shard_groups(count: int) -> list[range]:
    """Shards 0 to count - 1 -> groups of consecutive ones: 16 to 31 groups, and above 512 shards groups of 32.

    The groups depend on `count` alone, so that the next attempt has the same ones.
    """
    size = min(max(count // _MIN_GROUPS, 1), _MAX_GROUP)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def write_buckets(file: Location, contents: Sequence[bytes | memoryview]) -> None:
    """Write a file with the content of each bucket."""
    offsets = offsets_of(np.array([memoryview(content).nbytes for content in contents], np.int64))
    header = np.concatenate([offsets, np.array([crc32(content) for content in contents], np.int64)]).tobytes()
    file.write_bytes(b"".join([header, crc32(header).to_bytes(8, "little"), *contents]))


def read_bucket(files: Sequence[Location], num_buckets: int, bucket: int) -> list[bytes]:
    """Returns the content of a bucket in each file. Raises FileNotFoundError, DamagedFile and StorageError."""
    return map_in_threads(partial(_read_bucket, num_buckets=num_buckets, bucket=bucket), files)


def _read_bucket(file: Location, num_buckets: int, bucket: int) -> bytes:
    header = _header(file, num_buckets)
    start, end = (header.nbytes + 8 + header[bucket : bucket + 2]).tolist()
    return file.read_range(start, end, lambda data: crc32(data) == header[num_buckets + 1 + bucket])


@lru_cache(_CACHED_HEADERS)
def _header(file: Location, num_buckets: int) -> npt.NDArray[np.int64]:
    """[2 * buckets + 1]: offsets, and the CRC-32 of each content."""
    size = 8 * (2 * num_buckets + 2)
    data = file.read_range(0, size, lambda data: crc32(data[:-8]) == int.from_bytes(data[-8:], "little"))
    return np.frombuffer(data[:-8], np.int64)
