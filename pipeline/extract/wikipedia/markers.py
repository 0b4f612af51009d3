"""Control characters that mark places in half-processed wikitext, and XML and HTML entities.

XML cannot contain control characters, and those of a page are removed first, so none of them is text.
"""

import html.entities
import re

GAP = "\x00"  # something was dropped here
QUOTE_BREAK = "\x01"  # the apostrophes before and after it are separate marks; what follows begins no line
TABLE_START = "\x02"  # of a table that may have no end
CONTROL_CHARACTERS = "".join(map(chr, (*range(9), *range(14, 32))))

# Characters inside <nowiki> that are not markup there, and the control characters that replace them until the end.
_SPECIAL = "[]{}|'<>&*#:;=_!"
ENCODED = "\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17"
PROTECT = str.maketrans(_SPECIAL, ENCODED)
UNPROTECT = str.maketrans(ENCODED, _SPECIAL)
LITERAL_APOSTROPHES = "''".translate(PROTECT)  # two apostrophes that are not markup

LINE_MARKS = tuple("*#:;|!")  # characters that are markup at the beginning of a line, besides those of headings

_ENTITY = re.compile(r"&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));")


def separate_quotes(text: str) -> str:
    """Separate apostrophes at the ends of a template's text or a link's label from those around it."""
    return QUOTE_BREAK * text.startswith("'") + text + QUOTE_BREAK * text.endswith("'")


def separate_line_mark(text: str) -> str:
    """Separate a character with which a link's label begins from the beginning of a line, where it would be markup."""
    return QUOTE_BREAK + text if text.startswith((*LINE_MARKS, "=")) else text


def expand_entities(text: str) -> str:
    return _ENTITY.sub(_expand_entity, text)


def _expand_entity(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        return html.entities.html5.get(name + ";", match[0])
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else " "
