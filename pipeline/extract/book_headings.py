"""Blocks of a book -> whether each is a heading, and of what kind, or prose."""

import re
from collections.abc import Set
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from cloze.pipeline.text import words

_PAGE = re.compile(r"(?<![\s.])[\s.]++(?:\d{1,3}|[xvil]+)$")
_CONTENTS = re.compile(
    r"(?:TABLE OF )?CONTENTS?(?: OF\b.*)?\.?$|(?:LIST OF )?(?:THE )?ILLUSTRATIONS\.?$|INDEX\.?$|ERRATA\.?$",
    re.IGNORECASE,
)
_LIST_OF_CHAPTERS = re.compile(r"(?:TABLE OF )?CONTENTS\b", re.IGNORECASE)
_ROMAN = r"(?=[IVXLC])C{0,3}(?:XC|XL|L?X{0,4})(?:IX|IV|V?I{0,4})"
_ORDINAL = (
    r"(?:THE )?(?:FIRST|SECOND|THIRD|FOURTH|FIFTH|SIXTH|SEVENTH|EIGHTH|NINTH|TENTH|ELEVENTH|TWELFTH|LAST"
    r"|(?:THIR|FOUR|FIF|SIX|SEVEN|EIGH|NINE)TEENTH|ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|NINE|TEN|ELEVEN|TWELVE"
    r"|(?:THIR|FOUR|FIF|SIX|SEVEN|EIGH|NINE)TEEN|(?:TWENTY|THIRTY|FORTY|FIFTY|SIXTY)(?:[- ]\w+)?)"
)
_NUMBERED = re.compile(
    rf"(?:CHAPTER|CHAP\.?|CHAPITRE|KAPITEL|BOOK|PART|VOLUME|VOL\.?|LETTER|STAVE|ACT|SCENE|CANTO|SECTION|ADVENTURE|STORY|TALE"
    rf"|FIT|PHASE|NIGHT|DAY)(?: THE)?[ .]+(?:{_ROMAN}|\d{{1,3}}(?:ST|ND|RD|TH)?|{_ORDINAL})(?![\w’'])",
    re.IGNORECASE,
)
_COUNT = re.compile(rf"(?:(?:CHAPTER|ADVENTURE|STORY|PART) )?(?:{_ROMAN}|\d{{1,3}})[.:)\s—–-]+", re.IGNORECASE)
_NUMERAL = re.compile(rf"(?:{_ROMAN}|\d{{1,3}})\.?$")
_NUMERAL_TITLE = re.compile(rf"{_ROMAN}\.?[ .:—–-]+[A-Z“\"‘']")
_NAMED = re.compile(
    r"(?:(?:AUTHOR[’']S |EDITOR[’']S )?(?:PREFACE|INTRODUCTION|NOTE)|PROLOGUE|EPILOGUE|CONCLUSION|FOREWORD|AFTERWORD"
    r"|POSTSCRIPT|PROEM|INTRODUCTORY|ETYMOLOGY|EXTRACTS|L[’']ENVOI|DEDICATION|APPENDIX|ADVERTISEMENT)\b[^a-z]{0,40}\.?$",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"[.!?:;,…—。！？：；，、-][\"'”’»)\]」』_*]*$")
_MIN_WORDS = {"numeral": 150, "title": 60}  # in a chapter; above fewer, numerals count stanzas, capitals name speakers


class LineSpan(NamedTuple):
    """Lines of a text, numbered from 0: [first, end)."""

    first: int
    end: int


