"""Bytes of a MediaWiki export -> its pages' bytes, from each <page> to its </page>, in bounded memory.

An export escapes every "<" of its texts, so tags are found as bytes. What XML allows beside them is minded: comments
are left out, CDATA is escaped, a document type definition is refused wherever it stands.
"""

import re
from collections.abc import Iterator

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.wikipedia import format_check
from cloze.pipeline.extract.wikipedia.decompress import Block, Range, Truncation, blocks

MAX_PAGE = 16 << 20  # bytes: MediaWiki's longest text has 2 MB, which escapes make 12 MB of XML at most
_TAIL = 64  # bytes in which a tag that goes on in the next block may begin

_OUTSIDE = re.compile(rb"<page>|<!|</mediawiki>|<dbname>([^<]*)</dbname>")
_INSIDE = re.compile(rb"</page>|<page>|<!")
_NEXT = re.compile(rb"</page>|(?=<page>)")
_SECTION = re.compile(rb"<!--.*?-->|<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_SECTIONS = {b"<!--": b"-->", b"<![CDATA[": b"]]>"}


def page_bytes(
    location: Location, span: Range, dbname: str, truncation: Truncation
) -> Iterator[tuple[bytes, RecordPosition]]:
    """The pages that begin in `span`, and where each lies; b"" for one that has no end or is longer than `MAX_PAGE`.

    Of a page with many revisions those between the first and the last may be missing. Says in `truncation` if the file
    is cut. Raises UserError: damaged compression, a document type definition, pages of another wiki than `dbname`.
    """
    cutter = _Cutter(location, dbname)
    for block in blocks(location, span, truncation):
        yield from cutter.cut(block)
        if cutter.done:
            return
    if cutter.open:
        truncation.reason = truncation.reason or "it ends in the middle of a page"
    elif not cutter.ended and span.start < span.end:
        truncation.reason = truncation.reason or "it ends without </mediawiki>"


class _Cutter:
    """Cuts pages out of one block after another."""

    def __init__(self, location: Location, dbname: str) -> None:
        self.done = False  # every page that begins in the span is cut out
        self.open = False  # the block ended in the middle of a page
        self.ended = False  # </mediawiki> came last
        self._location, self._dbname = location, dbname
        self._buffer = b""
        self._owned = 0  # so many first bytes of the buffer lie in the span
        self._skipping = False  # through a page that is too long
        self._left_out = 0  # bytes of the page that the buffer begins with, which is open
        self._read = 0  # bytes of all blocks
        self._streams: list[tuple[int, int, int]] = []  # where in these bytes streams begin; the stream, its byte there

    def cut(self, block: Block) -> Iterator[tuple[bytes, RecordPosition]]:
        """The pages that end in this block."""
        inside = block.inside
        if inside:
            self._owned = len(self._buffer) + len(block.data)
        if not self._streams or self._streams[-1][1] != block.stream:
            self._streams.append((self._read, block.stream, block.offset))
        self._read += len(block.data)
        self._buffer += block.data
        position = self._skipped() if self._skipping else 0
        keep = len(self._buffer) - _TAIL if self._skipping else None
        while keep is None and (token := _OUTSIDE.search(self._buffer, position)):
            if token[0] == b"<page>":
                if token.start() >= self._owned:
                    self.done = True
                    return
                stop, whole, plain = self._page_end(token.end())
                self.open, self.ended = stop < 0, False
                if not self.open:
                    record = self._record(token.start(), stop)
                    yield _clean(self._buffer[token.start() : stop], plain) if whole else b"", record
            elif token[0] == b"<!":
                stop = self._section_end(token.start())
            else:
                stop = token.end()
                self.ended = self.ended or token[0] == b"</mediawiki>"
                self._check(token[1])
            if stop < 0:
                keep = token.start()
            else:
                position = stop
        if keep is None:
            keep = max(position, len(self._buffer) - _TAIL)
        self._drop(keep)
        if len(self._buffer) > MAX_PAGE:
            yield from self._shorten()
        self.done = self._owned <= 0 and not inside

    def _record(self, start: int, stop: int) -> RecordPosition:
        """Where in the file a page of the buffer lies."""
        end = self._read - len(self._buffer) + stop
        begin = end - (stop - start) - self._left_out
        self._left_out = 0
        while len(self._streams) > 1 and self._streams[1][0] <= begin:
            del self._streams[0]
        at, stream, offset = self._streams[0]
        return RecordPosition(stream, offset + begin - at, end - begin)

    def _page_end(self, position: int) -> tuple[int, bool, bool]:
        """Where the page ends, -1 if not in this block; whether with </page>; whether without sections."""
        plain = True
        while token := _INSIDE.search(self._buffer, position):
            if token[0] == b"</page>":
                return token.end(), True, plain
            if token[0] == b"<page>":
                return token.start(), False, plain
            plain = False
            position = self._section_end(token.start())
            if position < 0:
                break
        return -1, False, plain

    def _section_end(self, start: int) -> int:
        """Where a comment or CDATA ends, -1 if not in this block. Raises UserError for any other declaration."""
        head = self._buffer[start : start + 9]
        for opening, closing in _SECTIONS.items():
            if head.startswith(opening):
                stop = self._buffer.find(closing, start + len(opening))
                return stop + 3 if stop >= 0 else -1
            if opening.startswith(head):
                return -1
        raise definition(self._location)

    def _check(self, dbname: bytes | None) -> None:
        """A second dump may follow the first in a file, if it is of the same wiki."""
        name = (dbname or b"").decode("utf-8", "replace").strip()
        if name and self._dbname and name != self._dbname:
            raise UserError(
                f"{self._location}: holds dumps of two wikis, {self._dbname} and {name}; give each as a file of its own"
            )

    def _skipped(self) -> int:
        """Where the page that is too long ends, if it does."""
        token = _NEXT.search(self._buffer)
        if token is None:
            return 0
        self._skipping = self.open = False
        return token.end()

    def _shorten(self) -> Iterator[tuple[bytes, RecordPosition]]:
        """Leave out of the page in the buffer what is not needed; give it up if it is still too long."""
        if not self.open:
            raise UserError(f"{self._location}: has a comment of more than {MAX_PAGE >> 20} MB; {format_check.MEND}")
        before = len(self._buffer)
        self._buffer = _newest(self._buffer)
        self._left_out += before - len(self._buffer)
        self._owned = max(1, self._owned - before + len(self._buffer))
        if len(self._buffer) > MAX_PAGE:
            self._skipping = True
            self._left_out = 0
            yield b"", RecordPosition()
            self._drop(len(self._buffer) - _TAIL)

    def _drop(self, count: int) -> None:
        if count > 0:
            self._buffer = self._buffer[count:]
            self._owned -= count


def definition(location: Location) -> UserError:
    return UserError(f"{location}: has a document type definition, which no MediaWiki export has; {format_check.MEND}")


def _newest(page: bytes) -> bytes:
    """A page without the revisions between what stands before the first and the last."""
    first, last = page.find(b"<revision>"), page.rfind(b"<revision>")
    return page[:first] + page[last:] if 0 <= first < last else page


def _clean(page: bytes, plain: bool) -> bytes:
    if not plain:
        page = _SECTION.sub(_escaped, page)
    if len(page) > MAX_PAGE:
        page = _newest(page)
    return page if len(page) <= MAX_PAGE else b""


def _escaped(section: re.Match[bytes]) -> bytes:
    return (section[1] or b"").replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b">", b"&gt;")
