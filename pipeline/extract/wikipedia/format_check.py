"""The first bytes of a file -> a UserError that names its format if it is not MediaWiki XML in UTF-8."""

import re

from cloze.pipeline.core import file_types
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.character_encodings import bom_encoding

FIX = "give a MediaWiki XML export, such as <wiki>-latest-pages-articles.xml.bz2"

#: Which bytes of each four are zero throughout (0) in text that is mostly ASCII.
_ZERO_BYTES = {"x000": "UTF-32LE", "000x": "UTF-32BE", "x0x0": "UTF-16LE", "0x0x": "UTF-16BE"}
_OTHER_FORMATS = {
    r"(?:<!--[^>]*-->\s*)?<(?:!doctype html|html\b|head\b|body\b)": "HTML, perhaps a server's message",
    r"-- (?:MySQL|MariaDB|phpMyAdmin|PostgreSQL|Host:)|/\*[!M]|(?:DROP|CREATE|LOCK) TABLE|INSERT INTO": "an SQL dump",
    r"\{\s*\"(?:index|create)\"\s*:": "a CirrusSearch dump in JSON",
    r"\[?\s*\{.*\"(?:article_body|date_modified|is_part_of)\"": "JSON of Wikimedia Enterprise",
    r"\[?\s*\{\s*\"(?:batchcomplete|continue|query|parse|error|warnings)\"": "JSON of MediaWiki's API",
    r"\{\s*[\"}]|\[\s*[\]{\"\d]": "JSON",
    r"\d+:\d+:": "the index of a multistream dump",
    r"<(?:\?xml[^>]*>\s*<)?api\b": "a response of MediaWiki's API",
    r"<(?:\?xml[^>]*>\s*<)?feed\b": "a feed or a dump of abstracts",
}


def check_format(location: Location, head: bytes) -> None:
    """Raises UserError if a file that begins with `head` is known to be of another format."""
    if found := file_types.file_type_of(head):
        raise UserError(f"{location}: is {found}")
    if encoding := _utf16_or_utf32(head):
        raise UserError(f"{location}: is {encoding}; convert it to UTF-8 first (iconv -f {encoding} -t UTF-8)")
    text = head[:4096].decode("utf-8-sig", "replace").strip()
    for pattern, name in _OTHER_FORMATS.items():
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            raise UserError(f"{location}: begins with {text[:40]!r} instead of <mediawiki>: it is {name}; {FIX}")


def _utf16_or_utf32(head: bytes) -> str:
    """The name of a UTF-16 or UTF-32 encoding, by its byte order mark or by its zero bytes; empty for others."""
    if encoding := bom_encoding(head).removeprefix("utf-8-sig"):
        return encoding.upper()
    some = head[:64]
    zeros = "".join("0" if some[k::4] and not any(some[k::4]) else "x" for k in range(4))
    return _ZERO_BYTES.get(zeros, "")
