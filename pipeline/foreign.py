"""The first bytes of a file -> a UserError that names what it is, where it is no MediaWiki XML in UTF-8."""

import re

from pipeline.config import UserError
from pipeline.storage import Location

MEND = "give a MediaWiki XML export, such as <wiki>-latest-pages-articles.xml.bz2"
HEAD = 512  # bytes that tell: tar has its mark at 257

_PACKED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first (7z x)",
    b"PK\x03\x04": "a zip archive; unpack it first (unzip)",
    b"PK\x05\x06": "an empty zip archive",
    b"Rar!\x1a\x07": "a rar archive; unpack it first (unrar x)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first (zstd -d)",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it first (lz4 -d)",
    b"\x02\x21\x4c\x18": "compressed with lz4; unpack it first (lz4 -d)",
    b"\x1f\x9d": "compressed with compress (.Z); unpack it first (uncompress)",
    b"LZIP": "compressed with lzip; unpack it first (lzip -d)",
    b"\x89LZO\x00": "compressed with lzop; unpack it first (lzop -d)",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy; unpack it first",
    b"PAR1": "a Parquet file; give it as a source of kind documents",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF-": "a PDF",
}
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
#: Which of four bytes are zero throughout in text that is mostly ASCII.
_ZEROS = {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}
_TEXTS = {
    r"(?:<!--[^>]*-->\s*)?<(?:!doctype html|html\b|head\b|body\b)": "HTML, perhaps a server's message",
    r"-- (?:MySQL|MariaDB|phpMyAdmin|PostgreSQL|Host:)|/\*[!M]|(?:DROP|CREATE|LOCK) TABLE|INSERT INTO": "an SQL dump",
    r"\{\s*\"(?:index|create)\"\s*:": "a CirrusSearch dump in JSON",
    r"\[?\s*\{.*\"(?:article_body|date_modified|is_part_of)\"": "JSON of Wikimedia Enterprise",
    r"\[?\s*\{\s*\"(?:batchcomplete|continue|query|parse|error|warnings)\"": "JSON of MediaWiki's API",
    r"\{\s*[\"}]|\[\s*[\]{\"\d]": "JSON",
    r"\d+:\d+:": "the index of a multistream dump",
    r"<(?:\?xml[^>]*>\s*<)?api\b": "an answer of MediaWiki's API",
    r"<(?:\?xml[^>]*>\s*<)?feed\b": "a feed or a dump of abstracts",
}


def refuse(location: Location, head: bytes) -> None:
    """Raise UserError if a file that begins like this is known to be something else."""
    for magic, what in _PACKED.items():
        if head.startswith(magic):
            raise UserError(f"{location}: is {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"{location}: is a tar archive; unpack it first (tar -xf)")
    if encoding := _wide(head):
        raise UserError(f"{location}: is {encoding}; convert it to UTF-8 first (iconv -f {encoding} -t UTF-8)")
    text = head[:4096].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
    for pattern, what in _TEXTS.items():
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            raise UserError(f"{location}: begins with {text[:40]!r} instead of <mediawiki>: it is {what}; {MEND}")


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32, by its mark or by where its zeros are; empty where it is neither."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    some = head[:64]
    zeros = "".join("0" if some[k::4] and not any(some[k::4]) else "x" for k in range(4))
    return _ZEROS.get(zeros, "")
