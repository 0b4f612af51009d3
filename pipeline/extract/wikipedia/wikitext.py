"""Wikitext -> paragraphs of running text.

Four linear passes, none of them recursive: nested_markup.py resolves nested markup (templates, tables, tags, comments),
inline_markup.py resolves links; `_split_blocks` resolves bold and italics and sorts lines into paragraphs and other
lines (indented_lines.py finds the paragraphs among indented lines); `_clean_blocks` cleans up characters.

Where something was dropped, the text contains a gap, U+0000, until `_clean_blocks` removes the empty brackets and loose
commas around it. Special characters inside <nowiki> are encoded as control characters until the end (markers.py).
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloze.pipeline.extract.wikipedia import indented_lines
from cloze.pipeline.extract.wikipedia.inline_markup import resolve_links, resolve_quotes
from cloze.pipeline.extract.wikipedia.markers import (
    CONTROL_CHARACTERS,
    ENCODED,
    GAP,
    QUOTE_BREAK,
    TABLE_START,
    UNPROTECT,
    expand_entities,
)
from cloze.pipeline.extract.wikipedia.nested_markup import resolve_structure
from cloze.pipeline.extract.wikipedia.wiki_names import DROPPED_SECTIONS, POSSIBLE_SUBJECTS

_ITALICS = re.compile("''")
_MAGIC = re.compile(r"__(?=[^\W\da-z_])[^\Wa-z]+__")
_VARIANT = re.compile(r"-\{(?:([^{}|\n]*+)\|)?([^{}\n]*+)\}-")
_VARIANT_CODE = re.compile(r"(?:zh|gan|sr|sh|kk|ku|uz|tg|iu|crh|shi|ban)(?:-[a-z]+)*+", re.IGNORECASE)
_LETTER = re.compile(r"[^\W_]")
_ODD_SPACES = "\t\x0b\x0c\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_RESIDUE = ("{{", "}}", "[[", "]]", "{|", "|}", "'''", "<ref", "&nbsp;", "&amp;")
_PAUSES, _PAUSES_OR_STOPS = tuple(",;:、，；：،؛"), tuple(",;.、，；。،؛")
_LOOSE_PUNCTUATION = " ,;:/–、，；：،؛"  # removed between a bracket and a gap
# Only next to these characters is there anything to remove around a gap.
_LOOSE_BEFORE, _LOOSE_AFTER = frozenset(_LOOSE_PUNCTUATION + "(（["), frozenset(_LOOSE_PUNCTUATION + ".。!?)）]")


@dataclass(frozen=True)
class Rules:
    """The settings of a wiki and a source. Namespaces are in lower case; `templates` maps names to patterns."""

    hidden_namespaces: frozenset[str] = frozenset({"file", "image", "category"})
    linked_namespaces: frozenset[str] = frozenset({"media", "user"})  # a link to a file in them shows its label
    templates: Mapping[str, str] = field(default_factory=dict)
    dropped_sections: frozenset[str] = DROPPED_SECTIONS
    keep_headings: bool = False
    keep_lists: bool = False


def paragraphs(text: str, rules: Rules = Rules(), dropped: Counter[str] | None = None) -> list[str]:
    """The running text of a page, one string per paragraph. `dropped` counts dropped templates by name."""
    if any(char in text for char in CONTROL_CHARACTERS):
        text = text.translate(dict.fromkeys(map(ord, CONTROL_CHARACTERS)))
    dropped = Counter() if dropped is None else dropped
    text = resolve_structure(text, rules.templates, dropped, rules.keep_lists)
    text = resolve_links(text, rules.hidden_namespaces, rules.linked_namespaces)
    return _clean_blocks(_split_blocks(text, rules))


def has_residue(text: str) -> bool:
    """Whether a document's text has left-over markup: what `paragraphs` should have removed."""
    return any(mark in text for mark in _RESIDUE)


