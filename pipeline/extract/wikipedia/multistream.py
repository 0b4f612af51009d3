"""A bz2 file of many streams -> where its streams start, from the dump's index file or by scanning the bz2 file."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import SEEK_END
from typing import Any, cast

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads, prefetch
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus, read_blocks

_READ_BYTES, _READS_AHEAD = 4 << 20, 8  # scanned at a time; read in parallel
_INDEX_STEP_BYTES = 1 << 16  # of an index, skipped at once where no start is needed
_MAX_LINE_BYTES = 1 << 12
_STREAM_HEADER = re.compile(rb"BZh[1-9]1AY&SY")
_STREAM_HEADER_BYTES = 10
_DUMP_NAME = re.compile(r"(.*-multistream)(\d*)\.xml(-p\d+p\d+)?\.bz2")
_INDEX_ENTRY = re.compile(rb"\d+:\d+:.")


def stream_starts(location: Location, min_distance: int) -> list[int]:
    """The offsets at which streams start, without the first, and at least `min_distance` bytes from each other."""
    found: list[int] = []
    if index := next((index for index in index_candidates(location) if index.is_file()), None):
        found = _starts_from_index(location, index, min_distance)
    last = found[-1] if found else 0  # an index does not list the stream that ends the dump
    return [*found, *_scan(location, min_distance, last)]


def index_candidates(location: Location) -> list[Location]:
    """Where the index of a multistream dump may be, by the dump's name."""
    match = _DUMP_NAME.fullmatch(location.name)
    if not match:
        return []
    folder = location.uri.removesuffix(location.name)
    name = f"{match[1]}-index{match[2]}.txt{match[3] or ''}"
    return [Location(f"{folder}{name}.bz2"), Location(folder + name)]


def without_indexes(given: Sequence[Location]) -> list[Location]:
    """The given files without the indexes of dumps among them. Raises UserError for an index without its dump."""
    known = {index.name for location in given for index in index_candidates(location)}
    kept: list[Location] = []
    for location, found in zip(given, map_in_threads(is_index, given), strict=True):
        if not found:
            kept.append(location)
        elif location.name not in known:
            raise UserError(f"{location}: is the index of a multistream dump; give the dump as well, or leave it out")
    return kept


def is_index(location: Location) -> bool:
    """Whether a file, compressed or not, begins as an index does: offset:page id:title."""
    try:
        block = next(read_blocks(location, ByteRange(0, 1 << 10), ReadStatus()), None)
    except UserError:
        return False  # damaged: the reader of the file reports it
    return bool(block and _INDEX_ENTRY.match(block.data))


def _starts_from_index(location: Location, index: Location, min_distance: int) -> list[int]:
    """The stream starts that an index lists; none if it does not belong to this file."""
    try:
        found = list(_read_index(index, min_distance))
    except ValueError:  # damaged, or no index
        return []
    if not found or found[-1] >= location.size():
        return []
    with location.open() as file:
        read_header: Callable[[int], bytes] = partial(cast(Any, file).read_at, _STREAM_HEADER_BYTES)
        is_start = map_in_threads(lambda start: bool(_STREAM_HEADER.match(read_header(start))), found)
    return found if all(is_start) else []


def _read_index(index: Location, min_distance: int) -> Iterator[int]:
    last, rest = 0, b""
    for block in read_blocks(index, ByteRange(0, index.size()), ReadStatus()):
        data = rest + block.data
        position, end = 0, data.rfind(b"\n") + 1
        while position < end:
            stop = data.find(b"\n", min(position + _INDEX_STEP_BYTES, end - 1)) + 1
            if _offset(data[max(position, data.rfind(b"\n", position, stop - 1) + 1) : stop]) >= last + min_distance:
                for line in data[position:stop].splitlines():
                    if (start := _offset(line)) >= last + min_distance:
                        yield start
                        last = start
            position = stop
        rest = data[end:]
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError(f"{index}: has a line of more than {_MAX_LINE_BYTES} bytes")


def _offset(line: bytes) -> int:
    return int(line[:20].partition(b":")[0])


def _scan(location: Location, min_distance: int, last: int) -> Iterator[int]:
    """Find stream headers in the bytes from `last` on."""
    offset, tail = last, b""
    with location.open() as file:
        read: Callable[[int], bytes] = partial(cast(Any, file).read_at, _READ_BYTES)
        for block in prefetch(read, range(last, file.seek(0, SEEK_END), _READ_BYTES), _READS_AHEAD):
            data = tail + block
            for match in _STREAM_HEADER.finditer(data):
                start = offset - len(tail) + match.start()
                if start - last >= min_distance:
                    yield start
                    last = start
            offset += len(block)
            tail = data[1 - _STREAM_HEADER_BYTES :]  # a header may continue in the next block
