"""A compressed stream, which only one reader can read -> partitions of whole pages, which many workers read.

Partitions are zstd-compressed files in scratch; the name of each says up to which byte of the stream it reaches. Each
page is preceded by its position in the user's file. A record that lists the partitions is written last: without it, the
stream is not repartitioned yet.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus
from cloze.pipeline.extract.wikipedia.page_splitter import split_pages

_SUFFIX = ".pages"
_EXPANSION = 5  # bytes of XML in a compressed byte, about
_PAGE_HEADER = struct.Struct("<4q")  # before each page: its RecordPosition, and its number of bytes (0: malformed)


class Stream(NamedTuple):
    """A file, or a range of it, that is one compressed stream. `dbname` names its wiki."""

    name: str
    location: Location
    byte_range: ByteRange
    dbname: str

    def __str__(self) -> str:
        return f"stream {self.name} (bytes {self.byte_range.start}-{self.byte_range.end} of {self.location})"


class Partition(NamedTuple):
    """A file of whole pages. `name` is the part (see Output) that is extracted from it, `byte_range` the bytes of the
    stream that it was read from, `truncation` why the stream ends too early, empty if it does not.
    """

    name: str
    location: Location
    byte_range: ByteRange
    truncation: str


def unfinished(streams: Sequence[Stream], scratch: Location, out: Output) -> list[Stream]:
    """The streams that are not repartitioned yet."""
    return [stream for stream in streams if not finished_partitions(stream, scratch, out)]


@contextmanager
def report_progress(streams: Sequence[Stream], scratch: Location, out: Output, size: int) -> Iterator[None]:
    """While inside, report how many of the streams' bytes are repartitioned, into partitions of `size` bytes."""
    total = sum(stream.byte_range.size for stream in streams)

    def done() -> float:
        reached = {stream.name: stream.byte_range.start for stream in streams}
        for path in scratch.sizes():
            stream, _, name = path.partition("/")
            if stream in reached and name.endswith(_SUFFIX):
                reached[stream] = max(reached[stream], _end(name))
        return sum(reached[stream.name] - stream.byte_range.start for stream in streams) / 1e6

    expected = sum(1 + stream.byte_range.size * _EXPANSION // size for stream in streams)
    with out.reporting_progress(done, total / 1e6, "MB", "repartitioning compressed files", listed=expected):
        yield


def write_partitions(stream: Stream, scratch: Location, out: Output, size: int) -> None:
    """Write the partitions of a stream, of `size` bytes of pages each, then their record.

    A partition that exists, or whose part is committed, is not written again, and a finished stream is not read again.
    """
    if finished_partitions(stream, scratch, out):
        return
    folder, status = scratch / stream.name, ReadStatus()
    # What listings contain is confirmed by name; what they omit is written again, with the same bytes.
    partitions, parts = folder.sizes(), (out.location / "parts").sizes()
    ends: list[int] = []

    def is_written(file: Location, part: str) -> bool:
        return (file.name in partitions and file.is_file()) or (
            f"{part}.json" in parts and out.finished_part(part) is not None
        )

    def close(partition: _PartitionWriter) -> None:
        file = _file(folder, len(ends), status.bytes_read)
        if not is_written(file, _part_name(stream, len(ends))):
            file.write_bytes(partition.data())
        ends.append(status.bytes_read)

    partition = _PartitionWriter()
    for page, record in split_pages(stream.location, stream.byte_range, stream.dbname, status):
        partition.add(page, record)
        if partition.size >= size:
            close(partition)
            partition = _PartitionWriter()
    if partition.size or not ends:
        close(partition)
    _record_file(folder).write_text(json.dumps({"ends": ends, "truncated": status.truncation}))


def finished_partitions(stream: Stream, scratch: Location, out: Output) -> list[Partition]:
    """All partitions of a stream; none if it is not repartitioned yet, or if one is missing that is still needed."""
    folder = scratch / stream.name
    try:
        record = json.loads(_record_file(folder).read_bytes())
    except FileNotFoundError:
        return []
    starts = [stream.byte_range.start, *record["ends"][:-1]]
    partitions = [
        Partition(_part_name(stream, number), _file(folder, number, end), ByteRange(start, end), "")
        for number, (start, end) in enumerate(zip(starts, record["ends"], strict=True))
    ]
    if not all(map_in_threads(lambda one: one.location.is_file() or bool(out.finished_part(one.name)), partitions)):
        return []
    return [*partitions[:-1], partitions[-1]._replace(truncation=record["truncated"])]


def require_partitions(stream: Stream, scratch: Location, out: Output) -> list[Partition]:
    """All partitions of a stream. Raises UserError when it is not repartitioned, or one is missing."""
    if partitions := finished_partitions(stream, scratch, out):
        return partitions
    raise UserError(
        f"{_record_file(scratch / stream.name)}: this list, or a partition in it, of {stream} is missing; run again: "
        "finished parts are kept"
    )


def partition_pages(partition: Partition, status: ReadStatus) -> Iterator[tuple[bytes, RecordPosition]]:
    """The pages of a partition, as `split_pages` yielded them."""
    with partition.location.open() as file, pa.input_stream(file, compression="zstd") as stream:
        data = stream.read()
    stop = 0
    while stop < len(data):
        *record, size = _PAGE_HEADER.unpack_from(data, stop)
        start = stop + _PAGE_HEADER.size
        stop = start + size
        yield data[start:stop], RecordPosition(*record)
    assert stop == len(data), f"{partition.location} does not end with a page"
    status.truncation = partition.truncation


def _record_file(folder: Location) -> Location:
    return Location(f"{folder}.json")


def _file(folder: Location, number: int, end: int) -> Location:
    return folder / f"{number:05}-{end}{_SUFFIX}"


def _part_name(stream: Stream, number: int) -> str:
    return f"{stream.name}.{number:05}"


def _end(name: str) -> int:
    """The byte of the stream up to which the partition of this name reaches."""
    return int(name.partition("-")[2].removesuffix(_SUFFIX))


class _PartitionWriter:
    """Collects the pages of one partition in memory, compressed."""

    def __init__(self) -> None:
        self.size = 0
        self._sink = pa.BufferOutputStream()
        self._stream = pa.CompressedOutputStream(self._sink, "zstd")

    def add(self, page: bytes, record: RecordPosition) -> None:
        header = _PAGE_HEADER.pack(*record, len(page))
        self._stream.write(header)
        self._stream.write(page)
        self.size += len(header) + len(page)

    def data(self) -> pa.Buffer:
        self._stream.close()
        return self._sink.getvalue()
