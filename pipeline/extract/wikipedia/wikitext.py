"""Wikitext -> paragraphs of running text.

Four linear passes, none of them recursive: `_structure` resolves what nests (templates, tables, tags, comments) with
one tokenizer and one stack; `_links` resolves links; `_blocks` reads marks of bold and italics and sorts lines into
paragraphs and what is no paragraph (indented_lines.py says which lines behind a colon are); `_clean` finishes
characters. An opening without its end loses its own mark only, never the text behind it.

Where something was dropped the text carries the mark U+0000 (which XML cannot hold) up to `_clean`, so that the empty
brackets and loose commas which dropping leaves are mended there and nowhere else. Text inside <nowiki> is carried in
control characters until the end.
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
    RAW_TAGS,
    SUBJECTS_ALSO,
)

_MARK = "\x00"  # here something was dropped
_EDGE = "\x01"  # the apostrophes on its two sides are not one mark
_OPEN_TABLE = "\x02"  # here a table begins that may have no end
_SPECIAL = "[]{}|'<>&*#:;=_!"
_CARRIERS = "\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17"
_PROTECT = str.maketrans(_SPECIAL, _CARRIERS)
_UNPROTECT = str.maketrans(_CARRIERS, _SPECIAL)
_SHOWN = "''".translate(_PROTECT)  # two apostrophes that are no mark
_CONTROL = "".join(map(chr, (*range(9), *range(14, 32))))
_MAX_DEPTH = 40  # templates inside templates whose text is kept; deeper ones are dropped, to bound the copying

_TOKEN = re.compile(
    r"\{\{(?!\{)[^{}<\n]*+\}\}(?!\})"  # a template that holds no other, nor a tag
    r"|\{\{+|\}\}+"
    r"|<ref(?:\s[^<>]*+(?<!/))?>[^<]*+</ref>"  # most of them hold no tag: what they hold is not looked at
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
_LITERAL = re.compile(r"(?<=\w)''(?=\w)")  # in a title that is shown: [[Lista d''e paise]]
_MAGIC = re.compile(r"__(?=[^\W\da-z_])[^\Wa-z]+__")
_VARIANT = re.compile(r"-\{(?:([^{}|\n]*+)\|)?([^{}\n]*+)\}-")
_ENTITY = re.compile(r"&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));")
_MEDIA = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|pdf|djvu|og[agv]|webm|midi?|wav|flac)\s*$", re.IGNORECASE)
_LETTER = re.compile(r"[^\W_]")
_ODD_SPACES = "\t\x0b\x0c\r\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_OPENERS = tuple('"«“„‘([')
_PAUSES, _PAUSES_OR_STOPS = tuple(",;:、，；：،؛"), tuple(",;.、，；。،؛")
_LOOSE = " ,;:/–、，；：،؛"  # goes between a bracket and what was dropped

_LEFT_BEFORE, _LEFT_BEHIND = frozenset(_LOOSE + "(（["), frozenset(_LOOSE + ".。!?)）]")  # where there may be work


@dataclass(frozen=True)
class Rules:
    """What one wiki and one user want: namespaces in lower case, template names -> patterns, section titles."""

    hidden: frozenset[str] = frozenset({"file", "image", "category"})
    templates: Mapping[str, str] = field(default_factory=dict)
    sections: frozenset[str] = DROPPED_SECTIONS
    keep_headings: bool = False
    keep_lists: bool = False


def paragraphs(text: str, rules: Rules = Rules(), dropped: Counter[str] | None = None) -> list[str]:
    """The running text of a page, a string a paragraph. `dropped` counts the names of templates that were dropped."""
    if any(char in text for char in _CONTROL):
        text = text.translate(dict.fromkeys(map(ord, _CONTROL)))
    text = _links(_structure(text, rules, Counter() if dropped is None else dropped), rules.hidden)
    return _clean(_blocks(text, rules))


class _Structure:
    """The output so far and a stack of what is open: (kind, index into the output, length of a run of braces)."""

    def __init__(self, text: str, rules: Rules, dropped: Counter[str]) -> None:
        self.text = text
        self.rules = rules
        self.dropped = dropped
        self.out: list[str] = []
        self.stack: list[tuple[str, int, int]] = []
        self.open: Counter[str] = Counter()
        self.endless: set[str] = set()  # tags that have no end from here on: looked for once

    def push(self, kind: str, run: int = 0) -> None:
        self.stack.append((kind, len(self.out), run))
        self.open[kind] += 1

    def pop(self, kind: str) -> tuple[int, int]:
        """The nearest open `kind`; what was opened inside it and never closed is forgotten, its text stays."""
        while True:
            found, index, run = self.stack.pop()
            self.open[found] -= 1
            if found == kind:
                return index, run

    def drop(self, kind: str) -> None:
        """Close `kind` and drop what it holds; a closing mark without an opening one is dropped alone."""
        if self.open[kind]:
            index, _ = self.pop(kind)
            del self.out[index:]
        self.out.append(_MARK)

    def close_braces(self, run: int) -> None:
        while run >= 2 and self.open["{"]:
            index, opened = self.pop("{")
            width = 3 if run >= 3 and opened >= 3 else 2
            content = self.out[index:]
            del self.out[index:]
            self.out.append(_MARK if width == 3 else self.template("".join(content)))
            run -= width
            if opened - width >= 2:
                self.stack.append(("{", index, opened - width))
                self.open["{"] += 1

    def template(self, content: str) -> str:
        """What stands for a template in the text: its prose, or a mark."""
        head, _, body = content.partition("|")
        name, pattern = _named(head)
        pattern = self.rules.templates.get(name, pattern)
        if pattern is None or self.open["{"] > _MAX_DEPTH:
            self.dropped[name[:60]] += 1
            return _MARK
        return _edged(templates.render(pattern, content.partition(":")[2] if name.endswith(":") else body, _MARK))

    def edge(self) -> str:
        """What stands for a tag that goes alone."""
        return _EDGE if self.out and self.out[-1].endswith("'") else ""

    def tag(self, token: str, end: int) -> int:
        """Handle one HTML or extension tag; returns where to read on."""
        match = _TAG.match(token)
        assert match
        name = match[1].lower()
        closing, alone = token[1] == "/", token[-2] == "/"
        if name in RAW_TAGS:
            if not closing and not alone and name not in self.endless:
                stop = _raw_end(self.text, end, name)
                if stop is None:
                    self.endless.add(name)
                elif stop[1] > end:
                    kept = name == "nowiki" or (name in ("syntaxhighlight", "source") and " inline" in token)
                    content = _ENTITY.sub(_entity, self.text[end : stop[0]]) if kept else ""
                    self.out.append(content.translate(_PROTECT) if kept else _MARK)
                    return stop[1]
            self.out.append(_MARK if name != "nowiki" else self.edge())
        elif name in DROPPED_TAGS:
            if closing:
                self.drop(name)
            elif not alone:
                self.push(name)
                self.out.append("\n" if name != "rt" else "")
        elif name in BLOCK_TAGS:
            self.out.append(BLOCK_TAGS[name])
        else:
            self.out.append(self.edge() if name in INLINE_TAGS else token)
        return end

    def comment(self, start: int) -> int:
        """Drop a comment and, as MediaWiki does, the whole line when nothing else stands on it."""
        text = self.text
        stop = text.find("-->", start + 4) if "-->" not in self.endless else -1
        if stop < 0:
            self.endless.add("-->")
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
                    out.append(_MARK)
                    continue
                position = self.comment(start) if token == "<!--" else self.tag(token, end)
            elif token[-1] == "|":
                self.push("{|")
                out.append("\n" + _OPEN_TABLE)
            else:
                self.drop("{|")
                out.append("\n")
        out.append(text[position:])
        return "".join(out)


@lru_cache(maxsize=1 << 14)
def _named(head: str) -> tuple[str, str | None]:
    """A template's name as it is compared, and the pattern that it has in every wiki."""
    name = head.replace("_", " ").replace(_MARK, "").strip().lower()
    if (pattern := templates.BUILTIN.get(name)) is not None:
        return name, pattern
    function, colon, _ = name.partition(":")
    if colon:
        return function + colon, templates.BUILTIN.get(function + colon)
    if name.startswith("link-"):
        return name, "{3|1}"
    return name, "{1|text}" if name.startswith("lang-") else None


