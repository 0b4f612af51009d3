"""Wikitext -> paragraphs of running text.

Four linear passes, none of them recursive: `_resolve_structure` resolves nested markup (templates, tables, tags,
comments) with one tokenizer and one stack; `_resolve_links` resolves links; `_split_blocks` resolves bold and italics
and sorts lines into paragraphs and other lines (indented_lines.py finds the paragraphs among indented lines);
`_clean_blocks` cleans up characters. An opening without its end loses only its own characters, never the text after it.

Where something was dropped, the text contains a gap, U+0000 (which XML cannot contain), until `_clean_blocks` removes
the empty brackets and loose commas around it. Special characters inside <nowiki> are encoded as control characters
until the end.
"""

import html.entities
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cloze.pipeline.extract.wikipedia import indented_lines, templates
from cloze.pipeline.extract.wikipedia.wiki_names import (
    BLOCK_TAGS,
    DROPPED_SECTIONS,
    DROPPED_TAGS,
    INLINE_TAGS,
    LANGUAGE_CODES,
    POSSIBLE_SUBJECTS,
    RAW_TAGS,
)

_GAP = "\x00"  # something was dropped here
_QUOTE_BREAK = "\x01"  # the apostrophes before and after it are separate marks
_TABLE_START = "\x02"  # of a table that may have no end
_SPECIAL = "[]{}|'<>&*#:;=_!"
_ENCODED = "\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17"
_PROTECT = str.maketrans(_SPECIAL, _ENCODED)
_UNPROTECT = str.maketrans(_ENCODED, _SPECIAL)
_LITERAL_APOSTROPHES = "''".translate(_PROTECT)  # two apostrophes that are not markup
_CONTROL_CHARACTERS = "".join(map(chr, (*range(9), *range(14, 32))))
_MAX_DEPTH = 40  # templates inside templates whose text is kept; deeper ones are dropped, to bound the copying

