"""A file -> its bytes, decompressed stream by stream (bz2, gz, xz, lzma) if it is compressed."""

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.file_types import HEAD_BYTES, compression_of
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia import format_check

_READ_BYTES = 1 << 20  # of the file at a time
_BLOCK_BYTES = 4 << 20  # decompressed, at a time, however well they compress
_XZ_MEMORY_BYTES = 256 << 20  # that decompressing xz may use; xz -9 needs 65 MB


class DecompressedBlock(NamedTuple):
    """Decompressed bytes, whether they begin in the requested range, and where: the offset of the compressed stream in
    the file, and their offset in the decompressed stream.
    """

    data: bytes
    in_range: bool
    stream: int
    offset: int


@dataclass
class ReadStatus:
    """Filled in by a reader: why the file seems truncated (empty if it does not), and how far it has been read."""

    truncation: str = ""
    bytes_read: int = 0  # of the file as it is stored, from its beginning


def compression(location: Location) -> str:
    """ "xml", "bz2", "gz" or "xz", by the file's first bytes, not its name. Raises UserError for other formats."""
    with location.open() as file:
        head = file.read(HEAD_BYTES)
    kind = compression_of(head)
    if not kind:
        format_check.check_format(location, head)
    return kind or "xml"


def read_blocks(location: Location, byte_range: ByteRange, status: ReadStatus) -> Iterator[DecompressedBlock]:
    """Decompressed blocks from the start of the range to the end of the file.

    Raises UserError: damaged compression.
    """
    with location.open() as file:
        kind = compression_of(file.read(HEAD_BYTES))
        if not kind:
            yield from _plain_blocks(file, byte_range, status)
            return
        try:
            yield from _decompressed_blocks(file, kind, byte_range, status)
        except (OSError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if "limit" in str(error):
                raise UserError(
                    f"{location}: needs more than {_XZ_MEMORY_BYTES >> 20} MB of memory; decompress it first (xz -d)"
                ) from error
            raise DamagedFile(
                f"{location}: is damaged {kind} ({error}); fetch it again and compare its checksum"
            ) from error


def _plain_blocks(file: BinaryIO, byte_range: ByteRange, status: ReadStatus) -> Iterator[DecompressedBlock]:
    file.seek(byte_range.start)
    position, end = byte_range
    while block := file.read(_READ_BYTES if position >= end else min(_READ_BYTES, end - position)):
        status.bytes_read = position + len(block)
        yield DecompressedBlock(block, position < end, 0, position)
        position += len(block)


def _decompressed_blocks(
    file: BinaryIO, kind: str, byte_range: ByteRange, status: ReadStatus
) -> Iterator[DecompressedBlock]:
    """Blocks of one compressed stream after the other; dumps are often concatenated streams."""
    file.seek(byte_range.start)
    status.bytes_read = byte_range.start

    def read_more() -> bytes:
        block = file.read(_READ_BYTES)
        status.bytes_read += len(block)
        return block

    data = read_more()
    while data:
        start, offset = status.bytes_read - len(data), 0
        stream = _decompressor(kind)
        while not stream.eof:
            block = stream.decompress(data, _BLOCK_BYTES)
            if block:
                yield DecompressedBlock(block, start < byte_range.end, start, offset)
                offset += len(block)
            if stream.eof:
                break
            data = b""
            if stream.needs_input:
                data = read_more()
                if not data:
                    status.truncation = f"its {kind} stream is cut off"
                    return
        data = stream.unused_data or read_more()
        while kind == "xz" and data and not (data := data.lstrip(b"\0")):  # streams may be padded
            data = read_more()
        if len(data) < HEAD_BYTES:
            data += read_more()
        if compression_of(data) != kind:
            return  # padding, or trailing bytes that bzip2 and gzip ignore as well


def _decompressor(kind: str) -> "bz2.BZ2Decompressor | lzma.LZMADecompressor | _GzipDecompressor":
    if kind == "xz":
        return lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
    return bz2.BZ2Decompressor() if kind == "bz2" else _GzipDecompressor()


class _GzipDecompressor:
    """zlib's decompressor with the interface of bz2.BZ2Decompressor."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data
