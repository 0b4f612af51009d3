"""The first bytes of a file -> a UserError that names what it is, where it is no MediaWiki XML in UTF-8."""

import re

from cloze.pipeline.core import file_types
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.encodings import bom_encoding

MEND = "give a MediaWiki XML export, such as <wiki>-latest-pages-articles.xml.bz2"

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
    if found := file_types.file_type_of(head):
        raise UserError(f"{location}: is {found}")
    if encoding := _wide(head):
        raise UserError(f"{location}: is {encoding}; convert it to UTF-8 first (iconv -f {encoding} -t UTF-8)")
    text = head[:4096].decode("utf-8-sig", "replace").strip()
    for pattern, what in _TEXTS.items():
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            raise UserError(f"{location}: begins with {text[:40]!r} instead of <mediawiki>: it is {what}; {MEND}")


def _wide(head: bytes) -> str:
    """UTF-16 or UTF-32, by its mark or by where its zeros are; empty where it is neither."""
    if encoding := bom_encoding(head).removeprefix("utf-8-sig"):
        return encoding.upper()
    some = head[:64]
    zeros = "".join("0" if some[k::4] and not any(some[k::4]) else "x" for k in range(4))
    return _ZEROS.get(zeros, "")
