"""A compressed stream that only one reader can read -> pieces of whole pages, which many can.

Pieces lie in scratch, zstd-compressed, each in a file whose name says how far in the stream it reaches; before each
page stands where in the user's file it lies. A record of all of them is written last: without it the stream is not
spooled yet.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from cloze.pipeline.core.artifacts import Output
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.extract.wikipedia.decompress import Range, Truncation
from cloze.pipeline.extract.wikipedia.page_splitter import page_bytes

_HEAD = struct.Struct("<4q")  # before a page: its Record, and the bytes that are stored of it, none if it is not whole


class Stream(NamedTuple):
    """A file, or a range of it, that has one reader; `dbname` is its wiki's."""

    name: str
    location: Location
    span: Range
    dbname: str

    def __str__(self) -> str:
        return f"stream {self.name} (bytes {self.span.start}-{self.span.end} of {self.location})"


class Stored(NamedTuple):
    """A piece: the name of its part, its file, the bytes of the stream it was read from, why the stream ends there."""

    name: str
    location: Location
    span: Range
    truncated: str


def missing(streams: Sequence[Stream], scratch: Location, out: Output) -> list[Stream]:
    """The streams that are not cut yet."""
    return [stream for stream in streams if not stored(stream, scratch, out)]


@contextmanager
def progress(streams: Sequence[Stream], scratch: Location, out: Output) -> Iterator[None]:
    """Inside, how many of the streams' bytes are cut is told."""
    total = sum(stream.span.end - stream.span.start for stream in streams)

    def done() -> float:
        return sum(max(0, _reach(scratch / stream.name) - stream.span.start) for stream in streams) / 1e6

    with out.reporting_progress(done, total / 1e6, "MB", "cutting compressed files into pieces"):
        yield


def spool(stream: Stream, scratch: Location, out: Output, size: int) -> None:
    """Write the pieces of a stream, then their record. Pieces that lie there or are done with are not written again."""
    folder, truncation = scratch / stream.name, Truncation()
    ends: list[int] = []

    def close(piece: _Piece) -> None:
        file = _file(folder, len(ends), truncation.read)
        if not file.is_file() and not out.finished_part(_part(stream, len(ends))):
            file.write_bytes(piece.data())
        ends.append(truncation.read)

    piece = _Piece()
    for page, record in page_bytes(stream.location, stream.span, stream.dbname, truncation):
        piece.add(page, record)
        if piece.size >= size:
            close(piece)
            piece = _Piece()
    if piece.size or not ends:
        close(piece)
    _record(folder).write_text(json.dumps({"ends": ends, "truncated": truncation.reason}))


def stored(stream: Stream, scratch: Location, out: Output) -> list[Stored]:
    """The pieces of a stream; none where it is not cut yet, or a piece is gone that is not done with."""
    folder = scratch / stream.name
    try:
        record = json.loads(_record(folder).read_bytes())
    except FileNotFoundError:
        return []
    pieces = [
        Stored(_part(stream, number), _file(folder, number, end), Range(start, end), "")
        for number, (start, end) in enumerate(
            zip([stream.span.start, *record["ends"][:-1]], record["ends"], strict=True)
        )
    ]
    if not all(map_in_threads(lambda piece: piece.location.is_file() or bool(out.finished_part(piece.name)), pieces)):
        return []
    return [*pieces[:-1], pieces[-1]._replace(truncated=record["truncated"])]


def stored_bytes(piece: Stored, truncation: Truncation) -> Iterator[tuple[bytes, RecordPosition]]:
    """The pages of a piece, as `page_bytes` gave them."""
    with piece.location.open() as file, pa.input_stream(file, compression="zstd") as stream:
        data = stream.read()
    stop = 0
    while stop < len(data):
        *place, size = _HEAD.unpack_from(data, stop)
        start = stop + _HEAD.size
        stop = start + size
        yield data[start:stop], RecordPosition(*place)
    assert stop == len(data), f"{piece.location} does not end with a page"
    truncation.reason = piece.truncated


def _record(folder: Location) -> Location:
    return Location(f"{folder}.json")


def _file(folder: Location, number: int, end: int) -> Location:
    return folder / f"{number:05}-{end}.pages"


def _part(stream: Stream, number: int) -> str:
    return f"{stream.name}.{number:05}"


def _reach(folder: Location) -> int:
    """How far in its stream the pieces reach that lie in a folder."""
    return max((int(file.name.partition("-")[2].removesuffix(".pages")) for file in folder.files()), default=0)


class _Piece:
    """Pages on their way into a file."""

    def __init__(self) -> None:
        self.size = 0
        self._sink = pa.BufferOutputStream()
        self._stream = pa.CompressedOutputStream(self._sink, "zstd")

    def add(self, page: bytes, record: RecordPosition) -> None:
        head = _HEAD.pack(*record, len(page))
        self._stream.write(head)
        self._stream.write(page)
        self.size += len(head) + len(page)

    def data(self) -> pa.Buffer:
        self._stream.close()
        return self._sink.getvalue()
