"""A MediaWiki XML dump (plain, bz2, multistream bz2, gz, xz) -> pages.

No XML parser: an export escapes every "<" inside its text, so <page> and </page> are found as bytes, and a page's few
fields by regular expression. Nothing is expanded but the five entities of XML and character numbers, each once; a
document type definition is refused. A range of a dump owns the pages whose <page> begins in it, whoever reads it.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from pipeline.config import UserError
from pipeline.storage import Location

_READ = 1 << 20  # bytes of the file at a time
_BLOCK = 4 << 20  # decompressed bytes at a time, however well they compress
_HEADER = 1 << 18  # no <siteinfo> is longer than this
_END = 1 << 10  # bytes at the end of plain XML that are never a range of their own
_MAX_PAGE = 256 << 20  # a page longer than this is no article
_MAX_DIGITS = 18  # of an id: what 64 bits hold for certain

_MAGIC = {b"BZh": "bz2", b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "xz"}
_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first (7z x)",
    b"PK\x03\x04": "a zip archive; unpack it first (unzip)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first (zstd -d)",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8)",
    b"<\x00": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16LE -t UTF-8)",
    b"\x00<": "UTF-16; convert it to UTF-8 first (iconv -f UTF-16BE -t UTF-8)",
}
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
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
_NUMBER = re.compile(r"&#(?:x([0-9a-fA-F]{1,6})|(\d{1,7}));")

#: The names that every wiki understands beside its own.
CANONICAL = {
    -2: "Media", -1: "Special", 1: "Talk", 2: "User", 3: "User talk", 4: "Project", 5: "Project talk", 6: "File",
    7: "File talk", 8: "MediaWiki", 9: "MediaWiki talk", 10: "Template", 11: "Template talk", 12: "Help",
    13: "Help talk", 14: "Category", 15: "Category talk",
}  # fmt: skip


class Page(NamedTuple):
    """One page in its newest revision that the dump holds. `timestamp` is ISO 8601 as the dump has it."""

    page_id: int
    title: str
    namespace: int
    redirect: bool
    revision: int
    timestamp: str
    model: str
    text: str


@dataclass(frozen=True)
class Site:
    """What a dump's header says of its wiki; empty where it does not."""

    dbname: str = ""
    base: str = ""
    language: str = ""
    namespaces: dict[int, str] = field(default_factory=dict)

    def named(self, key: int) -> set[str]:
        """The names of a namespace, in lower case."""
        names = {self.namespaces.get(key, "").lower(), CANONICAL.get(key, "").lower()}
        return (names | ({"image"} if key == 6 else set())) - {""}

    def namespace(self, title: str) -> int:
        """The namespace that a title's prefix names, 0 where it names none."""
        prefix, colon, _ = title.partition(":")
        if not colon:
            return 0
        return self._prefixes.get(prefix.strip().replace("_", " ").lower(), 0)

    @property
    def _prefixes(self) -> dict[str, int]:
        keys = {*self.namespaces, *CANONICAL} - {0}
        return {name: key for key in sorted(keys) for name in self.named(key)}

    def url(self, title: str) -> str:
        """The page's address, from the address of the wiki's main page; empty where that is not known."""
        from urllib.parse import quote

        base = self.base or (f"https://{self.language}.wikipedia.org/wiki/" if self.language else "")
        return base.rpartition("/")[0] + "/" + quote(title.replace(" ", "_"), safe="/:,()'!*@;~") if base else ""


class Range(NamedTuple):
    """Bytes [start, end) of a file: the pages that begin there."""

    start: int
    end: int


def compression(location: Location) -> str:
    """ "xml", "bz2", "gz" or "xz", by the file's first bytes whatever its name; UserError for what is no dump."""
    with location.open() as file:
        head = file.read(16)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    _refuse_foreign(location, head)
    return "xml"


