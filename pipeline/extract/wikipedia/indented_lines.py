"""Lines that begin with a colon or a semicolon -> the paragraphs among them.

Editors indent running text with a colon, and lists, verse, formulas and talk as well; a semicolon sets off a term,
whose definition stands behind a colon or on the next lines. What is a sentence or more is prose: it has four words and
ends as a sentence, or has twelve and holds the end of one (four will do where that is "。"). A term goes, as a heading
does. U+0000 stands where something was dropped. The limits were set by eye on dumps in five languages: 11 % of jawiki's
text is indented, and 1 % of enwiki's.
"""

import re
from collections.abc import Sequence

from cloze.pipeline.extract.wikipedia.wiki_names import POINTERS_BEGIN, POINTERS_END
from cloze.pipeline.text.sentences import split_sentences

_STOPS = tuple(".!?…؟۔։።‼⁇⁈⁉。！？｡．।॥။។།៕")
_CLOSERS = " \t\xa0\u202f\u3000\x00\x01\"'”’“‘»›«‹)]}」』）》〉】〕"
_BULLETS = tuple("*#•·●■◆▪‣◊")
_LOOSE = " \x00,;:.、，；：。،؛"  # what a formula leaves in front of the text behind it
# Tokens that are words or single letters: no number, no formula.
_WORD = re.compile(r"(?<!\S)[\"'«“„‘’”¿¡(\[]*+([^\W\d_][^\s\d=→⇌<>+*/\\^(){}\[\]|]*+)[)\].,;:\"]*+(?!\S)")
_UNSPACED = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]++")
_STOPLESS = re.compile(r"[\u0e00-\u0eff]")  # Thai and Lao end a sentence with a blank, if with anything
_SIGNED = re.compile(r"~~~|\d[:.h]\d\d[^\n]{0,60}\([A-Z]{2,5}\)$")  # ... 12:30, 5 May 2010 (UTC)
_COLON = re.compile(r"(?<!\d):(?!//)|:(?![\d/])")

_LINE, _SENTENCE = 3, 4  # words, the fewest of a line of verse and of a sentence
_PASSAGE = 12  # words, more than a line of verse has
_BEGINNING = 160  # characters, which are weighed
_LONGEST_POINTER = 200  # characters


def prose(lines: Sequence[str], opening: bool) -> list[str]:
    """The paragraphs among lines that follow one another; `opening`: no prose stands before them in their section."""
    found: list[str] = []
    run: list[str] = []
    for line in lines:
        body = line.lstrip("*#:;")
        marks = line[: len(line) - len(body)]
        item = "*" in marks or "#" in marks
        if item or marks[-1] == ";":
            found += _of_run(run, opening and not found)
            run = []
        if not item:
            run.append((_definition(body) if marks[-1] == ";" else body).lstrip(_LOOSE))
    return found + _of_run(run, opening and not found)


def _of_run(run: list[str], opening: bool) -> list[str]:
    """Of the lines of one list; all go if one is signed, and a short sentence goes that stands in broken-off lines."""
    weights = [_weight(line) for line in run]
    whole = [_whole(line, weight) for line, weight in zip(run, weights, strict=True)]
    if not any(whole) or any(_SIGNED.search(line[-100:].rstrip()) for line in run):
        return []
    broken = [
        not whole[i] and weight >= _LINE and not run[i].startswith(("-", "–", "—"))  # a dash: whose words they are
        for i, weight in enumerate(weights)
    ]
    some = sum(broken) > 1
    found: list[str] = []
    for i, line in enumerate(run):
        verse = some and weights[i] < _PASSAGE and all(broken[max(0, i - 1) : i] + broken[i + 1 : i + 2])
        if whole[i] and not verse and not (points(line) or (opening and _italic(line))):
            found.append(line)
    return found


def _definition(text: str) -> str:
    """What stands behind a term; the term itself where nothing does."""
    colon = _COLON.search(text)
    return text[colon.end() :] if colon else text


def _weight(text: str) -> int:
    """How much running text a line's beginning holds: in words, of which a formula has few (words.py counts all).

    Two single letters, of which formulas consist, weigh as much as a word, but no more than there are longer words; so
    do two characters of a script that leaves no blanks between words.
    """
    start = text[:_BEGINNING].replace("\x00", "")
    tokens = _WORD.findall(start)
    single = sum(1 for token in tokens if len(token) == 1 or not token[1:].strip(".,;:)'"))
    longer = len(tokens) - single
    return longer + min(single // 2, longer) + sum(map(len, _UNSPACED.findall(start))) // 2


def _whole(text: str, weight: int) -> bool:
    """Whether a line is a sentence or more; behind "。", which abbreviates nothing, may stand a note or who said it."""
    if weight < _SENTENCE or text.startswith(_BULLETS) or text.count(" • ") > 1:
        return False
    first, stop, _ = text.partition("。")
    if _ends(text) or (stop and _weight(first) >= _SENTENCE):
        return True
    if weight < _PASSAGE:
        return False
    if weight >= 2 * _PASSAGE and _STOPLESS.search(text):
        return True
    return len(split_sentences(text.replace("\x00", ""))) > 1


def _ends(text: str) -> bool:
    """Whether a sentence ends at the end of the text, quotes, brackets and what was dropped apart."""
    tail = text[-200:].rstrip(_CLOSERS)
    while tail.endswith(";") and (start := tail.rfind("&", len(tail) - 9)) >= 0:  # &nbsp; &rdquo;
        tail = tail[:start].rstrip(_CLOSERS)
    return tail.endswith(_STOPS)


def _italic(line: str) -> bool:
    text = line.strip(" .。\x00")
    return len(text) <= _LONGEST_POINTER and text.startswith("''") and text.endswith("''")


def is_pointer(paragraph: str) -> bool:
    """Whether a paragraph that is not indented only leads to another article: not if it is a sentence without a colon,
    which is running text though all that it says is where to read on."""
    return points(paragraph) and (":" in paragraph or "：" in paragraph or not _ends(paragraph))


def points(line: str) -> bool:
    """Whether a line only leads to another article."""
    if len(line) > _LONGEST_POINTER:
        return False
    text = line.lower().strip(" .。\x00'")
    begins = POINTERS_BEGIN.get(text[:2])
    found = (begins and text.startswith(begins)) or text.endswith(POINTERS_END)
    found = found or (text.startswith("for ") and ", see " in text)
    return bool(found) and len(split_sentences(line)) == 1