def _edged(text: str) -> str:
    """Keep the apostrophes at the ends of a template's text or a link's label apart from those around it."""
    return _EDGE * text.startswith("'") + text + _EDGE * text.endswith("'")


def _structure(text: str, rules: Rules, dropped: Counter[str]) -> str:
    """Resolve templates, tables, tags and comments; links, quotes and lines are left as they stand."""
    return _Structure("\n" + text, rules, dropped).run()  # a table is looked for at the beginning of a line


@lru_cache(maxsize=64)
def _raw_tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"<(/?){name}(?:[\s/][^<>]*)?(?<!/)>", re.IGNORECASE)


def _raw_end(text: str, position: int, name: str) -> tuple[int, int] | None:
    """The span of the closing tag; an empty one at `position` if another opening comes before; None if none comes."""
    match = _raw_tag(name).search(text, position)
    if match is None:
        return None
    return match.span() if match[1] else (position, position)


def _quotes(line: str) -> str:
    """A line whose bold marks are gone and whose marks of italics are two apostrophes each (Parser::doQuotes).

    Of four apostrophes in a row, and of six, the first is one; more than six are marks put twice, and none of them is.
    Which threes are an apostrophe and italics, `_elisions` says.
    """
    pieces = _QUOTES.split(line)  # text, apostrophes, text, ...
    runs = list(map(len, pieces[1::2]))
    if runs.count(3) == len(runs):  # most lines
        return "".join(pieces[::2])
    marks = [3 if run == 4 else min(run, 5) for run in runs]
    literal = [int(run in (4, 6)) for run in runs]
    if 3 in marks and len(set(marks)) > 1:
        for i in _elisions(pieces, marks, literal):
            marks[i] = 2
            literal[i] += 1
    for i, count in enumerate(literal):
        pieces[2 * i + 1] = ("'" if count == 1 else _SHOWN[:1] * count) + ("" if marks[i] == 3 else "''")
    return "".join(pieces)


