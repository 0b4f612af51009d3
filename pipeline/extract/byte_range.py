"""A range of bytes of a file: the unit in which large files are read in parallel."""

from typing import NamedTuple


class ByteRange(NamedTuple):
    """Bytes [start, end) of a file. A reader of the range reads every record that begins in it."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start
