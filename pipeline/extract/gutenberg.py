"""A plain-text book -> its chapters: title, author, and for each chapter the paragraphs of prose.

Made for Project Gutenberg's files of every age, whose header, licence, notes and tables of contents are dropped, and
for files without any of these. A book is a row of blocks with blank lines between them; a block is a heading, prose, or
neither; a chapter is a heading with the prose up to the next one.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import NamedTuple

from cloze.pipeline.text import words
from cloze.pipeline.text.sentences import split_sentences

_START = re.compile(
    r"^[^\w\n]*+(?:START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*(?:\n(?!\s*\n)[^\n]*\*\*\*)?"
    r"|END ?\*?\W?THE SMALL PRINT[^\n]*|END THE SMALL PRINT[^\n]*)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_END = re.compile(
    r"^[^\w\n]*+(?:END (?:OF )?(?:THE |THIS )?PROJECT GUTENBERG|END: FULL LICENSE|START: FULL LICENSE"
    r"|START\W+THE SMALL PRINT)[^\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER_FIELD = re.compile(r"^(Title|Author|Language):[ \t]*(\S[^\n]*(?:\n[ \t]+\S[^\n]*)*)", re.MULTILINE)

_CREDITS = re.compile(
    r"(?:\[?(?:This )?(?:e-?text|e-?book|text) (?:was )?(?:first )?(?:produced|prepared|transcribed|scanned|typed)"
    r"|Produced by|Prepared by|Transcribed (?:from|by)|Scanned (?:and|by)|HTML version|Digitized by|Proofread"
    r"|Note: Project Gutenberg|Project Gutenberg|The Project Gutenberg|This eBook is for the use"
    r"|Images? (?:of|from) the original|This file was (?:first )?(?:produced|posted)|THIS EBOOK WAS ONE OF"
    r"|\[(?:Redactor|Note|Editor)[^\n]*(?:e-?text|gutenberg)|(?:https?://|www\.)\S+$)",
    re.IGNORECASE,
)
_TRANSCRIBER = re.compile(
    r"\W*(?:Original )?Transcriber[’']?s?[’']? ?(?:end)? ?notes?\b|\W*\[Transcrib"
    r"|Typographical errors (?:were )?corrected|\W*Transcription notes?\b",
    re.IGNORECASE,
)
_FIGURE = re.compile(
    r"\[(?:_?(?:Frontispiece|Illustrations?|Illustrated|Sidenote|Decoration|Blank|Map|Footnote|Picture|Music)\b)"
)
_MARKER = re.compile(
    r"\[(?:Pg|Page|p\.)\.? ?[\dxvil]+\]|\{(?:p\. ?)?[\dxvil]+\}|\[(?:\d{1,3}|[A-Z]|\*+)\]"
    r"|\[(?:Illustration|Transcriber)[^\[\]]*+(?:\[[^\[\]]*+\][^\[\]]*+)*+\]",
    re.IGNORECASE,
)
_FIGURE_END = re.compile(r"^\[[^\]]*\]\s*")
_RULE = re.compile(r"[\W_]*$")
_CONTENTS = re.compile(
    r"(?:TABLE OF )?CONTENTS?(?: OF\b.*)?\.?$|(?:LIST OF )?(?:THE )?ILLUSTRATIONS\.?$|INDEX\.?$|ERRATA\.?$",
    re.IGNORECASE,
)
_LIST_OF_CHAPTERS = re.compile(r"(?:TABLE OF )?CONTENTS\b", re.IGNORECASE)
_PAGE = re.compile(r"(?<![\s.])[\s.]++(?:\d{1,3}|[xvil]+)$")
_FINISH = re.compile(r"(?:THE END|FINIS|END OF (?:VOL|BOOK|PART)\b.*)\W*$", re.IGNORECASE)

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
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_PARTS = re.compile(r"(?:BOOK|PART|VOLUME|VOL)\b", re.IGNORECASE)
_LONGEST_NOTE = 10  # blocks
_MIN_WORDS = {"numeral": 150, "title": 60}  # with fewer below them, numerals count stanzas and capitals name speakers


class Span(NamedTuple):
    """Lines of a text, numbered from 0: [first, end)."""

    first: int
    end: int


class Chapter(NamedTuple):
    """A chapter. `spans` says for each paragraph where it stands in the text; the first one's takes the headings in."""

    title: str
    paragraphs: list[str]
    spans: list[Span]


class Book(NamedTuple):
    """A book. `language` is the header's word for it ("English"); what is not known is empty."""

    title: str
    author: str
    language: str
    chapters: list[Chapter]


@dataclass
class _Block:
    lines: list[str]
    gap: int  # blank lines before it
    span: Span

    @property
    def text(self) -> str:
        return " ".join(self.lines)


