"""A bz2 file of many streams -> where they start, from the index beside it or by looking through the file."""

import re
from collections.abc import Iterator, Sequence

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.wikipedia.decompress import Range, Truncation, blocks

_READ = 4 << 20  # bytes looked through at a time
_LINES = 1 << 16  # bytes of an index that are passed over at once where no start is wanted
_MAX_LINE = 1 << 12  # bytes
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_DUMP = re.compile(r"(.*-multistream)(\d*)\.xml(-p\d+p\d+)?\.bz2")
_ENTRY = re.compile(rb"\d+:\d+:.")


def starts(location: Location, at_least: int) -> list[int]:
    """Where streams start, leaving out the first and those nearer than `at_least` bytes to the one before."""
    found: list[int] = []
    if index := next((index for index in indexes(location) if index.is_file()), None):
        found = _indexed(location, index, at_least)
    last = found[-1] if found else 0  # an index does not list the stream that ends the dump
    return [*found, *_looked_for(location, at_least, last)]


def indexes(location: Location) -> list[Location]:
    """Where the index of a multistream dump may lie, by the dump's name."""
    match = _DUMP.fullmatch(location.name)
    if not match:
        return []
    folder = location.uri.removesuffix(location.name)
    name = f"{match[1]}-index{match[2]}.txt{match[3] or ''}"
    return [Location(f"{folder}{name}.bz2"), Location(folder + name)]


def dumps(given: Sequence[Location]) -> list[Location]:
    """What is given without the indexes of dumps among it. Raises UserError for one whose dump is not among it."""
    theirs = {index.name for location in given for index in indexes(location)}
    kept: list[Location] = []
    for location in given:
        if not is_index(location):
            kept.append(location)
        elif location.name not in theirs:
            raise UserError(f"{location}: is the index of a multistream dump; give the dump as well, or leave it out")
    return kept


def is_index(location: Location) -> bool:
    """Whether a file, compressed or not, begins as an index does: offset:page id:title."""
    try:
        block = next(blocks(location, Range(0, 1 << 10), Truncation()), None)
    except UserError:
        return False  # damaged: whoever reads it says so
    return bool(block and _ENTRY.match(block.data))


def _indexed(location: Location, index: Location, at_least: int) -> list[int]:
    """The starts that an index gives; none where it is not this file's."""
    try:
        found = list(_listed(index, at_least))
    except ValueError:  # damaged, or no index
        return []
    if not found or found[-1] >= location.size():
        return []
    with location.open() as file:
        for start in found:
            file.seek(start)
            if not _STREAM.match(file.read(10)):
                return []
    return found


def _listed(index: Location, at_least: int) -> Iterator[int]:
    last, rest = 0, b""
    for block in blocks(index, Range(0, index.size()), Truncation()):
        data = rest + block.data
        position, end = 0, data.rfind(b"\n") + 1
        while position < end:
            stop = data.find(b"\n", min(position + _LINES, end - 1)) + 1
            if _offset(data[max(position, data.rfind(b"\n", position, stop - 1) + 1) : stop]) >= last + at_least:
                for line in data[position:stop].splitlines():
                    if (start := _offset(line)) >= last + at_least:
                        yield start
                        last = start
            position = stop
        rest = data[end:]
        if len(rest) > _MAX_LINE:
            raise ValueError(f"{index}: has a line of more than {_MAX_LINE} bytes")


def _offset(line: bytes) -> int:
    return int(line[:20].partition(b":")[0])


def _looked_for(location: Location, at_least: int, last: int) -> Iterator[int]:
    offset, tail = last, b""
    with location.open() as file:
        file.seek(last)
        while block := file.read(_READ):
            data = tail + block
            for match in _STREAM.finditer(data):
                start = offset - len(tail) + match.start()
                if start - last >= at_least:
                    yield start
                    last = start
            offset += len(block)
            tail = data[-9:]  # one byte less than what is looked for