def _refuse_foreign(location: Location, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise UserError(f"{location}: is {what}")


def read_site(location: Location) -> Site:
    """A dump's header. Raises UserError for what is no MediaWiki XML in UTF-8, and for one with a DTD."""
    head = b""
    truncation = Truncation()
    for block, _ in _blocks(location, Range(0, 1), truncation):
        head += block
        if len(head) >= _HEADER or b"<page>" in head or b"</mediawiki>" in head:
            break
    head = head[:_HEADER]
    _refuse_foreign(location, head)
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    mend = "give a MediaWiki XML export, such as <wiki>-latest-pages-articles.xml.bz2"
    if truncation.reason and "<page>" not in text:
        raise UserError(f"{location}: is cut off: it ends before its first page; fetch it again")
    if not text.strip():
        raise UserError(f"{location}: holds nothing; {mend}")
    if (encoding := _ENCODING.match(text)) and encoding[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UserError(f"{location}: is in {encoding[1]}; convert it to UTF-8 first (iconv)")
    header = text.partition("<page>")[0]
    if "<!DOCTYPE" in header or "<!ENTITY" in header:
        raise UserError(f"{location}: has a document type definition, which no MediaWiki export has; {mend}")
    prologue = _PROLOGUE.match(text)
    root = _ROOT.match(text, prologue.end() if prologue else 0)
    if root is None:
        raise UserError(f"{location}: begins with {text.strip()[:40]!r} instead of <mediawiki>; {mend}")
    language = _LANGUAGE.search(root[1] or "")
    return Site(
        dbname=_field("dbname", header),
        base=_field("base", header),
        language=language[1] if language else "",
        namespaces={int(key): _unescape(name or "") for key, name in _NAMESPACE.findall(header)},
    )


def ranges(location: Location, bytes_plain: int, bytes_bz2: int) -> list[Range]:
    """Ranges that can be read apart, from the file alone: of plain XML, or of whole streams of a bz2.

    A file that is one compressed stream is one range.
    """
    size, kind = location.size(), compression(location)
    starts = [0]
    if kind == "xml":
        starts += range(bytes_plain, size - _END, bytes_plain)
    if kind == "bz2" and size > bytes_bz2:
        starts += [start for start in _stream_starts(location, bytes_bz2) if start]
    return [Range(start, end) for start, end in zip(starts, [*starts[1:], size], strict=True)]


def _stream_starts(location: Location, at_least: int) -> Iterator[int]:
    """Where bz2 streams start, leaving out those nearer than `at_least` bytes to the one before."""
    last, offset, tail = 0, 0, b""
    with location.open() as file:
        while block := file.read(_BLOCK):
            data = tail + block
            for match in _STREAM.finditer(data):
                start = offset - len(tail) + match.start()
                if start - last >= at_least:
                    yield start
                    last = start
            offset += len(block)
            tail = data[-9:]  # one byte less than what is looked for


@dataclass
class Truncation:
    """Set by a reader that met the end of a file before the end of a dump; empty otherwise."""

    reason: str = ""


def pages(location: Location, span: Range, site: Site, truncation: Truncation) -> Iterator[Page | None]:
    """The pages that begin in `span`; None for one without a title or id. Says in `truncation` if the file is cut.

    Raises UserError: damaged compression, text that is not UTF-8, a page without end.
    """
    for data in _page_bytes(location, span, truncation):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            title = re.search(rb"<title>([^<]*)", data)
            name = title[1].decode("utf-8", "replace") if title else "?"
            raise UserError(
                f"{location}: is not UTF-8 in the page {name} (byte {data[error.start]:#04x}); convert it first (iconv)"
            ) from error
        yield _page(text, site)


def _page_bytes(location: Location, span: Range, truncation: Truncation) -> Iterator[bytes]:
    """From each <page> that begins in `span` to its </page>."""
    buffer, owned = b"", 0  # the first `owned` bytes of the buffer lie in the span
    ended = False
    for block, inside in _blocks(location, span, truncation):
        if inside:
            owned = len(buffer) + len(block)
        buffer += block
        position = 0
        while (start := buffer.find(b"<page>", position)) >= 0:
            if start >= owned:
                return
            stop = buffer.find(b"</page>", start)
            if stop < 0:
                break
            position = stop + 7
            ended = False
            yield buffer[start:position]
        ended = ended or (start < 0 and buffer.find(b"</mediawiki>", position) >= 0)
        keep = start if start >= 0 else max(position, len(buffer) - 16)  # a tag may go on in the next block
        if len(buffer) - keep > _MAX_PAGE:
            raise UserError(f"{location}: has a page of more than {_MAX_PAGE >> 20} MB; is it a pages-articles dump?")
        buffer, owned = buffer[keep:], owned - keep
        if owned <= 0 and not inside:
            return
    if b"<page>" in buffer:
        truncation.reason = truncation.reason or "it ends in the middle of a page"
    elif not ended and span.start < span.end:
        truncation.reason = truncation.reason or "it ends without </mediawiki>"


def _blocks(location: Location, span: Range, truncation: Truncation) -> Iterator[tuple[bytes, bool]]:
    """Decompressed blocks from `span.start` to the end of the file, and whether each begins in the span."""
    kind = compression(location)
    with location.open() as file:
        if kind == "xml":
            yield from _plain_blocks(file, span)
            return
        try:
            yield from _decompressed(file, kind, span, truncation)
        except (OSError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(
                f"{location}: is damaged {kind} ({error}); fetch it again and compare its checksum"
            ) from error


def _plain_blocks(file: BinaryIO, span: Range) -> Iterator[tuple[bytes, bool]]:
    file.seek(span.start)
    position = span.start
    while block := file.read(_READ if position >= span.end else min(_READ, span.end - position)):
        yield block, position < span.end
        position += len(block)


def _decompressed(file: BinaryIO, kind: str, span: Range, truncation: Truncation) -> Iterator[tuple[bytes, bool]]:
    """One compressed stream after another, as the tools that concatenate them leave them."""
    file.seek(span.start)
    data = file.read(_READ)
    read = span.start + len(data)
    while data:
        inside = read - len(data) < span.end
        stream = {"bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor, "gz": _Gzip}[kind]()
        while not stream.eof:
            block = stream.decompress(data, _BLOCK)
            if block:
                yield block, inside
            if stream.eof:
                break
            data = b""
            if stream.needs_input:
                data = file.read(_READ)
                read += len(data)
                if not data:
                    truncation.reason = f"its {kind} stream is cut off"
                    return
        data = stream.unused_data or b""
        if len(data) < 6:
            more = file.read(_READ)
            data, read = data + more, read + len(more)
        if not any(data.startswith(magic) for magic, name in _MAGIC.items() if name == kind):
            return  # padding, or what bzip2 and gzip ignore as well


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


def _page(text: str, site: Site) -> Page | None:
    """The fields of one <page>, in its last revision; None where it has no title or id."""
    last = text.rfind("<revision>")
    head, revision = (text[:last], text[last:]) if last >= 0 else (text, "")
    title, page_id = _TITLE.search(head), _id(head)
    if not title or page_id is None:
        return None
    name = _unescape(title[1])
    start = revision.find("<text")
    about, body = (revision[:start], _text(revision, start)) if start >= 0 else (revision, "")
    namespace = _NS.search(head)
    timestamp, model = _TIMESTAMP.search(about), _MODEL.search(about)
    return Page(
        page_id=page_id,
        title=name,
        namespace=int(namespace[1]) if namespace else site.namespace(name),
        redirect="<redirect" in head or bool(_REDIRECT.match(body)),
        revision=_id(about) or 0,
        timestamp=timestamp[1] if timestamp else "",
        model=model[1] if model else "wikitext",
        text=body,
    )


def _id(text: str) -> int | None:
    """The first <id>; None where there is none, or none that 64 bits hold."""
    match = _ID.search(text)
    return int(match[1]) if match and len(match[1]) <= _MAX_DIGITS else None


def _text(revision: str, start: int) -> str:
    """What <text ...> holds, nothing for <text/>."""
    inner = revision.find(">", start) + 1
    stop = revision.rfind("</text>")
    return _unescape(revision[inner:stop]) if 0 < inner <= stop else ""


def _field(name: str, header: str) -> str:
    match = re.search(rf"<{name}>([^<]*)</{name}>", header)
    return _unescape(match[1]).strip() if match else ""


def _unescape(text: str) -> str:
    """XML's entities, once: "&amp;lt;" is "&lt;"."""
    if "&" not in text:
        return text
    if "&#" in text:
        text = _NUMBER.sub(_character, text)
    text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&apos;", "'")
    return text.replace("&amp;", "&")


def _character(match: re.Match[str]) -> str:
    code = int(match[1], 16) if match[1] else int(match[2])
    if code == 0x26:
        return "&amp;"  # turned into "&" with the others, so that "&#38;lt;" is "&lt;"
    return chr(code) if code in (9, 10, 13) or 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else match[0]