def cut(chapters: Sequence[Chapter], every: int) -> list[Chapter]:
    """A book in pieces of so many sentences, the last of fewer; paragraphs keep their boundaries."""
    pieces: list[Chapter] = []
    room = 0
    _, paragraphs, spans = whole(chapters)
    for paragraph, span in zip(paragraphs, spans, strict=True):
        sentences = split_sentences(paragraph)
        while sentences:
            if not room:
                pieces.append(Chapter("", [], []))
                room = every
            taken, sentences = sentences[:room], sentences[room:]
            room -= len(taken)
            end = 0
            for sentence in taken:
                end = paragraph.index(sentence, end) + len(sentence)
            pieces[-1].paragraphs.append(paragraph[:end])
            pieces[-1].spans.append(span)
            paragraph = paragraph[end:].lstrip()
    return pieces


def whole(chapters: Sequence[Chapter]) -> Chapter:
    """A book as one chapter without a title."""
    paragraphs = [paragraph for chapter in chapters for paragraph in chapter.paragraphs]
    return Chapter("", paragraphs, [span for chapter in chapters for span in chapter.spans])


def read_book(text: str) -> Book:
    """Chapters of a book's text, front and back matter dropped. A book without headings is one chapter."""
    header, body, first = _body(text)
    fields = {match[1]: " ".join(match[2].split()) for match in _HEADER_FIELD.finditer(header)}
    blocks = _without_notes(_blocks(body, first))
    title, author = fields.get("Title", ""), fields.get("Author", "")
    if not title and blocks:
        title, author = _title_page(blocks)
    return Book(title, author, fields.get("Language", ""), _chapters(blocks))


def _body(text: str) -> tuple[str, str, int]:
    """The distributor's header; the book itself, without the distributor's footer; the line that it begins in."""
    starts = list(_START.finditer(text, 0, min(len(text), 60_000)))
    start = starts[-1].end() if starts else 0
    end = _END.search(text, start)
    body = text[start : end.start() if end else len(text)]
    return text[:start] or text[:2000], body, text.count("\n", 0, start)


def _blocks(body: str, first: int = 0) -> list[_Block]:
    """Blocks of a text whose first line has the number `first`."""
    blocks: list[_Block] = []
    lines: list[str] = []
    gap = blank = 0
    for number, raw in enumerate([*body.split("\n"), ""], first):
        line = raw.strip()
        if line:
            if not lines:
                gap = blank
            lines.append(line)
            blank = 0
        else:
            blank += 1
            if lines:
                blocks.append(_Block(lines, gap, Span(number - len(lines), number)))
                lines = []
    return blocks


def _without_notes(blocks: list[_Block]) -> list[_Block]:
    """Drop credits, transcriber's notes, illustrations' placeholders, footnotes and rules."""
    kept: list[_Block] = []
    note = 0  # 1: the block after a heading of notes belongs to them; more: so does what follows closely
    bracket = ""
    for number, block in enumerate(blocks):
        text = block.text
        if bracket:
            bracket = "" if text.endswith("]") else bracket
            continue
        if 0 < note < _LONGEST_NOTE and (note == 1 or block.gap < 2) and not _NUMBERED.match(text):
            note += 1
            continue
        note = 0
        if _TRANSCRIBER.match(text):
            if text.startswith("["):
                bracket = "" if "]" in text or not _closes(blocks, number) else "["
            else:
                note = 1 if len(text) < 40 else 2
        elif _FIGURE.match(text):
            bracket = "" if text.count("]") >= text.count("[") or not _closes(blocks, number) else "["
            if text.rfind("]") < len(text) - 2 and "]" in text:
                kept.append(replace(block, lines=[_FIGURE_END.sub("", text)]))
        elif not (_CREDITS.match(text) or _RULE.match(text) or _FINISH.match(text)):
            kept.append(block)
    return kept


def _closes(blocks: list[_Block], start: int) -> bool:
    """Whether the bracket that a block opens is closed soon, before another opens."""
    for block in blocks[start + 1 : start + 20]:
        if block.text.startswith("["):
            return False
        if block.text.endswith("]"):
            return True
    return False


def _title_page(blocks: list[_Block]) -> tuple[str, str]:
    """Title and author from the first blocks of a file without a header; empty where they do not look like it."""
    first = blocks[0]
    if len(first.lines) > 4 or len(first.text) > 120 or _is_heading(first, set()) == "numeral" or _is_prose(first):
        return "", ""
    lines = [line for block in blocks[:3] for line in block.lines][:8]
    author = next((line[3:].strip(" ._") for line in lines if line.lower().startswith("by ") and len(line) < 60), "")
    title = re.split(r"\s+by\s+(?=[A-Z])", first.text, maxsplit=1)[0]
    return _EMPHASIS.sub("", title).strip(" ._,"), author


def _listed(blocks: list[_Block]) -> set[str]:
    """The entries of the book's own table of contents, as `_entry` has them."""
    entries: set[str] = set()
    for start, block in enumerate(blocks[:200]):
        if not _LIST_OF_CHAPTERS.match(block.lines[0]):
            continue
        lists = takewhile(lambda block: not _is_running(block), blocks[start : start + 100])
        for line in (line for block in lists for line in block.lines):
            if len(line) > 70 or "ILLUSTRATION" in line.upper():
                break
            entry = _entry(line)
            if entry in entries and len(entries) > 2:
                break  # the first chapter begins
            if len(entry) > 2 and line[0] not in '"“‘':
                entries.add(entry)
        break
    return entries


