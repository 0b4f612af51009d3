"""An object on S3 as a binary file for reading."""

import io
from functools import cached_property
from typing import Self

from cloze.pipeline.core import s3

_WHOLE = 4 << 20  # a file of at most so many bytes is read at once, which checks its content; of others, the end
_READ_AHEAD = 4 << 20  # bytes that a request of a sequential read asks for


class S3File(io.RawIOBase):
    """A file that is read in ranges, each by a request of its own; sequential reads are buffered. Its reads of a known
    position, `read_at`, may be called in several threads.
    """

    def __init__(self, path: str, info: s3.ObjectInfo, end: bytes = b"") -> None:
        """`end`: the file's last bytes, which are not read again."""
        self._path, self._info, self._end = path, info, end
        self._position = 0
        self._buffer, self._buffer_start = b"", 0

    @classmethod
    def open_with_end(cls, path: str) -> Self:
        """Open a file with the request that reads its end. Raises FileNotFoundError."""
        return cls(path, *s3.read_end(path, _WHOLE))

    @cached_property
    def _whole(self) -> bytes:
        return s3.read_whole(self._path, self._info)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def size(self) -> int:
        return self._info.size

    def read_at(self, length: int, offset: int) -> bytes:
        """Returns `length` bytes from `offset` on, fewer at the end of the file."""
        end = min(offset + length, self._info.size)
        if offset >= (start_of_end := self._info.size - len(self._end)):
            return self._end[offset - start_of_end : max(end - start_of_end, 0)]
        if self._info.size <= _WHOLE:
            return self._whole[offset:end]
        return s3.read_range(self._path, self._info, offset, end)

    def read(self, size: int | None = -1, /) -> bytes:
        remaining = max(0, self._info.size - self._position)
        length = remaining if size is None or size < 0 else min(size, remaining)
        start = self._position
        begin = start - self._buffer_start
        if not 0 <= begin <= begin + length <= len(self._buffer):
            is_sequential = begin == len(self._buffer) or not self._buffer
            self._buffer = self.read_at(max(length, _READ_AHEAD) if is_sequential else length, start)
            self._buffer_start, begin = start, 0
        self._position += length
        return self._buffer[begin : begin + length]

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
