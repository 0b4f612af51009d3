"""A file of a sentence a line -> documents, their sentences as given.

Between two documents stands a blank line (the input of BERT's original code), or a marker line, or every N lines end
one. A file of any size is read in ranges of bytes, each with the documents that begin in it.
"""

import io
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.wikipedia.dump import Range
from cloze.pipeline.text.encodings import bom_encoding, decompressed, describe_invalid_byte, is_gzip, stream_encoding
from cloze.pipeline.text.sentences import split_sentences

_LINE = 1 << 20  # bytes: no sentence is that long
_LONGEST = 100_000  # sentences in a document: the Bible has 31,000 verses
_GZIP = 256 << 20  # bytes: one reader at a time, its documents in memory
_SAMPLE = 1 << 20
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'`”’»)\]\s]*$")

NO_BOUNDARIES = (
    "is a sentence a line without boundaries between documents, which next-sentence pairs need; in a source of "
    "kind sentences set every: N (sentences a document), or marker: what the line between two documents begins with"
)


class Rule(NamedTuple):
    """What lies between documents: a line that begins with `marker`, or `every` lines; else a blank line."""

    marker: str = ""
    every: int = 0


class Given(NamedTuple):
    """A document: the byte where it begins (of the decompressed file), its sentences, and the bytes of its lines."""

    offset: int
    sentences: list[str]
    bytes: int


def ranges(location: Location, rule: Rule, size: int) -> Iterator[Range]:
    """Cut a file into ranges of about `size` bytes. Raises UserError for one that cannot be read by this rule."""
    with decompressed(location) as file:
        head = file.read(_SAMPLE)
        if stream_encoding(head).startswith(("utf-16", "utf-32")):
            raise UserError(f"{location}: is {bom_encoding(head)}; convert it to UTF-8 first (iconv)")
        if rule == Rule() and shape(head.decode("utf-8", "replace")) == "flat":
            raise UserError(f"{location}: {NO_BOUNDARIES}")
        length = location.size()
        if is_gzip(location):
            if length > _GZIP:
                raise UserError(f"{location}: is too large to be read in one piece; decompress it first (gunzip)")
            yield Range(0, length)
        elif rule.every:
            file.seek(0)
            yield from _counted(file, str(location), rule.every, size)
        else:
            yield from (Range(start, min(start + size, length)) for start in range(0, length, size))


def _counted(file: io.BufferedReader, name: str, every: int, size: int) -> Iterator[Range]:
    """Ranges that begin at every so many lines: this must count them."""
    start = lines = 0
    while chunk := file.read(size):
        lines += chunk.count(b"\n")
        for _ in range(every - lines % every):
            if line := _line(file, name):
                lines += line.endswith(b"\n")
        yield Range(start, start := file.tell())


def documents(location: Location, span: Range, rule: Rule, encoding: str = "") -> Iterator[Given]:
    """The documents that begin in a range, in their order; those without a sentence are none.

    Raises UserError: bytes that are not of the encoding, a line or a document without end, damaged gzip.
    """
    name, codec = str(location), encoding or "utf-8"
    end = float("inf") if is_gzip(location) else span.end
    with decompressed(location) as file:
        offset, here = span.start, not span.start or bool(rule.every)
        file.seek(offset if here else offset - 1)
        if not here:  # a line belongs to the range that it begins in
            offset += len(_line(file, name)) - 1
        begin, count, held = offset, 0, []
        while line := _line(file, name):
            where, offset, count = offset, offset + len(line), count + 1
            if where >= end and (rule.every or not here):
                break
            if not where and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            text = _text(line, name, codec, where)
            between = text.startswith(rule.marker) if rule.marker else not text
            if text and here and not (between and rule.marker):
                held.append(text)
            if (count == rule.every) if rule.every else between:
                if held:
                    yield Given(begin, held, (offset if rule.every else where) - begin)
                if where >= end:
                    return
                begin, count, held, here = offset, 0, [], True
            elif len(held) > _LONGEST:
                raise UserError(f"{name}: {NO_BOUNDARIES} ({_LONGEST:,} lines from byte {begin} on have none)")
        if held:
            yield Given(begin, held, offset - begin)


def shape(head: str) -> Literal["", "flat", "documents"]:
    """Whether a text's beginning is a sentence a line, and if so, whether blank lines lie between documents."""
    lines = [line.strip() for line in head.split("\n")[:5000]]
    full = [line for line in lines if line]
    if len(full) < 200:
        return ""
    alone = sum(bool(_SENTENCE_END.search(line)) and len(split_sentences(line)) == 1 for line in full) / len(full)
    blocks = sum(bool(line) and not before for before, line in zip(["", *lines], lines, strict=False))
    if blocks > 1:
        return "documents" if alone > 0.8 and len(full) >= 4 * blocks else ""
    lower = sum(line == line.lower() for line in full) / len(full)
    return "flat" if (alone > 0.7 and lower > 0.95) or (alone > 0.8 and len(full) >= 2000) else ""


def refuse(location: Location, head: str) -> None:
    """Raises UserError where a text that was given as prose is a sentence a line."""
    found = shape(head)
    if found == "flat":
        raise UserError(f"{location}: {NO_BOUNDARIES}")
    if found:
        raise UserError(
            f"{location}: is a sentence a line with blank lines between documents; give it as a source of kind "
            f"sentences, which keeps both as they are"
        )


def _text(line: bytes, name: str, codec: str, offset: int) -> str:
    try:
        return line.decode(codec).strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not {codec} ({describe_invalid_byte(error, offset)}); "
            f"set the source's encoding, for example cp1252, or convert the file (iconv)"
        ) from error


def _line(file: io.BufferedReader, name: str) -> bytes:
    line = file.readline(_LINE)
    if len(line) == _LINE:
        raise UserError(f"{name}: has a line of more than {_LINE:,} bytes; write a sentence a line")
    return line