def _elisions(pieces: list[str], marks: list[int], literal: list[int]) -> list[int]:
    """Which threes are an apostrophe and italics, as in l'''Iliade'' and ''Eagle'''s.

    Mark i stands behind pieces[2 * i] and `literal[i]` apostrophes. Where bold and italics are both marked an odd
    number of times, MediaWiki takes one three: the first behind a word of one letter, else behind a longer word, else
    behind a blank. Here those come first that cannot be bold by what stands around them, unless that leaves one odd.
    """

    def surely(i: int) -> bool:
        """Inside a word, and the mark behind it closes italics or the one before it opens them."""
        left, right = pieces[2 * i], pieces[2 * i + 2]
        if literal[i] or not left[-1:].isalnum() or not (right[:1].isalnum() or right[:1] in _OPENERS):
            return False
        before, behind = marks[i - 1] if i else 0, marks[i + 1] if i + 1 < len(marks) else 0
        if behind == 2 and not right[-1:].isspace() and not pieces[2 * i + 4][:1].isalnum():
            return before != 3 or " " in left  # else the end of bold letters inside a word
        opened = before == 2 and not left[:1].isspace() and not pieces[2 * i - 2][-1:].isalnum()
        return opened and (behind != 3 or " " in right)

    def rank(i: int) -> int:
        before = pieces[2 * i][-2:] + "'" * literal[i]
        return 2 if before[-1:] == " " else 0 if before[-2:-1] == " " else 1

    threes = [i for i, mark in enumerate(marks) if mark == 3]
    fives = marks.count(5)
    odd = (len(threes) + fives) % 2 and (marks.count(2) + fives) % 2
    found = [i for i in threes if surely(i)]
    if len(found) % 2:
        return found if odd else []
    taken = set(found)
    others = [i for i in threes if i not in taken]
    return [*found, min(others, key=rank)] if odd and others else found


def _links(text: str, hidden: frozenset[str]) -> str:
    """Links -> their labels; files, categories and links to other languages -> marks."""
    if "[" not in text:
        return text

    def external(match: re.Match[str]) -> str:
        return match[1].strip() or _MARK

    def label(content: str) -> str | None:
        """None for what does not show."""
        target, _, label = content.partition("|")
        if ":" in target:
            prefix, _, rest = target.partition(":")
            prefix = prefix.replace("_", " ").strip(" \x00")
            if not prefix:
                target = rest
            elif prefix.lower() in hidden or (prefix in LANGUAGE_CODES and rest) or _MEDIA.search(rest):
                return None
        if "'" in label:
            label = _edged(_quotes(label).replace("''", ""))
        return label if label.strip() else target

    before, *rest = _EXTERNAL.sub(external, text).split("[[")
    out = [before.replace("]]", "")]
    stack: list[int] = []  # where links began that hold others, such as files with captions
    for part in rest:
        pieces = part.split("]]")
        content = pieces[0]
        if len(pieces) == 1:
            stack.append(len(out))
            out.append(content)
            continue
        if "|" in content or ":" in content:
            found = label(content)
            content = _MARK if found is None else found
        elif "'" in content:
            content = _edged(_LITERAL.sub(_SHOWN, content))
        if len(pieces) == 2:
            out += content, pieces[1]
            continue
        out.append(content)
        for piece in pieces[1:-1]:
            out.append(piece)
            if stack:
                index = stack.pop()
                found = label(out[index])
                if found is None:
                    del out[index + 1 :]
                out[index] = _MARK if found is None else found
        out.append(pieces[-1])
    return "".join(out)


