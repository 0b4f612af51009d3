"""A plain-text book -> its chapters: title, author, and for each chapter the paragraphs of prose.

Handles Project Gutenberg's files of all years, whose header, licence, notes and tables of contents are dropped, and
files without any of these. A book is a sequence of blocks, separated by blank lines. A block is a heading, prose, or
neither. A chapter is a heading with the prose up to the next heading.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cloze.pipeline.extract.book_headings import (
    Block,
    LineSpan,
    contents_entries,
    demote_headings,
    heading_kind,
    is_numbered_heading,
    is_prose,
    is_subtitle,
)
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
    r"\[(?:Pg|Page|p\.)\.? ?[\dxvil]+\]|\{(?:p\. ?)?[\dxvil]+\}"
    r"|\[(?:\d{1,3}|\*+|[A-Z](?=\](?-i:(?![^\W\d_A-Z]))))\]"  # but no editor's letter, as in "[T]he king"
    r"|\[(?:Illustration|Transcriber)[^\[\]]*+(?:\[[^\[\]]*+\][^\[\]]*+)*+\]",
    re.IGNORECASE,
)
_BRACKET = re.compile(r"\[|\]\s*")
_HORIZONTAL_RULE = re.compile(r"[\W_]*$")
_THE_END = re.compile(r"(?:THE END|FINIS|END OF (?:VOL|BOOK|PART)\b.*)\W*$", re.IGNORECASE)

_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_PARTS = re.compile(r"(?:BOOK|PART|VOLUME|VOL)\b", re.IGNORECASE)
_MAX_NOTE_BLOCKS = 10


class Chapter(NamedTuple):
    """A chapter. `spans` are the lines of each paragraph in the text; the first includes the chapter's headings."""

    title: str
    paragraphs: list[str]
    spans: list[LineSpan]


class Book(NamedTuple):
    """A book. `language` is the word in the header ("English"); fields that are not known are empty."""

    title: str
    author: str
    language: str
    chapters: list[Chapter]


def split_by_sentences(chapters: Sequence[Chapter], size: int) -> list[Chapter]:
    """Divide a book into untitled chapters of `size` sentences, the last of fewer. Paragraph boundaries stay."""
    divided: list[Chapter] = []
    room = 0
    _, paragraphs, spans = merge_chapters(chapters)
    for paragraph, span in zip(paragraphs, spans, strict=True):
        sentences = split_sentences(paragraph)
        while sentences:
            if not room:
                divided.append(Chapter("", [], []))
                room = size
            taken, sentences = sentences[:room], sentences[room:]
            room -= len(taken)
            end = 0
            for sentence in taken:
                end = paragraph.index(sentence, end) + len(sentence)
            divided[-1].paragraphs.append(paragraph[:end])
            divided[-1].spans.append(span)
            paragraph = paragraph[end:].lstrip()
    return divided


def merge_chapters(chapters: Sequence[Chapter]) -> Chapter:
    """A book as one chapter without a title."""
    paragraphs = [paragraph for chapter in chapters for paragraph in chapter.paragraphs]
    return Chapter("", paragraphs, [span for chapter in chapters for span in chapter.spans])


def read_book(text: str) -> Book:
    """Chapters of a book's text, front and back matter dropped. A book without headings is one chapter."""
    header, body, first_line = _split_header(text)
    fields = {match[1]: " ".join(match[2].split()) for match in _HEADER_FIELD.finditer(header)}
    blocks = _drop_notes(_blocks(body, first_line))
    title, author = fields.get("Title", ""), fields.get("Author", "")
    if not title and blocks:
        title, author = _title_page(blocks)
    return Book(title, author, fields.get("Language", ""), _chapters(blocks))


def _split_header(text: str) -> tuple[str, str, int]:
    """The distributor's header; the book without the distributor's footer; the number of the book's first line."""
    starts = list(_START.finditer(text, 0, min(len(text), 60_000)))
    start = starts[-1].end() if starts else 0
    end = _END.search(text, start)
    body = text[start : end.start() if end else len(text)]
    return text[:start] or text[:2000], body, text.count("\n", 0, start)


def _blocks(body: str, first_line: int = 0) -> list[Block]:
    """The blocks of a text; its first line has the number `first_line`."""
    blocks: list[Block] = []
    lines: list[str] = []
    gap = blank = 0
    for number, raw in enumerate([*body.split("\n"), ""], first_line):
        line = raw.strip()
        if line:
            if not lines:
                gap = blank
            lines.append(line)
            blank = 0
        else:
            blank += 1
            if lines:
                blocks.append(Block(lines, gap, LineSpan(number - len(lines), number)))
                lines = []
    return blocks