_TOKEN = re.compile(
    r"\{\{(?!\{)[^{}<\n]*+\}\}(?!\})"  # a template without nested templates and tags
    r"|\{\{+|\}\}+"
    r"|<ref(?:\s[^<>]*+(?<!/))?>[^<]*+</ref>"  # most references contain no tag: their content is skipped
    r"|<!--"
    r"|</?[A-Za-z][A-Za-z0-9]*+[^<>]*+>"
    r"|\n[ \t:*#]*\{\|"
    r"|\n[ \t]*\|\}(?!\}(?!\}))"  # "|}" ends a table, "|}}" a template whose last argument is empty
)
_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]*)")
_EXTERNAL = re.compile(
    r"\[(?:(?:https?:|ftps?:|ircs?:)?//|mailto:|news:)[^\s\[\]<>]*+"
    r"([^\[\]\n]*+(?:\[\[[^\[\]\n]*+\]\][^\[\]\n]*+)*+)\]"
)
_QUOTES = re.compile("(''+)")
_ITALICS = re.compile("''")
_APOSTROPHES_IN_WORD = re.compile(r"(?<=\w)''(?=\w)")  # in a link's title: [[Lista d''e paise]]
_MAGIC = re.compile(r"__(?=[^\W\da-z_])[^\Wa-z]+__")
_VARIANT = re.compile(r"-\{(?:([^{}|\n]*+)\|)?([^{}\n]*+)\}-")
_ENTITY = re.compile(r"&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));")
_MEDIA = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|pdf|djvu|og[agv]|webm|midi?|wav|flac)\s*$", re.IGNORECASE)
_LETTER = re.compile(r"[^\W_]")
_ODD_SPACES = "\t\x0b\x0c\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_OPENERS = tuple('"«“„‘([')
_PAUSES, _PAUSES_OR_STOPS = tuple(",;:、，；：،؛"), tuple(",;.、，；。،؛")
_LOOSE_PUNCTUATION = " ,;:/–、，；：،؛"  # removed between a bracket and a gap

# Only next to these characters is there anything to remove around a gap.
_LOOSE_BEFORE, _LOOSE_AFTER = frozenset(_LOOSE_PUNCTUATION + "(（["), frozenset(_LOOSE_PUNCTUATION + ".。!?)）]")


@dataclass(frozen=True)
class Rules:
    """The settings of a wiki and a source. Namespaces are in lower case; `templates` maps names to patterns."""

    hidden_namespaces: frozenset[str] = frozenset({"file", "image", "category"})
    templates: Mapping[str, str] = field(default_factory=dict)
    dropped_sections: frozenset[str] = DROPPED_SECTIONS
    keep_headings: bool = False
    keep_lists: bool = False


def paragraphs(text: str, rules: Rules = Rules(), dropped: Counter[str] | None = None) -> list[str]:
    """The running text of a page, one string per paragraph. `dropped` counts dropped templates by name."""
    if any(char in text for char in _CONTROL_CHARACTERS):
        text = text.translate(dict.fromkeys(map(ord, _CONTROL_CHARACTERS)))
    text = _resolve_links(
        _resolve_structure(text, rules, Counter() if dropped is None else dropped), rules.hidden_namespaces
    )
    return _clean_blocks(_split_blocks(text, rules))


class _StructureResolver:
    """Builds the output with a stack of open elements: (kind, index into the output, length of a run of braces)."""

    def __init__(self, text: str, rules: Rules, dropped: Counter[str]) -> None:
        self.text = text
        self.rules = rules
        self.dropped = dropped
        self.out: list[str] = []
        self.stack: list[tuple[str, int, int]] = []
        self.open: Counter[str] = Counter()
        self.unclosed: set[str] = set()  # tags that have no end from here on, so that each is searched only once

    def push(self, kind: str, run: int = 0) -> None:
        self.stack.append((kind, len(self.out), run))
        self.open[kind] += 1

    def pop(self, kind: str) -> tuple[int, int]:
        """Pop the nearest open `kind`. Unclosed elements inside it are popped as well; their text stays."""
        while True:
            found, index, run = self.stack.pop()
            self.open[found] -= 1
            if found == kind:
                return index, run

    def drop(self, kind: str) -> None:
        """Close `kind` and drop its content. Without an opening, only the closing itself is dropped."""
        if self.open[kind]:
            index, _ = self.pop(kind)
            del self.out[index:]
        self.out.append(_GAP)

    def close_braces(self, run: int) -> None:
        while run >= 2 and self.open["{"]:
            index, opened = self.pop("{")
            width = 3 if run >= 3 and opened >= 3 else 2
            content = self.out[index:]
            del self.out[index:]
            self.out.append(_GAP if width == 3 else self.template("".join(content)))
            run -= width
            if opened - width >= 2:
                self.stack.append(("{", index, opened - width))
                self.open["{"] += 1

    def template(self, content: str) -> str:
        """The text that replaces a template: its prose, or a gap."""
        head, _, body = content.partition("|")
        name, pattern = _lookup_template(head)
        pattern = self.rules.templates.get(name, pattern)
        if pattern is None or self.open["{"] > _MAX_DEPTH:
            self.dropped[name[:60]] += 1
            return _GAP
        return _separate_quotes(
            templates.render(pattern, content.partition(":")[2] if name.endswith(":") else body, _GAP)
        )

    def quote_break(self) -> str:
        """The text that replaces a tag whose content stays: nothing, or a break between apostrophes."""
        return _QUOTE_BREAK if self.out and self.out[-1].endswith("'") else ""

    def tag(self, token: str, end: int) -> int:
        """Handle an HTML or extension tag. Returns the position at which to continue."""
        match = _TAG.match(token)
        assert match
        name = match[1].lower()
        closing, self_closing = token[1] == "/", token[-2] == "/"
        if name in RAW_TAGS:
            if not closing and not self_closing and name not in self.unclosed:
                stop = _find_raw_end(self.text, end, name)
                if stop is None:
                    self.unclosed.add(name)
                elif stop[1] > end:
                    kept = name == "nowiki" or (name in ("syntaxhighlight", "source") and " inline" in token)
                    content = _ENTITY.sub(_expand_entity, self.text[end : stop[0]]) if kept else ""
                    self.out.append(content.translate(_PROTECT) if kept else _GAP)
                    return stop[1]
            self.out.append(_GAP if name != "nowiki" else self.quote_break())
        elif name in DROPPED_TAGS:
            if closing:
                self.drop(name)
            elif not self_closing:
                self.push(name)
                self.out.append("\n" if name != "rt" else "")
        elif name in BLOCK_TAGS:
            self.out.append(BLOCK_TAGS[name])
        else:
            self.out.append(self.quote_break() if name in INLINE_TAGS else token)
        return end

    def comment(self, start: int) -> int:
        """Drop a comment and, as MediaWiki does, its whole line if it contains nothing else."""
        text = self.text
        stop = text.find("-->", start + 4) if "-->" not in self.unclosed else -1
        if stop < 0:
            self.unclosed.add("-->")
            return start + 4
        stop += 3
        if self.out and self.out[-1].endswith("\n") and text.startswith("\n", stop):
            self.out[-1] = self.out[-1][:-1]
        return stop

    def run(self) -> str:
        text, out, search = self.text, self.out, _TOKEN.search
        position = 0
        while match := search(text, position):
            start, end = match.span()
            if start > position:
                out.append(text[position:start])
            token = match[0]
            position = end
            first = token[0]
            if first == "{":
                if token[-1] == "{":
                    self.push("{", len(token))
                else:
                    out.append(self.template(token[2:-2]))
            elif first == "}":
                self.close_braces(len(token))
            elif first == "<":
                if token[1] == "r" and token[-6:] == "</ref>":
                    out.append(_GAP)
                    continue
                position = self.comment(start) if token == "<!--" else self.tag(token, end)
            elif token[-1] == "|":
                self.push("{|")
                out.append("\n" + _TABLE_START)
            else:
                self.drop("{|")
                out.append("\n")
        out.append(text[position:])
        return "".join(out)


@lru_cache(maxsize=1 << 14)
def _lookup_template(head: str) -> tuple[str, str | None]:
    """A template's normalized name, and its built-in pattern if it has one."""
    name = head.replace("_", " ").replace(_GAP, "").strip().lower()
    if (pattern := templates.BUILTIN.get(name)) is not None:
        return name, pattern
    function, colon, _ = name.partition(":")
    if colon:
        return function + colon, templates.BUILTIN.get(function + colon)
    if name.startswith("link-"):
        return name, "{3|1}"
    return name, "{1|text}" if name.startswith("lang-") else None


def _separate_quotes(text: str) -> str:
    """Separate apostrophes at the ends of a template's text or a link's label from those around it."""
    return _QUOTE_BREAK * text.startswith("'") + text + _QUOTE_BREAK * text.endswith("'")


def _resolve_structure(text: str, rules: Rules, dropped: Counter[str]) -> str:
    """Resolve templates, tables, tags and comments; links, quotes and lines stay as they are."""
    return _StructureResolver("\n" + text, rules, dropped).run()  # a table begins at the beginning of a line


@lru_cache(maxsize=64)
def _raw_tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"<(/?){name}(?:[\s/][^<>]*)?(?<!/)>", re.IGNORECASE)


def _find_raw_end(text: str, position: int, name: str) -> tuple[int, int] | None:
    """The span of the closing tag; an empty span at `position` if an opening tag comes first; None if there is none."""
    match = _raw_tag(name).search(text, position)
    if match is None:
        return None
    return match.span() if match[1] else (position, position)


def _resolve_quotes(line: str) -> str:
    """Remove marks of bold from a line; marks of italics become two apostrophes each (MediaWiki's Parser::doQuotes).

    The first of four, and of six, apostrophes in a row is text; more than six are doubled marks without text.
    `_elisions` finds the runs of three that are an apostrophe and a mark of italics.
    """
    segments = _QUOTES.split(line)  # text, apostrophes, text, ...
    runs = list(map(len, segments[1::2]))
    if runs.count(3) == len(runs):  # most lines
        return "".join(segments[::2])
    marks = [3 if run == 4 else min(run, 5) for run in runs]
    literal = [int(run in (4, 6)) for run in runs]
    if 3 in marks and len(set(marks)) > 1:
        for i in _elisions(segments, marks, literal):
            marks[i] = 2
            literal[i] += 1
    for i, count in enumerate(literal):
        segments[2 * i + 1] = ("'" if count == 1 else _LITERAL_APOSTROPHES[:1] * count) + (
            "" if marks[i] == 3 else "''"
        )
    return "".join(segments)


def _elisions(segments: list[str], marks: list[int], literal: list[int]) -> list[int]:
    """The runs of three that are an apostrophe and a mark of italics, as in l'''Iliade'' and ''Eagle'''s.

    Mark i follows segments[2 * i] and `literal[i]` apostrophes. If bold and italics both have an odd number of marks,
    MediaWiki chooses one run of three: the first after a word of one letter, else after a longer word, else after a
    space. Here, runs that cannot be bold in their context come first, unless an odd number would remain.
    """

    def is_elision(i: int) -> bool:
        """Inside a word, and the next mark closes italics or the previous one opens them."""
        left, right = segments[2 * i], segments[2 * i + 2]
        if literal[i] or not left[-1:].isalnum() or not (right[:1].isalnum() or right[:1] in _OPENERS):
            return False
        before, after = marks[i - 1] if i else 0, marks[i + 1] if i + 1 < len(marks) else 0
        if after == 2 and not right[-1:].isspace() and not segments[2 * i + 4][:1].isalnum():
            return before != 3 or " " in left  # otherwise bold letters end inside a word
        opened = before == 2 and not left[:1].isspace() and not segments[2 * i - 2][-1:].isalnum()
        return opened and (after != 3 or " " in right)

    def rank(i: int) -> int:
        before = segments[2 * i][-2:] + "'" * literal[i]
        return 2 if before[-1:] == " " else 0 if before[-2:-1] == " " else 1

    threes = [i for i, mark in enumerate(marks) if mark == 3]
    fives = marks.count(5)
    odd = (len(threes) + fives) % 2 and (marks.count(2) + fives) % 2
    found = [i for i in threes if is_elision(i)]
    if len(found) % 2:
        return found if odd else []
    taken = set(found)
    remaining = [i for i in threes if i not in taken]
    return [*found, min(remaining, key=rank)] if odd and remaining else found


def _resolve_links(text: str, hidden_namespaces: frozenset[str]) -> str:
    """Links -> their labels; files, categories and interlanguage links -> gaps."""
    if "[" not in text:
        return text

    def external(match: re.Match[str]) -> str:
        return match[1].strip() or _GAP

    def label(content: str) -> str | None:
        """The visible text of a link; None if it has none."""
        target, _, label = content.partition("|")
        if ":" in target:
            prefix, _, rest = target.partition(":")
            prefix = prefix.replace("_", " ").strip(" \x00")
            if not prefix:
                target = rest
            elif prefix.lower() in hidden_namespaces or (prefix in LANGUAGE_CODES and rest) or _MEDIA.search(rest):
                return None
        if "'" in label:
            label = _separate_quotes(_resolve_quotes(label).replace("''", ""))
        return label if label.strip() else target

    before, *rest = _EXTERNAL.sub(external, text).split("[[")
    out = [before.replace("]]", "")]
    stack: list[int] = []  # indices of open links that contain links, such as files with captions
    for part in rest:
        segments = part.split("]]")
        content = segments[0]
        if len(segments) == 1:
            stack.append(len(out))
            out.append(content)
            continue
        if "|" in content or ":" in content:
            found = label(content)
            content = _GAP if found is None else found
        elif "'" in content:
            content = _separate_quotes(_APOSTROPHES_IN_WORD.sub(_LITERAL_APOSTROPHES, content))
        if len(segments) == 2:
            out += content, segments[1]
            continue
        out.append(content)
        for segment in segments[1:-1]:
            out.append(segment)
            if stack:
                index = stack.pop()
                found = label(out[index])
                if found is None:
                    del out[index + 1 :]
                out[index] = _GAP if found is None else found
        out.append(segments[-1])
    return "".join(out)


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
            line = _resolve_quotes(raw).strip(" \t\r\x00") or "''"
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
        elif first == _TABLE_START:
            flush()
            if "=" not in line:
                lines.append(line[1:])
        else:
            if indents:
                flush()
            lines.append(line if raw[0] != _GAP else _GAP + line)
    flush()
    return blocks


def _heading(line: str) -> tuple[int, str, str] | None:
    """A heading's level and title, and the text after it on its line; None if the line is no heading."""
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
    if _QUOTE_BREAK in text:
        text = text.replace(_QUOTE_BREAK, "")
    if "_" in text:
        text = _MAGIC.sub(_GAP, text)
    if "{" in text:
        text = _VARIANT.sub(_choose_variant, text)
    if "&" in text:
        text = _ENTITY.sub(_expand_entity, text)
    for space in _ODD_SPACES:
        if space in text:
            text = text.replace(space, " ")
    blocks = [" ".join(block.split()) if "  " in block else block.strip() for block in text.split("\n")]
    blocks = [_close_gaps(block) if _GAP in block else block for block in blocks]
    if any(char in text for char in _ENCODED):
        blocks = [block.translate(_UNPROTECT) for block in blocks]
    return [block for block in blocks if _LETTER.search(block)]


def _close_gaps(block: str) -> str:
    """Remove loose punctuation around each gap, as in "(; )", "( , born" and "word , next"."""
    left, *rest = block.split(_GAP)
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
    """Chinese: -{zh-hans:a; zh-hant:b}- -> a."""
    if match[1] and match[1].strip() in ("H", "T", "-"):  # rules, which are not displayed
        return ""
    first = match[2].partition(";")[0]
    code, colon, text = first.partition(":")
    return text.strip() if colon and code.strip().startswith("zh") else match[2]


def _expand_entity(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        return html.entities.html5.get(name + ";", match[0])
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else " "
