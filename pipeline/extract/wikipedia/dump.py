"""A MediaWiki XML dump (plain, bz2, multistream bz2, gz, xz) -> pages.

No XML parser is used: the bytes of a page are found by page_splitter.py, and its few fields by regular expressions.
Only XML's five entities and numeric character references are expanded, each once. A page belongs to the range of the
dump in which its <page> begins.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_types import compression_of
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia import format_check, multistream
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus, compression, read_blocks
from cloze.pipeline.extract.wikipedia.page_splitter import doctype_error, split_pages

_HEADER_BYTES = 1 << 18  # no <siteinfo> is longer
_MIN_LAST_RANGE = 1 << 10  # bytes; a shorter rest of plain XML is part of the range before it
_MAX_TITLE = 1 << 10  # characters; MediaWiki's longest have 255 bytes
_MAX_DIGITS = 18  # of an id: fits in 64 bits

_PROLOGUE = re.compile(r"(?:\s+|<\?xml[^>]*\?>|<!--.*?-->)*", re.DOTALL)
_ENCODING = re.compile(r"""<\?xml[^>]*encoding=["']([^"']+)["']""")
_ROOT = re.compile(r"<mediawiki\b([^>]*)>|<page>")
_LANGUAGE = re.compile(r'xml:lang="([^"]*)"')
_NAMESPACE = re.compile(r'<namespace key="(-?\d{1,9})"[^>]*?(?:/>|>([^<]*)</namespace>)')
_TITLE = re.compile(r"<title>([^<]*)</title>")
_NS = re.compile(r"<ns>\s*(-?\d{1,9})\s*</ns>")
_ID = re.compile(r"<id>\s*(\d+)\s*</id>")
_TIMESTAMP = re.compile(r"<timestamp>\s*([^<\s]*)\s*</timestamp>")
_MODEL = re.compile(r"<model>\s*([^<\s]*)\s*</model>")
_REDIRECT = re.compile(r"\s*[#＃][^\W\d][^\n\[]{0,40}\[\[")
_ENTITY = re.compile(r"&(lt|gt|quot|amp|apos|#x[0-9a-fA-F]{1,6}|#\d{1,7});")
_CHARACTERS = {"lt": "<", "gt": ">", "quot": '"', "amp": "&", "apos": "'"}

#: The namespace names that every wiki understands in addition to its own.
CANONICAL_NAMESPACES = {
    -2: "Media", -1: "Special", 1: "Talk", 2: "User", 3: "User talk", 4: "Project", 5: "Project talk", 6: "File",
    7: "File talk", 8: "MediaWiki", 9: "MediaWiki talk", 10: "Template", 11: "Template talk", 12: "Help",
    13: "Help talk", 14: "Category", 15: "Category talk",
}  # fmt: skip


class Page(NamedTuple):
    """A page in the newest revision of the dump. `timestamp` is ISO 8601, as in the dump."""

    page_id: int
    title: str
    namespace: int
    redirect: bool
    revision: int
    timestamp: str
    model: str
    text: str
    record: RecordPosition  # the whole <page>, with all its revisions


@dataclass(frozen=True)
class Site:
    """The wiki that a dump's header describes; fields that the header lacks are empty."""

    dbname: str = ""
    base: str = ""
    language: str = ""
    namespaces: dict[int, str] = field(default_factory=dict)

    def namespace_names(self, key: int) -> set[str]:
        """The names of a namespace, in lower case."""
        names = {self.namespaces.get(key, "").lower(), CANONICAL_NAMESPACES.get(key, "").lower()}
        return (names | ({"image"} if key == 6 else set())) - {""}

    def namespace(self, title: str) -> int:
        """The namespace that a title's prefix names; 0 for none."""
        prefix, colon, _ = title.partition(":")
        if not colon:
            return 0
        return self._prefixes.get(prefix.strip().replace("_", " ").lower(), 0)

    @property
    def _prefixes(self) -> dict[str, int]:
        keys = {*self.namespaces, *CANONICAL_NAMESPACES} - {0}
        return {name: key for key in sorted(keys) for name in self.namespace_names(key)}

    def url(self, title: str) -> str:
        """The page's address, from the address of the wiki's main page; empty if that is not known."""
        from urllib.parse import quote

        base = self.base or (f"https://{self.language}.wikipedia.org/wiki/" if self.language else "")
        return base.rpartition("/")[0] + "/" + quote(title.replace(" ", "_"), safe="/:,()'!*@;~") if base else ""