def _is_running(block: _Block) -> bool:
    """Whether a block's lines are as long as a paragraph's."""
    return _is_prose(block) and sum(len(" ".join(line.split())) for line in block.lines) > 50 * len(block.lines)


def _entry(line: str) -> str:
    """A title without its number, its page, its case and its punctuation."""
    line = _PAGE.sub("", _COUNT.sub("", line.strip("_*= ")))
    return " ".join(re.findall(r"\w+", line.casefold().replace("_", " ")))


def _is_heading(block: _Block, listed: Set[str]) -> str:
    """What kind of heading a block is: contents, chapter, listed (in the contents), title (by its look), numeral."""
    lines, text = block.lines, block.text.strip("_*= ")
    if len(lines) > 2 and listed and sum(_entry(line) in listed for line in lines[:5]) > 2:
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
    if listed and len(lines) <= 3 and len(text) < 100 and not text.isdigit() and _entry(text) in listed:
        return "listed"
    if _NAMED.match(text) or (_NUMERAL_TITLE.match(first) and len(lines) <= 3 and _titled(text, block.gap)):
        return "chapter"
    if block.gap >= 2 and len(lines) <= 4 and text.isupper() and len(text) > 3:
        return "title"
    return "title" if block.gap >= 3 and len(lines) <= 2 and _in_title_case(text) else ""


def _in_title_case(text: str) -> bool:
    """The Nightingale and the Rose."""
    found = re.findall(r"[^\W\d_][\w’']*", text)
    return len(text) < 60 and bool(found) and found[0][0].isupper() and all(w[0].isupper() for w in found if len(w) > 4)


def _titled(text: str, gap: int) -> bool:
    return text.isupper() or (gap >= 2 and not _LINE_END.search(text.rstrip(".")))


def _is_prose(block: _Block) -> bool:
    """Whether a block holds a sentence, or verse; a title page, a list of names or a table does not."""
    text = block.text
    found = words.count_words(text)
    if found < 4 or text.isupper():
        return False
    return bool(_LINE_END.search(text)) or (found > 12 and len(text) / len(block.lines) > 30)


def _chapters(blocks: list[_Block]) -> list[Chapter]:
    """Cut at headings; what follows a heading without prose of its own is the next one's title or front matter."""
    listed = _listed(blocks)
    kinds = _demoted(blocks, [_is_heading(block, listed) for block in blocks])
    chapters: list[Chapter] = []
    title: list[_Block] = []
    body: list[_Block] = []
    last = ""

    def finish() -> None:
        if found := _paragraphs(body):
            name = _EMPHASIS.sub("", ". ".join(block.text.strip(" .") for block in title))
            first = (title or body)[0].span.first
            spans = [Span(first, found[0][1].end), *(span for _, span in found[1:])]
            chapters.append(Chapter(name, [paragraph for paragraph, _ in found], spans))
        body.clear()

    for block, kind in zip(blocks, kinds, strict=True):
        if kind == "numeral":
            continue
        if kind:
            if body:
                finish()
                title = []
            again = kind == "chapter" or (kind == "listed" and last != "chapter")
            if kind == "contents" or (again and not all(_PARTS.match(block.text) for block in title)):
                title = []
            if kind != "contents":
                title = [*title[-2:], block]
            last = kind
        elif last != "contents" or (_is_prose(block) and len(block.text) > 200):
            last = ""
            if title and not body and _is_subtitle(block):
                title.append(block)
            elif title or body or chapters or _is_prose(block):
                body.append(block)
    finish()
    return chapters


def _is_subtitle(block: _Block) -> bool:
    """A line right under a heading that is the rest of it."""
    text = block.text
    return len(block.lines) <= 2 and len(text) < 80 and not re.search(r"[.!?,;:][\"'”’]?$", text) and text[0].isupper()


def _demoted(blocks: list[_Block], kinds: list[str]) -> list[str]:
    """Numerals alone and lines in capitals are headings only where they stand above a chapter's worth of words."""
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
    for kind, least in _MIN_WORDS.items():
        filled = sorted(size for size in sizes[kind] if size)
        if filled and filled[len(filled) // 2] >= least:
            new[kind] = "chapter" if kind == "numeral" else kind
        else:
            new[kind] = kind if kind == "numeral" else ""
    return [new.get(kind, kind) for kind in kinds]


def _paragraphs(body: list[_Block]) -> list[tuple[str, Span]]:
    """Blocks -> paragraphs of joined lines, and where each stands; none where nothing in them is prose."""
    if not any(map(_is_prose, body)):
        return []
    paragraphs = []
    for block in body:
        text = ""
        for line in block.lines:
            joined = text.endswith("-") and (text[-2:-1].isalpha() or text.endswith("--"))
            text += line if joined or not text else " " + line
        text = " ".join(_EMPHASIS.sub("", _MARKER.sub("", text)).split()).strip()
        if any(map(str.isalpha, text)):
            paragraphs.append((text, block.span))
    return paragraphs
