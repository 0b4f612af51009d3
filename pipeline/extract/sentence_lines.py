"""A file with one sentence per line -> documents whose sentences stay as they are.

Between two documents is a blank line (the input format of the original BERT) or a marker line, or every N lines are a
document. A file of any size is read in byte ranges; a document belongs to the range in which it begins.
"""

import io
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.text.character_encodings import (
    bom_encoding,
    decompressed,
    describe_invalid_byte,
    is_gzip,
    stream_encoding,
)
from cloze.pipeline.text.sentences import STOPS, split_sentences

_MAX_LINE_BYTES = 1 << 20  # no sentence is that long
_MAX_SENTENCES = 100_000  # in a document: the Bible has 31,000 verses
_MAX_GZIP_BYTES = 256 << 20  # one reader at a time reads it, its documents in memory
_SAMPLE_BYTES = 1 << 20
_SENTENCE_END = re.compile(rf"[{STOPS}][\"'`”’»)\]\s]*$")

NO_BOUNDARIES = (
    "has one sentence per line without boundaries between documents, which next-sentence pairs need; in a source of "
    "kind sentences set every: N (sentences in a document), or marker: what the line between two documents begins with"
)


class DocumentBoundary(NamedTuple):
    """What separates documents: a line that begins with `marker`, or every `every` lines; by default a blank line."""

    marker: str = ""
    every: int = 0


class SentenceDocument(NamedTuple):
    """A document: the byte where it begins (of the decompressed file), its sentences, and the bytes of its lines."""

    offset: int
    sentences: list[str]
    bytes: int


def byte_ranges(location: Location, boundary: DocumentBoundary, size: int) -> Iterator[ByteRange]:
    """Divide a file into ranges of about `size` bytes. Raises UserError if it cannot be read with this boundary."""
    with decompressed(location) as file:
        head = file.read(_SAMPLE_BYTES)
        if stream_encoding(head).startswith(("utf-16", "utf-32")):
            raise UserError(f"{location}: is {bom_encoding(head)}; convert it to UTF-8 first (iconv)")
        if boundary == DocumentBoundary() and line_layout(head.decode("utf-8", "replace")) == "no boundaries":
            raise UserError(f"{location}: {NO_BOUNDARIES}")
        length = location.size()
        if is_gzip(location):
            if length > _MAX_GZIP_BYTES:
                raise UserError(f"{location}: is too large to be read by a single reader; decompress it first (gunzip)")
            yield ByteRange(0, length)
        elif boundary.every:
            file.seek(0)
            yield from _ranges_of_line_groups(file, str(location), boundary.every, size)
        else:
            yield from (ByteRange(start, min(start + size, length)) for start in range(0, length, size))


def _ranges_of_line_groups(file: io.BufferedReader, name: str, every: int, size: int) -> Iterator[ByteRange]:
    """Ranges that begin at a multiple of `every` lines, which must therefore be counted."""
    start = lines = 0
    while chunk := file.read(size):
        lines += chunk.count(b"\n")
        for _ in range(every - lines % every):
            if line := _read_line(file, name):
                lines += line.endswith(b"\n")
        yield ByteRange(start, start := file.tell())


def read_documents(
    location: Location, byte_range: ByteRange, boundary: DocumentBoundary, encoding: str = ""
) -> Iterator[SentenceDocument]:
    """The documents that begin in a range, in their order, without empty ones.

    Raises UserError: bytes that are not in the encoding, a line or a document that is too long, damaged gzip.
    """
    name, codec = str(location), encoding or "utf-8"
    end = float("inf") if is_gzip(location) else byte_range.end
    with decompressed(location) as file:
        offset, in_document = byte_range.start, not byte_range.start or bool(boundary.every)
        file.seek(offset if in_document else offset - 1)
        if not in_document:  # a line belongs to the range in which it begins
            offset += len(_read_line(file, name)) - 1
        begin, count, sentences = offset, 0, []
        while line := _read_line(file, name):
            line_start, offset, count = offset, offset + len(line), count + 1
            if line_start >= end and (boundary.every or not in_document):
                break
            if not line_start and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            text = _decode_line(line, name, codec, line_start)
            separates = text.startswith(boundary.marker) if boundary.marker else not text
            if text and in_document and not (separates and boundary.marker):
                sentences.append(text)
            if (count == boundary.every) if boundary.every else separates:
                if sentences:
                    yield SentenceDocument(begin, sentences, (offset if boundary.every else line_start) - begin)
                if line_start >= end:
                    return
                begin, count, sentences, in_document = offset, 0, [], True
            elif len(sentences) > _MAX_SENTENCES:
                raise UserError(f"{name}: {NO_BOUNDARIES} ({_MAX_SENTENCES:,} lines from byte {begin} on have none)")
        if sentences:
            yield SentenceDocument(begin, sentences, offset - begin)


def line_layout(head: str) -> Literal["prose", "no boundaries", "blank lines"]:
    """How a text that begins with `head` is laid out: as prose, or with one sentence per line and if so, without
    boundaries between documents or with blank lines.
    """
    lines = [line.strip() for line in head.split("\n")[:5000]]
    full = [line for line in lines if line]
    if len(full) < 200:
        return "prose"
    single = sum(bool(_SENTENCE_END.search(line)) and len(split_sentences(line)) == 1 for line in full) / len(full)
    blocks = sum(bool(line) and not before for before, line in zip(["", *lines], lines, strict=False))
    if blocks > 1:
        return "blank lines" if single > 0.8 and len(full) >= 4 * blocks else "prose"
    lowercase = sum(line == line.lower() for line in full) / len(full)
    flat = (single > 0.7 and lowercase > 0.95) or (single > 0.8 and len(full) >= 2000)
    return "no boundaries" if flat else "prose"


def check_prose(location: Location, head: str) -> None:
    """Raises UserError if a text that was given as prose has one sentence per line."""
    layout = line_layout(head)
    if layout == "no boundaries":
        raise UserError(f"{location}: {NO_BOUNDARIES}")
    if layout == "blank lines":
        raise UserError(
            f"{location}: has one sentence per line and blank lines between documents; give it as a source of kind "
            f"sentences, which keeps both as they are"
        )


def _decode_line(line: bytes, name: str, codec: str, offset: int) -> str:
    try:
        return line.decode(codec).strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not {codec} ({describe_invalid_byte(error, offset)}); set the source's encoding, for example "
            f"cp1252, or convert the file (iconv)"
        ) from error


def _read_line(file: io.BufferedReader, name: str) -> bytes:
    line = file.readline(_MAX_LINE_BYTES)
    if len(line) == _MAX_LINE_BYTES:
        raise UserError(f"{name}: has a line of more than {_MAX_LINE_BYTES:,} bytes; write one sentence per line")
    return line