def _drop_notes(blocks: list[Block]) -> list[Block]:
    """Drop credits, transcriber's notes, illustrations' placeholders, footnotes and rules."""
    kept: list[Block] = []
    note = 0  # 1: the block after a heading of notes is a note; more: so are blocks that follow without a gap
    bracket = ""
    for number, block in enumerate(blocks):
        text = block.text
        if bracket:
            bracket = "" if text.endswith("]") else bracket
            continue
        if 0 < note < _MAX_NOTE_BLOCKS and (note == 1 or block.gap < 2) and not is_numbered_heading(text):
            note += 1
            continue
        note = 0
        if _TRANSCRIBER.match(text):
            if text.startswith("["):
                bracket = "" if "]" in text or not _bracket_closes(blocks, number) else "["
            else:
                note = 1 if len(text) < 40 else 2
        elif _FIGURE.match(text):
            after = _after_figures(text)
            bracket = "[" if after is None and _bracket_closes(blocks, number) else ""
            if after is None and not bracket:  # nobody closes it
                _, closed, rest = text.rpartition("]")
                after = rest.strip() if closed else ""
            if after and any(map(str.isalpha, after)):
                kept.append(replace(block, lines=[after]))
        elif not (_CREDITS.match(text) or _HORIZONTAL_RULE.match(text) or _THE_END.match(text)):
            kept.append(block)
    return kept


def _after_figures(text: str) -> str | None:
    """What follows the figures and notes in brackets with which a block begins; None if one of them is not closed."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += 1 if match[0] == "[" else -1
        if not depth and not _FIGURE.match(text, match.end()):
            return text[match.end() :]
    return None


def _bracket_closes(blocks: list[Block], start: int) -> bool:
    """Whether the bracket that a block opens is closed within 20 blocks, before another opens."""
    for block in blocks[start + 1 : start + 20]:
        if block.text.startswith("["):
            return False
        if block.text.endswith("]"):
            return True
    return False


def _title_page(blocks: list[Block]) -> tuple[str, str]:
    """Title and author from the first blocks of a file without a header; empty if there are none."""
    first = blocks[0]
    if len(first.lines) > 4 or len(first.text) > 120 or heading_kind(first, set()) == "numeral" or is_prose(first):
        return "", ""
    lines = [line for block in blocks[:3] for line in block.lines][:8]
    author = next((line[3:].strip(" ._") for line in lines if line.lower().startswith("by ") and len(line) < 60), "")
    title = re.split(r"\s+by\s+(?=[A-Z])", first.text, maxsplit=1)[0]
    return _EMPHASIS.sub("", title).strip(" ._,"), author


def _chapters(blocks: list[Block]) -> list[Chapter]:
    """Split at headings. What follows a heading without prose is part of the next title, or front matter."""
    contents = contents_entries(blocks)
    kinds = demote_headings(blocks, [heading_kind(block, contents) for block in blocks])
    chapters: list[Chapter] = []
    title: list[Block] = []
    body: list[Block] = []
    last = ""

    def finish() -> None:
        if found := _paragraphs(body):
            name = _EMPHASIS.sub("", ". ".join(block.text.strip(" .") for block in title))
            first = (title or body)[0].span.first
            spans = [LineSpan(first, found[0][1].end), *(span for _, span in found[1:])]
            chapters.append(Chapter(name, [paragraph for paragraph, _ in found], spans))
        body.clear()

    for block, kind in zip(blocks, kinds, strict=True):
        if kind == "numeral":
            continue
        if kind:
            if body:
                finish()
                title = []
            new_title = kind == "chapter" or (kind == "listed" and last != "chapter")
            if kind == "contents" or (new_title and not all(_PARTS.match(block.text) for block in title)):
                title = []
            if kind != "contents":
                title = [*title[-2:], block]
            last = kind
        elif last != "contents" or (is_prose(block) and len(block.text) > 200):
            last = ""
            if title and not body and is_subtitle(block):
                title.append(block)
            elif title or body or chapters or is_prose(block):
                body.append(block)
    finish()
    return chapters


def _paragraphs(body: list[Block]) -> list[tuple[str, LineSpan]]:
    """Blocks -> paragraphs of joined lines with their line spans; none if no block is prose."""
    if not any(map(is_prose, body)):
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
