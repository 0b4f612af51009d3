"""Nested markup in wikitext (templates, tables, tags, comments) -> the text that replaces it.

One tokenizer and one stack, without recursion: the time is linear. An opening without its end loses only its own
characters.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from cloze.pipeline.extract.wikipedia import templates
from cloze.pipeline.extract.wikipedia.markers import (
    GAP,
    LINE_MARKS,
    PROTECT,
    QUOTE_BREAK,
    TABLE_START,
    expand_entities,
    separate_quotes,
)
from cloze.pipeline.extract.wikipedia.wiki_names import (
    BLOCK_TAGS,
    DROPPED_TAGS,
    INLINE_TAGS,
    LIST_TAGS,
    PREPROCESSED_TAGS,
    RAW_TAGS,
)

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


def resolve_structure(
    text: str, prose_templates: Mapping[str, str], dropped: Counter[str], keep_lists: bool = False
) -> str:
    """Resolve templates, tables, tags and comments; links, quotes and lines stay as they are.

    `prose_templates` maps names to patterns, in addition to the built-in ones. `dropped` counts the other templates.
    `keep_lists`: a list in HTML becomes lines that begin with "*"; otherwise it is dropped.
    """
    text = "\n" + text  # a table begins at the beginning of a line
    return _StructureResolver(text, prose_templates, dropped, keep_lists).run()


class _StructureResolver:
    """Builds the output with a stack of open elements: (kind, index into the output, length of a run of braces)."""

    def __init__(self, text: str, prose_templates: Mapping[str, str], dropped: Counter[str], keep_lists: bool) -> None:
        self.text = text
        self.prose_templates = prose_templates
        self.dropped = dropped
        self.dropped_tags = DROPPED_TAGS if keep_lists else DROPPED_TAGS | LIST_TAGS
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
        self.out.append(GAP)

    def close_braces(self, run: int) -> None:
        """Close what `run` braces can. A single brace that is left over then is text, unless one is left open, too."""
        left_open = not self.open["{"]
        while run >= 2 and self.open["{"]:
            index, opened = self.pop("{")
            width = 3 if run >= 3 and opened >= 3 else 2
            content = self.out[index:]
            del self.out[index:]
            self.out.append(GAP if width == 3 else self.template("".join(content)))
            run -= width
            left_open = opened - width == 1
            if opened - width >= 2:
                self.stack.append(("{", index, opened - width))
                self.open["{"] += 1
        if run == 1 and not left_open:
            self.out.append("}")

    def template(self, content: str) -> str:
        """The text that replaces a template: its prose, or a gap."""
        head, _, body = content.partition("|")
        name, pattern = _lookup_template(head)
        pattern = self.prose_templates.get(name, pattern)
        if pattern is None or self.open["{"] > _MAX_DEPTH:
            self.dropped[name[:60]] += 1
            return GAP
        return separate_quotes(
            templates.render(pattern, content.partition(":")[2] if name.endswith(":") else body, GAP)
        )

    def break_at(self, position: int) -> None:
        """Replace a tag whose content stays: by a break, if the text before and after it together would be markup."""
        before = self.out[-1][-1:] if self.out else ""
        if before == "'" or (before == "\n" and self.text.startswith(LINE_MARKS, position)):
            self.out.append(QUOTE_BREAK)

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
                    content = expand_entities(self.text[end : stop[0]]) if kept else ""
                    self.out.append(content.translate(PROTECT) if kept else GAP)
                    return stop[1]
            if name == "nowiki":
                self.break_at(end)
            else:
                self.out.append(GAP)
        elif name in self.dropped_tags:
            if closing:
                self.drop(name)
            elif not self_closing:
                self.push(name)
                self.out.append("\n" if name != "rt" else "")
        elif name in BLOCK_TAGS:
            self.out.append(BLOCK_TAGS[name].rstrip("*") if closing else BLOCK_TAGS[name])
        elif name not in INLINE_TAGS:
            self.out.append(token)
        elif name not in PREPROCESSED_TAGS:
            self.break_at(end)
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
                    out.append(GAP)
                    continue
                position = self.comment(start) if token == "<!--" else self.tag(token, end)
            elif token[-1] == "|":
                self.push("{|")
                out.append("\n" + TABLE_START)
            else:
                self.drop("{|")
                out.append("\n")
        out.append(text[position:])
        return "".join(out)


@lru_cache(maxsize=1 << 14)
def _lookup_template(head: str) -> tuple[str, str | None]:
    """A template's normalized name, and its built-in pattern if it has one."""
    name = head.replace("_", " ").replace(GAP, "").strip().lower()
    if (pattern := templates.BUILTIN.get(name)) is not None:
        return name, pattern
    function, colon, _ = name.partition(":")
    if colon:
        return function + colon, templates.BUILTIN.get(function + colon)
    if name.startswith("link-"):
        return name, "{3|1}"
    return name, "{1|text}" if name.startswith("lang-") else None


@lru_cache(maxsize=64)
def _raw_tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"<(/?){name}(?:[\s/][^<>]*)?(?<!/)>", re.IGNORECASE)


def _find_raw_end(text: str, position: int, name: str) -> tuple[int, int] | None:
    """The span of the closing tag; an empty span at `position` if an opening tag comes first; None if there is none."""
    match = _raw_tag(name).search(text, position)
    if match is None:
        return None
    return match.span() if match[1] else (position, position)