def _split_blocks(text: str, rules: Rules) -> list[str]:
    """Lines -> paragraphs of consecutive lines, without headings, lists and table rows."""
    blocks: list[str] = []
    lines: list[str] = []
    indents: list[str] = []
    section = 0  # the index of the section's first block
    hidden = 0  # the level of the heading of a dropped section

    def flush() -> None:
        if lines:
            if not indented_lines.is_pointer_paragraph(block := " ".join(lines)):
                blocks.append(block)
            lines.clear()
        if indents:
            blocks.extend(indented_lines.prose_paragraphs(indents, len(blocks) == section))
            indents.clear()

    for raw in text.split("\n"):
        line = raw.strip(" \t\r\x00")
        if not line:
            if lines or indents:
                flush()
            continue
        first = line[0]
        if "'''" in line:
            line = resolve_quotes(raw).strip(" \t\r\x00") or "''"
        if first == "=" and (heading := _heading(line)):
            flush()
            level, title, rest = heading
            if not hidden or level <= hidden:
                name = title.replace("''", "").strip(" :\x00").lower()
                subject = level > 2 and name in POSSIBLE_SUBJECTS
                hidden = level if name in rules.dropped_sections and not subject else 0
            if rules.keep_headings and not hidden:
                blocks.append(title)
            section = len(blocks)
            if rest and not hidden:
                lines.append(rest)
        elif hidden:
            continue
        elif first in ":;" and not rules.keep_lists:
            if lines:
                flush()
            indents.append(line)
        elif first in "*#:;":
            flush()
            if rules.keep_lists:
                blocks.append(line.lstrip("*#:; "))
        elif (
            first == "|"
            or (first == "-" and line.startswith("----"))
            or (first == "!" and ("!!" in line or "|" in line))
        ):
            flush()
        elif first == TABLE_START:
            flush()
            if "=" not in line:
                lines.append(line[1:])
        else:
            if indents:
                flush()
            lines.append(line if raw[0] != GAP else GAP + line)
    flush()
    return blocks


def _heading(line: str) -> tuple[int, str, str] | None:
    """A heading's level and title, and the text after it on its line; None if the line is not a heading."""
    opened = line.lstrip("=")
    title = opened.rstrip("=")
    opening, closing = len(line) - len(opened), len(opened) - len(title)
    if title and closing:
        return min(opening, closing), title.strip(), ""
    title, closed, rest = opened.partition("=" * opening)
    if title and closed and opening > 1 and "=" not in title and rest[0] != "=":
        return opening, title.strip(), rest.strip()
    return None


def _clean_blocks(blocks: list[str]) -> list[str]:
    """Resolve italics, magic words, entities, white space and gaps; drop blocks without a letter or digit."""
    text = _ITALICS.sub("", "\n".join(blocks))  # faster than str.replace
    if QUOTE_BREAK in text:
        text = text.replace(QUOTE_BREAK, "")
    if "_" in text:
        text = _MAGIC.sub(GAP, text)
    if "{" in text:
        text = _VARIANT.sub(_choose_variant, text)
    if "&" in text:
        text = expand_entities(text)
    for space in _ODD_SPACES:
        if space in text:
            text = text.replace(space, " ")
    blocks = [" ".join(block.split()) if "  " in block else block.strip() for block in text.split("\n")]
    blocks = [_close_gaps(block) if GAP in block else block for block in blocks]
    if any(char in text for char in ENCODED):
        blocks = [block.translate(UNPROTECT) for block in blocks]
    return [block for block in blocks if _LETTER.search(block)]


def _close_gaps(block: str) -> str:
    """Remove loose punctuation around each gap, as in "(; )", "( , born" and "word , next"."""
    left, *rest = block.split(GAP)
    out: list[str] = []
    spaced = False
    for right in rest:
        after = right.lstrip(" ")
        spaced = spaced or len(after) < len(right)
        if not after:
            continue
        before = left.rstrip(" ")
        spaced = spaced or len(before) < len(left)
        if before and before[-1] not in _LOOSE_BEFORE and after[0] not in _LOOSE_AFTER:
            out.append(before + " " if spaced else before)
            left, spaced = after, False
            continue
        tail, head = before.rstrip(_LOOSE_PUNCTUATION), after.lstrip(_LOOSE_PUNCTUATION)
        if tail.endswith(("(", "（", "[")):
            if head.startswith((")", "）", "]")):
                left = tail[:-1]
                before, after, spaced = left.rstrip(" "), head[1:].lstrip(" "), len(head) > 1
            else:
                before, after, spaced = tail, head, False
        elif head.startswith((")", "）", "]")):
            before, after, spaced = tail, head, False
        if before.endswith(_PAUSES) and after.startswith(_PAUSES_OR_STOPS):
            before = before[:-1]
        if after.startswith((",", ".", ")")) or (after.startswith((";", ":", "!", "?")) and not right.startswith(" ")):
            spaced = False
        if not after:
            left = before
            continue
        out.append(before + " " if spaced and before else before)
        left, spaced = after, False
    return ("".join(out) + left).strip()


def _choose_variant(match: re.Match[str]) -> str:
    """Of a language with several scripts: -{zh-hans:a; zh-hant:b}- -> a."""
    if match[1] and match[1].strip() in ("H", "T", "-"):  # rules, which are not displayed
        return ""
    first = match[2].partition(";")[0]
    code, colon, text = first.partition(":")
    return text.strip() if colon and _VARIANT_CODE.fullmatch(code.strip()) else match[2]
