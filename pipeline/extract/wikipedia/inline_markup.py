"""Inline markup in wikitext (bold, italics, links) -> the text that is displayed."""

import re

from cloze.pipeline.extract.wikipedia.markers import GAP, LITERAL_APOSTROPHES, separate_line_mark, separate_quotes
from cloze.pipeline.extract.wikipedia.wiki_names import LANGUAGE_CODES

_PROTOCOL = r"(?:(?:https?:|ftps?:|ircs?:)?//|mailto:|news:)"
# An address and its label, which may contain links to articles and words in brackets.
_EXTERNAL = re.compile(
    rf"\[{_PROTOCOL}[^\s\[\]<>]*+"
    rf"([^\[\]\n]*+(?:(?:\[\[[^\[\]\n]*+\]\]|\[(?!{_PROTOCOL})[^\[\]\n]*+\])[^\[\]\n]*+)*+)\]"
)
_QUOTES = re.compile("(''+)")
_APOSTROPHES_IN_WORD = re.compile(r"(?<=\w)''(?=\w)")  # in a link's title: [[Lista d''e paise]]
_MEDIA = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|pdf|djvu|og[agv]|webm|midi?|wav|flac)\s*$", re.IGNORECASE)
_OPENERS = tuple('"«“„‘([')


def resolve_quotes(line: str) -> str:
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
        segments[2 * i + 1] = ("'" if count == 1 else LITERAL_APOSTROPHES[:1] * count) + ("" if marks[i] == 3 else "''")
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


def resolve_links(text: str, hidden_namespaces: frozenset[str], linked_namespaces: frozenset[str]) -> str:
    """Links -> their labels; files, categories and interlanguage links -> gaps.

    A file is hidden in a namespace of any name but those of `linked_namespaces` and of other wikis, if it has a label.
    """
    if "[" not in text:
        return text

    def external(match: re.Match[str]) -> str:
        return separate_line_mark(match[1].strip()) or GAP

    def label(content: str) -> str | None:
        """The visible text of a link; None if it has none."""
        target, _, label = content.partition("|")
        if ":" in target:
            prefix, _, rest = target.partition(":")
            prefix = prefix.replace("_", " ").strip(" \x00")
            if not prefix:
                target = rest
            linked = label and (":" in rest or prefix.lower() in linked_namespaces)
            if prefix and (
                prefix.lower() in hidden_namespaces
                or (prefix in LANGUAGE_CODES and rest)
                or (_MEDIA.search(rest) and not linked)
            ):
                return None
        if "'" in label:
            label = separate_quotes(resolve_quotes(label).replace("''", ""))
        return separate_line_mark(label if label.strip() else target)

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
            content = GAP if found is None else found
        else:
            if "'" in content:
                content = separate_quotes(_APOSTROPHES_IN_WORD.sub(LITERAL_APOSTROPHES, content))
            content = separate_line_mark(content)
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
                out[index] = GAP if found is None else found
        out.append(segments[-1])
    return "".join(out)