def _blocks(text: str, rules: Rules) -> list[str]:
    """Lines -> paragraphs: lines that follow one another are one; headings, lists and rows of tables go."""
    blocks: list[str] = []
    lines: list[str] = []
    indents: list[str] = []
    section = 0  # the block that the section begins with
    hidden = 0  # the level of the heading that hides what follows

    def flush() -> None:
        if lines:
            if not indented_lines.is_pointer(block := " ".join(lines)):
                blocks.append(block)
            lines.clear()
        if indents:
            blocks.extend(indented_lines.prose(indents, len(blocks) == section))
            indents.clear()

    for raw in text.split("\n"):
        line = raw.strip(" \t\r\x00")
        if not line:
            if lines or indents:
                flush()
            continue
        first = line[0]
        if "'''" in line:
            line = _quotes(raw).strip(" \t\r\x00") or "''"
        if first == "=" and (heading := _heading(line)):
            flush()
            level, title, rest = heading
            if not hidden or level <= hidden:
                name = title.replace("''", "").strip(" :\x00").lower()
                subject = level > 2 and name in SUBJECTS_ALSO
                hidden = level if name in rules.sections and not subject else 0
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
        elif first == _OPEN_TABLE:
            flush()
            if "=" not in line:
                lines.append(line[1:])
        else:
            if indents:
                flush()
            lines.append(line if raw[0] != _MARK else _MARK + line)
    flush()
    return blocks


def _heading(line: str) -> tuple[int, str, str] | None:
    """A heading's level and title, and the text that begins on its line; None for a line that is none."""
    opened = line.lstrip("=")
    title = opened.rstrip("=")
    opening, closing = len(line) - len(opened), len(opened) - len(title)
    if title and closing:
        return min(opening, closing), title.strip(), ""
    title, closed, rest = opened.partition("=" * opening)
    if title and closed and opening > 1 and "=" not in title and rest[0] != "=":
        return opening, title.strip(), rest.strip()
    return None


def _clean(blocks: list[str]) -> list[str]:
    """Italics, magic words, entities, white space, and what dropping left; blocks without a letter or digit go."""
    text = _ITALICS.sub("", "\n".join(blocks))  # faster than str.replace
    if _EDGE in text:
        text = text.replace(_EDGE, "")
    if "_" in text:
        text = _MAGIC.sub(_MARK, text)
    if "{" in text:
        text = _VARIANT.sub(_variant, text)
    if "&" in text:
        text = _ENTITY.sub(_entity, text)
    for space in _ODD_SPACES:
        if space in text:
            text = text.replace(space, " ")
    blocks = [" ".join(block.split()) if "  " in block else block.strip() for block in text.split("\n")]
    blocks = [_mend(block) if _MARK in block else block for block in blocks]
    if any(char in text for char in _CARRIERS):
        blocks = [block.translate(_UNPROTECT) for block in blocks]
    return [block for block in blocks if _LETTER.search(block)]


def _mend(block: str) -> str:
    """Join what stands around each mark: "(; )" and "( , born" and "word , next" lose what dropping left loose."""
    left, *rest = block.split(_MARK)
    out: list[str] = []
    spaced = False
    for right in rest:
        after = right.lstrip(" ")
        spaced = spaced or len(after) < len(right)
        if not after:
            continue
        before = left.rstrip(" ")
        spaced = spaced or len(before) < len(left)
        if before and before[-1] not in _LEFT_BEFORE and after[0] not in _LEFT_BEHIND:
            out.append(before + " " if spaced else before)
            left, spaced = after, False
            continue
        tail, head = before.rstrip(_LOOSE), after.lstrip(_LOOSE)
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


def _variant(match: re.Match[str]) -> str:
    """Chinese: -{zh-hans:a; zh-hant:b}- -> a."""
    if match[1] and match[1].strip() in ("H", "T", "-"):  # rules, which do not show
        return ""
    first = match[2].partition(";")[0]
    code, colon, text = first.partition(":")
    return text.strip() if colon and code.strip().startswith("zh") else match[2]


def _entity(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        return html.entities.html5.get(name + ";", match[0])
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if 0x20 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF else " "
