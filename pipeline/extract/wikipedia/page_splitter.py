"""Bytes of a MediaWiki export -> the bytes of its pages, from each <page> to its </page>, in bounded memory.

An export escapes every "<" of its texts, so tags are found as bytes. Other XML syntax is handled: comments are removed,
CDATA sections become escaped text, a document type definition is rejected.
"""

import re
from collections.abc import Iterator

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia import format_check
from cloze.pipeline.extract.wikipedia.decompress import DecompressedBlock, ReadStatus, read_blocks

MAX_PAGE = 16 << 20  # bytes: MediaWiki's longest text has 2 MB, which escapes make 12 MB of XML at most
_TAIL = 64  # bytes at the end of a block that may be the beginning of a tag

_OUTSIDE = re.compile(rb"<page>|<!|</mediawiki>|<dbname>([^<]*)</dbname>")
_INSIDE = re.compile(rb"</page>|<page>|<!")
_PAGE_END = re.compile(rb"</page>|(?=<page>)")
_SECTION = re.compile(rb"<!--.*?-->|<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_SECTION_ENDS = {b"<!--": b"-->", b"<![CDATA[": b"]]>"}


def split_pages(
    location: Location, byte_range: ByteRange, dbname: str, status: ReadStatus
) -> Iterator[tuple[bytes, RecordPosition]]:
    """The pages that begin in a range, and where each is; b"" for one without an end or longer than `MAX_PAGE`.

    Of a long page, the revisions between the first and the last may be left out. Sets `status.truncation` if the file
    is cut. Raises UserError: damaged compression, a document type definition, pages of another wiki than `dbname`.
    """
    splitter = _PageSplitter(location, dbname)
    for block in read_blocks(location, byte_range, status):
        yield from splitter.split(block)
        if splitter.done:
            return
    if splitter.in_page:
        status.truncation = status.truncation or "it ends in the middle of a page"
    elif not splitter.root_closed and byte_range.start < byte_range.end:
        status.truncation = status.truncation or "it ends without </mediawiki>"


class _PageSplitter:
    """Splits one block after the other into pages."""

    def __init__(self, location: Location, dbname: str) -> None:
        self.done = False  # every page that begins in the range has been returned
        self.in_page = False  # the block ended in the middle of a page
        self.root_closed = False  # </mediawiki> came last
        self._location, self._dbname = location, dbname
        self._buffer = b""
        self._in_range = 0  # the number of bytes at the beginning of the buffer that are in the range
        self._skipping = False  # the rest of a page that is too long
        self._removed = 0  # bytes that were removed from the unfinished page at the beginning of the buffer
        self._read = 0  # bytes of all blocks
        self._streams: list[tuple[int, int, int]] = []  # (bytes of all blocks before it, stream, offset in the stream)

    def split(self, block: DecompressedBlock) -> Iterator[tuple[bytes, RecordPosition]]:
        """The pages that end in this block."""
        in_range = block.in_range
        if in_range:
            self._in_range = len(self._buffer) + len(block.data)
        if not self._streams or self._streams[-1][1] != block.stream:
            self._streams.append((self._read, block.stream, block.offset))
        self._read += len(block.data)
        self._buffer += block.data
        position = self._skip_page() if self._skipping else 0
        keep = len(self._buffer) - _TAIL if self._skipping else None
        while keep is None and (token := _OUTSIDE.search(self._buffer, position)):
            if token[0] == b"<page>":
                if token.start() >= self._in_range:
                    self.done = True
                    return
                stop, complete, plain = self._page_end(token.end())
                self.in_page, self.root_closed = stop < 0, False
                if not self.in_page:
                    record = self._record(token.start(), stop)
                    yield _page_xml(self._buffer[token.start() : stop], plain) if complete else b"", record
            elif token[0] == b"<!":
                stop = self._section_end(token.start())
            else:
                stop = token.end()
                self.root_closed = self.root_closed or token[0] == b"</mediawiki>"
                self._check_dbname(token[1])
            if stop < 0:
                keep = token.start()
            else:
                position = stop
        if keep is None:
            keep = max(position, len(self._buffer) - _TAIL)
        self._discard(keep)
        if len(self._buffer) > MAX_PAGE:
            yield from self._shorten()
        self.done = self._in_range <= 0 and not in_range

    def _record(self, start: int, stop: int) -> RecordPosition:
        """Where in the file the page at [start, stop) of the buffer is."""
        end = self._read - len(self._buffer) + stop
        begin = end - (stop - start) - self._removed
        self._removed = 0
        while len(self._streams) > 1 and self._streams[1][0] <= begin:
            del self._streams[0]
        before, stream, offset = self._streams[0]
        return RecordPosition(stream, offset + begin - before, end - begin)

    def _page_end(self, position: int) -> tuple[int, bool, bool]:
        """Where the page ends (-1: not in this block), whether with </page>, and whether it has no sections."""
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
        """Where a comment or CDATA section ends (-1: not in this block). Raises UserError for other declarations."""
        head = self._buffer[start : start + 9]
        for opening, closing in _SECTION_ENDS.items():
            if head.startswith(opening):
                stop = self._buffer.find(closing, start + len(opening))
                return stop + 3 if stop >= 0 else -1
            if opening.startswith(head):
                return -1
        raise doctype_error(self._location)

    def _check_dbname(self, dbname: bytes | None) -> None:
        """A second dump may follow the first in a file, if it is of the same wiki. Raises UserError for another."""
        name = (dbname or b"").decode("utf-8", "replace").strip()
        if name and self._dbname and name != self._dbname:
            raise UserError(
                f"{self._location}: holds dumps of two wikis, {self._dbname} and {name}; give each as a separate file"
            )

    def _skip_page(self) -> int:
        """Where the page that is too long ends; 0 if not in this buffer."""
        token = _PAGE_END.search(self._buffer)
        if token is None:
            return 0
        self._skipping = self.in_page = False
        return token.end()

    def _shorten(self) -> Iterator[tuple[bytes, RecordPosition]]:
        """Remove all but the first and last revision of the page in the buffer; if it is still too long, skip it."""
        if not self.in_page:
            raise UserError(f"{self._location}: has a comment of more than {MAX_PAGE >> 20} MB; {format_check.FIX}")
        before = len(self._buffer)
        self._buffer = _without_middle_revisions(self._buffer)
        self._removed += before - len(self._buffer)
        self._in_range = max(1, self._in_range - before + len(self._buffer))
        if len(self._buffer) > MAX_PAGE:
            self._skipping = True
            self._removed = 0
            yield b"", RecordPosition()
            self._discard(len(self._buffer) - _TAIL)

    def _discard(self, count: int) -> None:
        """Discard bytes at the beginning of the buffer."""
        if count > 0:
            self._buffer = self._buffer[count:]
            self._in_range -= count


def doctype_error(location: Location) -> UserError:
    return UserError(f"{location}: has a document type definition, which no MediaWiki export has; {format_check.FIX}")


def _without_middle_revisions(page: bytes) -> bytes:
    """A page without what is between the beginning of its first revision and the beginning of its last."""
    first, last = page.find(b"<revision>"), page.rfind(b"<revision>")
    return page[:first] + page[last:] if 0 <= first < last else page


def _page_xml(page: bytes, plain: bool) -> bytes:
    """A page without comments and CDATA sections, which a `plain` one does not have; b"" if it is too long."""
    if not plain:
        page = _SECTION.sub(_escape_cdata, page)
    if len(page) > MAX_PAGE:
        page = _without_middle_revisions(page)
    return page if len(page) <= MAX_PAGE else b""


def _escape_cdata(section: re.Match[bytes]) -> bytes:
    return (section[1] or b"").replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b">", b"&gt;")