@dataclass
class Block:
    """Consecutive lines without a blank line between them."""

    lines: list[str]
    gap: int  # the number of blank lines before it
    span: LineSpan

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def heading_kind(block: Block, contents: Set[str]) -> str:
    """The kind of heading: contents, chapter, listed (in the contents), title (by its format), numeral; empty: none."""
    lines, text = block.lines, block.text.strip("_*= ")
    if len(lines) > 2 and contents and sum(_contents_entry(line) in contents for line in lines[:5]) > 2:
        return "contents"
    if len(lines) > 5 or len(text) > 200 or max(map(len, lines)) > 80:
        return ""
    first = lines[0].strip("_*= ")
    if _CONTENTS.match(first):
        return "contents"
    if _NUMERAL.match(text):
        return "numeral" if not text.isdigit() or block.gap >= 2 else ""
    if _NUMBERED.match(first):
        if sum(bool(_NUMBERED.match(line)) for line in lines) > 2:
            return "contents"
        return "chapter" if len(first) < 70 or first.isupper() else ""
    if contents and len(lines) <= 3 and len(text) < 100 and not text.isdigit() and _contents_entry(text) in contents:
        return "listed"
    if _NAMED.match(text) or (_NUMERAL_TITLE.match(first) and len(lines) <= 3 and _looks_like_title(text, block.gap)):
        return "chapter"
    if block.gap >= 2 and len(lines) <= 4 and text.isupper() and len(text) > 3:
        return "title"
    return "title" if block.gap >= 3 and len(lines) <= 2 and _in_title_case(text) else ""


def contents_entries(blocks: list[Block]) -> set[str]:
    """The entries of the book's own table of contents, normalized by `_contents_entry`."""
    entries: set[str] = set()
    for start, block in enumerate(blocks[:200]):
        if not _LIST_OF_CHAPTERS.match(block.lines[0]):
            continue
        lists = takewhile(lambda block: not _has_long_lines(block), blocks[start : start + 100])
        for line in (line for block in lists for line in block.lines):
            if len(line) > 70 or "ILLUSTRATION" in line.upper():
                break
            entry = _contents_entry(line)
            if entry in entries and len(entries) > 2:
                break  # the first chapter begins
            if len(entry) > 2 and line[0] not in '"“‘':
                entries.add(entry)
        break
    return entries


def _has_long_lines(block: Block) -> bool:
    """Whether a block's lines are as long as a paragraph's."""
    return is_prose(block) and sum(len(" ".join(line.split())) for line in block.lines) > 50 * len(block.lines)


def _contents_entry(line: str) -> str:
    """A title without its number, its page, its case and its punctuation."""
    line = _PAGE.sub("", _COUNT.sub("", line.strip("_*= ")))
    return " ".join(re.findall(r"\w+", line.casefold().replace("_", " ")))


def _in_title_case(text: str) -> bool:
    """Whether a text is capitalized like "The Nightingale and the Rose"."""
    names = re.findall(r"[^\W\d_][\w’']*", text)
    return len(text) < 60 and bool(names) and names[0][0].isupper() and all(w[0].isupper() for w in names if len(w) > 4)


def _looks_like_title(text: str, gap: int) -> bool:
    return text.isupper() or (gap >= 2 and not _LINE_END.search(text.rstrip(".")))


def is_prose(block: Block) -> bool:
    """Whether a block contains a sentence or verse, unlike a title page, a list of names or a table."""
    text = block.text
    num_words = words.count_words(text)
    if num_words < 4 or text.isupper():
        return False
    return bool(_LINE_END.search(text)) or (num_words > 12 and len(text) / len(block.lines) > 30)


def is_subtitle(block: Block) -> bool:
    """Whether a block directly below a heading is the rest of the heading."""
    text = block.text
    return len(block.lines) <= 2 and len(text) < 80 and not re.search(r"[.!?,;:][\"'”’]?$", text) and text[0].isupper()


def demote_headings(blocks: list[Block], kinds: list[str]) -> list[str]:
    """Keep numerals and lines in capitals as headings only if they are above as many words as a chapter has."""
    sizes: dict[str, list[int]] = {"numeral": [], "title": []}
    last = ""
    for block, kind in zip(blocks, kinds, strict=True):
        if kind:
            last = kind
            if kind in sizes:
                sizes[kind].append(0)
        elif last in sizes:
            sizes[last][-1] += words.count_words(block.text)
    new = {}
    for kind, minimum in _MIN_WORDS.items():
        filled = sorted(size for size in sizes[kind] if size)
        if filled and filled[len(filled) // 2] >= minimum:
            new[kind] = "chapter" if kind == "numeral" else kind
        else:
            new[kind] = kind if kind == "numeral" else ""
    return [new.get(kind, kind) for kind in kinds]


def is_numbered_heading(text: str) -> bool:
    """Whether a text begins like "Chapter IV" or "Book the First"."""
    return bool(_NUMBERED.match(text))
