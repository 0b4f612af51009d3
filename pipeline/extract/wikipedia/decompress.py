"""A file -> its bytes, decompressed stream by stream (bz2, gz, xz, lzma) where it is compressed."""

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_types import HEAD_BYTES, compression_of
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.wikipedia import format_check

_READ = 1 << 20  # bytes of the file at a time
_BLOCK = 4 << 20  # decompressed bytes at a time, however well they compress
_MEMORY = 256 << 20  # bytes of memory that unpacking xz may want; xz -9 wants 65 MB


class Range(NamedTuple):
    """Bytes [start, end) of a file: what begins there."""

    start: int
    end: int


class Block(NamedTuple):
    """Decompressed bytes, whether they begin in the span, and where: the compressed stream, and the byte of it."""

    data: bytes
    inside: bool
    stream: int
    offset: int


@dataclass
class Truncation:
    """What a reader met: why the file seems cut, empty if it does not, and how many bytes of the file it has read."""

    reason: str = ""
    read: int = 0


def compression(location: Location) -> str:
    """ "xml", "bz2", "gz" or "xz", by the file's first bytes whatever its name; UserError for what is no dump."""
    with location.open() as file:
        head = file.read(HEAD_BYTES)
    kind = compression_of(head)
    if not kind:
        format_check.refuse(location, head)
    return kind or "xml"


def blocks(location: Location, span: Range, truncation: Truncation) -> Iterator[Block]:
    """Decompressed blocks from `span.start` to the end of the file.

    Raises UserError: damaged compression.
    """
    with location.open() as file:
        kind = compression_of(file.read(HEAD_BYTES))
        if not kind:
            yield from _plain_blocks(file, span, truncation)
            return
        try:
            yield from _decompressed(file, kind, span, truncation)
        except (OSError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if "limit" in str(error):
                raise UserError(
                    f"{location}: wants more than {_MEMORY >> 20} MB of memory; unpack it first (xz -d)"
                ) from error
            raise UserError(
                f"{location}: is damaged {kind} ({error}); fetch it again and compare its checksum"
            ) from error


def _plain_blocks(file: BinaryIO, span: Range, truncation: Truncation) -> Iterator[Block]:
    file.seek(span.start)
    position = span.start
    while block := file.read(_READ if position >= span.end else min(_READ, span.end - position)):
        truncation.read = position + len(block)
        yield Block(block, position < span.end, 0, position)
        position += len(block)


def _decompressed(file: BinaryIO, kind: str, span: Range, truncation: Truncation) -> Iterator[Block]:
    """One compressed stream after another, as the tools that concatenate them leave them."""
    file.seek(span.start)
    truncation.read = span.start

    def more() -> bytes:
        block = file.read(_READ)
        truncation.read += len(block)
        return block

    data = more()
    while data:
        start, offset = truncation.read - len(data), 0
        stream = _stream(kind)
        while not stream.eof:
            block = stream.decompress(data, _BLOCK)
            if block:
                yield Block(block, start < span.end, start, offset)
                offset += len(block)
            if stream.eof:
                break
            data = b""
            if stream.needs_input:
                data = more()
                if not data:
                    truncation.reason = f"its {kind} stream is cut off"
                    return
        data = stream.unused_data or more()
        while kind == "xz" and data and not (data := data.lstrip(b"\0")):  # streams may be padded
            data = more()
        if len(data) < HEAD_BYTES:
            data += more()
        if compression_of(data) != kind:
            return  # padding, or what bzip2 and gzip ignore as well


def _stream(kind: str) -> "bz2.BZ2Decompressor | lzma.LZMADecompressor | _Gzip":
    if kind == "xz":
        return lzma.LZMADecompressor(memlimit=_MEMORY)
    return bz2.BZ2Decompressor() if kind == "bz2" else _Gzip()


class _Gzip:
    """zlib's decompressor with bz2's manners."""

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