def read_site(location: Location) -> Site:
    """Read a dump's header. Raises UserError if the file is not MediaWiki XML in UTF-8, or has a DTD."""
    compression(location)
    head = b""
    status = ReadStatus()
    for block in read_blocks(location, ByteRange(0, 1), status):
        head += block.data
        if len(head) >= _HEADER_BYTES or b"<page>" in head or b"</mediawiki>" in head:
            break
    head = head[:_HEADER_BYTES]
    if compression_of(head):
        raise UserError(f"{location}: is compressed twice; decompress it once first")
    format_check.check_format(location, head)
    text = head.decode("utf-8-sig", "replace")
    if status.truncation and "<page>" not in text:
        raise UserError(f"{location}: is cut off: it ends before its first page; fetch it again")
    if not text.strip():
        raise UserError(f"{location}: is empty; {format_check.FIX}")
    if (encoding := _ENCODING.match(text)) and encoding[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UserError(f"{location}: is in {encoding[1]}; convert it to UTF-8 first (iconv)")
    header = text.partition("<page>")[0]
    if "<!DOCTYPE" in header or "<!ENTITY" in header:
        raise doctype_error(location)
    prologue = _PROLOGUE.match(text)
    root = _ROOT.match(text, prologue.end() if prologue else 0)
    if root is None:
        raise UserError(f"{location}: begins with {text.strip()[:40]!r} instead of <mediawiki>; {format_check.FIX}")
    language = _LANGUAGE.search(root[1] or "")
    return Site(
        dbname=_field("dbname", header),
        base=_field("base", header),
        language=language[1] if language else "",
        namespaces={int(key): _unescape(name or "") for key, name in _NAMESPACE.findall(header)},
    )


def byte_ranges(location: Location, xml_bytes: int, bz2_bytes: int) -> list[ByteRange]:
    """Divide a dump into ranges that can be read independently: of about `xml_bytes` of plain XML, or of whole bz2
    streams, together at least `bz2_bytes`. A file that is a single compressed stream is one range.
    """
    size, kind = location.size(), compression(location)
    starts = [0]
    if kind == "xml":
        starts += range(xml_bytes, size - _MIN_LAST_RANGE, xml_bytes)
    if kind == "bz2" and size > bz2_bytes:
        starts += multistream.stream_starts(location, bz2_bytes)
    return [ByteRange(start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def pages(location: Location, byte_range: ByteRange, site: Site, status: ReadStatus) -> Iterator[Page | None]:
    """The pages that begin in a range; None for a malformed one. Sets `status.truncation` if the file is cut.

    Raises UserError: damaged compression, text that is not UTF-8, a document type definition, pages of another wiki.
    """
    return parse_pages(location, split_pages(location, byte_range, site.dbname, status), site)


def parse_pages(
    location: Location, raw_pages: Iterable[tuple[bytes, RecordPosition]], site: Site
) -> Iterator[Page | None]:
    """Parse what `split_pages` yields; None for a page without a title or id, incomplete or too long."""
    for data, record in raw_pages:
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # XML's line ends
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            title = re.search(rb"<title>([^<]*)", data)
            name = title[1].decode("utf-8", "replace") if title else "?"
            raise UserError(
                f"{location}: is not UTF-8 in the page {name} (byte {data[error.start]:#04x}); convert it first (iconv)"
            ) from error
        page = None if "\0" in text else _parse_page(text, site, record)
        yield page if page and len(page.title) <= _MAX_TITLE else None


def _parse_page(text: str, site: Site, record: RecordPosition) -> Page | None:
    """The fields of one <page>, in its last revision; None if it has no title or id."""
    last = text.rfind("<revision>")
    head, revision = (text[:last], text[last:]) if last >= 0 else (text, "")
    title, page_id = _TITLE.search(head), _id(head)
    if not title or page_id is None:
        return None
    name = _unescape(title[1])
    start = revision.find("<text")
    metadata, body = (revision[:start], _text(revision, start)) if start >= 0 else (revision, "")
    namespace = _NS.search(head)
    timestamp, model = _TIMESTAMP.search(metadata), _MODEL.search(metadata)
    return Page(
        page_id=page_id,
        title=name,
        namespace=int(namespace[1]) if namespace else site.namespace(name),
        redirect="<redirect" in head or bool(_REDIRECT.match(body)),
        revision=_id(metadata) or 0,
        timestamp=timestamp[1] if timestamp else "",
        model=model[1] if model else "wikitext",
        text=body,
        record=record,
    )


def _id(text: str) -> int | None:
    """The first <id>; None if it is missing or does not fit in 64 bits."""
    match = _ID.search(text)
    return int(match[1]) if match and len(match[1]) <= _MAX_DIGITS else None


def _text(revision: str, start: int) -> str:
    """The content of <text ...>; empty for <text/>."""
    inner = revision.find(">", start) + 1
    stop = revision.rfind("</text>")
    return _unescape(revision[inner:stop]) if 0 < inner <= stop else ""


def _field(name: str, header: str) -> str:
    match = re.search(rf"<{name}>([^<]*)</{name}>", header)
    return _unescape(match[1]).strip() if match else ""


def _unescape(text: str) -> str:
    """Expand XML's entities, once: "&amp;lt;" becomes "&lt;"."""
    if "&" not in text:
        return text
    parts = _ENTITY.split(text)
    parts[1::2] = [_CHARACTERS.get(name) or _character(name) for name in parts[1::2]]
    return "".join(parts)


def _character(name: str) -> str:
    code = int(name[2:], 16) if name[1] == "x" else int(name[1:])
    return chr(code) if code in (9, 10, 13) or 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else f"&{name};"
