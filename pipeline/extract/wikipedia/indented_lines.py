"""Lines that begin with a colon or a semicolon -> the paragraphs among them.

Editors indent running text with a colon, but also lists, verse, formulas and discussions. A semicolon marks a term,
whose definition follows after a colon or on the next lines. A line is prose if it has four words and ends like a
sentence, or has twelve words and contains the end of a sentence (four are enough if that is "。"). Terms are dropped,
as headings are. U+0000 marks where markup was dropped. The limits were chosen on dumps in five languages: 11 % of
jawiki's text is indented, and 1 % of enwiki's.
"""

import re
from collections.abc import Sequence

from cloze.pipeline.extract.wikipedia.wiki_names import POINTER_BEGINNINGS, POINTER_ENDINGS
from cloze.pipeline.text.sentences import STOPS, split_sentences

_STOPS = (*STOPS, *"\u17d4\u17d5\u0f0d")  # Khmer and Tibetan have no rules in split_sentences
_CLOSERS = " \t\xa0\u202f\u3000\x00\x01\"'”’“‘»›«‹)]}」』）》〉】〕"
_BULLETS = tuple("*#•·●■◆▪‣◊")
_LEADING_PUNCTUATION = " \x00,;:.、，；：。،؛"  # left over when a formula before it is dropped
# Tokens that are words or single letters: no numbers, no formulas.
_WORD = re.compile(r"(?<!\S)[\"'«“„‘’”¿¡(\[]*+([^\W\d_][^\s\d=→⇌<>+*/\\^(){}\[\]|]*+)[)\].,;:\"]*+(?!\S)")
_UNSPACED = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]++")
_WITHOUT_STOPS = re.compile(r"[\u0e00-\u0eff]")  # Thai and Lao end a sentence with a space, or not at all
_SIGNATURE = re.compile(r"~~~|\d[:.h]\d\d[^\n]{0,60}\([A-Z]{2,5}\)$")  # ... 12:30, 5 May 2010 (UTC)
_COLON = re.compile(r"(?<!\d):(?!//)|:(?![\d/])")

_MIN_VERSE_WORDS, _MIN_SENTENCE_WORDS = 3, 4
_MIN_PASSAGE_WORDS = 12  # more than a line of verse has
_COUNTED_CHARACTERS = 160  # at the beginning of a line, in which words are counted
_MAX_POINTER_CHARACTERS = 200


def prose_paragraphs(lines: Sequence[str], opening: bool) -> list[str]:
    """The paragraphs among consecutive lines. `opening`: no prose precedes them in their section."""
    prose: list[str] = []
    listed: list[str] = []
    for line in lines:
        body = line.lstrip("*#:;")
        marks = line[: len(line) - len(body)]
        item = "*" in marks or "#" in marks
        if item or marks[-1] == ";":
            prose += _prose_of_list(listed, opening and not prose)
            listed = []
        if not item:
            listed.append((_definition(body) if marks[-1] == ";" else body).lstrip(_LEADING_PUNCTUATION))
    return prose + _prose_of_list(listed, opening and not prose)


def _prose_of_list(listed: list[str], opening: bool) -> list[str]:
    """The prose among the lines of one list: none if a line is signed; no short sentence between incomplete lines."""
    word_counts = [_count_words(line) for line in listed]
    complete = [_is_sentence(line, word_count) for line, word_count in zip(listed, word_counts, strict=True)]
    if not any(complete) or any(_SIGNATURE.search(line[-100:].rstrip()) for line in listed):
        return []
    broken = [
        not complete[i]
        and word_count >= _MIN_VERSE_WORDS
        and not listed[i].startswith(("-", "–", "—"))  # a dash names the speaker
        for i, word_count in enumerate(word_counts)
    ]
    several_broken = sum(broken) > 1
    prose: list[str] = []
    for i, line in enumerate(listed):
        verse = (
            several_broken
            and word_counts[i] < _MIN_PASSAGE_WORDS
            and all(broken[max(0, i - 1) : i] + broken[i + 1 : i + 2])
        )
        if complete[i] and not verse and not (is_pointer_line(line) or (opening and _is_italic(line))):
            prose.append(line)
    return prose


def _definition(text: str) -> str:
    """The definition after a term; the term itself if there is none."""
    colon = _COLON.search(text)
    return text[colon.end() :] if colon else text


def _count_words(text: str) -> int:
    """How many words of running text a line's beginning has; formulas have few (words.py counts them all).

    Two single letters, of which formulas consist, count as one word, up to the number of longer words. Two characters
    of a script without spaces between words count as one word.
    """
    start = text[:_COUNTED_CHARACTERS].replace("\x00", "")
    tokens = _WORD.findall(start)
    single = sum(1 for token in tokens if len(token) == 1 or not token[1:].strip(".,;:)'"))
    longer = len(tokens) - single
    return longer + min(single // 2, longer) + sum(map(len, _UNSPACED.findall(start))) // 2


def _is_sentence(text: str, word_count: int) -> bool:
    """Whether a line is a sentence or more. After "。", which is in no abbreviation, a note or a speaker may follow."""
    if word_count < _MIN_SENTENCE_WORDS or text.startswith(_BULLETS) or text.count(" • ") > 1:
        return False
    first, stop, _ = text.partition("。")
    if _ends_sentence(text) or (stop and _count_words(first) >= _MIN_SENTENCE_WORDS):
        return True
    if word_count < _MIN_PASSAGE_WORDS:
        return False
    if word_count >= 2 * _MIN_PASSAGE_WORDS and _WITHOUT_STOPS.search(text):
        return True
    return len(split_sentences(text.replace("\x00", ""))) > 1


def _ends_sentence(text: str) -> bool:
    """Whether the text ends with the end of a sentence, ignoring quotes, brackets and gaps."""
    tail = text[-200:].rstrip(_CLOSERS)
    while tail.endswith(";") and (start := tail.rfind("&", len(tail) - 9)) >= 0:  # &nbsp; &rdquo;
        tail = tail[:start].rstrip(_CLOSERS)
    return tail.endswith(_STOPS)


def _is_italic(line: str) -> bool:
    text = line.strip(" .。\x00")
    return len(text) <= _MAX_POINTER_CHARACTERS and text.startswith("''") and text.endswith("''")


def is_pointer_paragraph(paragraph: str) -> bool:
    """Whether a paragraph that is not indented only points to another article. A sentence without a colon is running
    text, even if it only says where to read more.
    """
    return is_pointer_line(paragraph) and (":" in paragraph or "：" in paragraph or not _ends_sentence(paragraph))


def is_pointer_line(line: str) -> bool:
    """Whether a line only points to another article."""
    if len(line) > _MAX_POINTER_CHARACTERS:
        return False
    text = line.lower().strip(" .。\x00'")
    begins = POINTER_BEGINNINGS.get(text[:2])
    pointer = (begins and text.startswith(begins)) or text.endswith(POINTER_ENDINGS)
    pointer = pointer or (text.startswith("for ") and ", see " in text)
    return bool(pointer) and len(split_sentences(line)) == 1
