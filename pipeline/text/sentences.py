"""A paragraph -> its sentences, by rules: a stop ends a sentence unless its context shows that it does not.

Candidates are stops with the closing quotes and brackets after them. A Latin stop needs white space after it and no
lower-case word next; a full stop also needs a word before it that is neither an abbreviation nor an initial. CJK and
Indic stops need nothing. Every character is read a bounded number of times: the time is linear in the text.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from cloze.pipeline.core.errors import UserError

Splitter = Callable[[str], list[str]]

_WIDE_STOPS = "。！？｡．।॥။"
#: The characters that can end a sentence.
STOPS = ".!?…؟۔։።‼⁇⁈⁉" + _WIDE_STOPS
# A run of stops, closing quotes and brackets, white space, and a lookahead at the next word. Possessive quantifiers: no
# run is scanned twice.
_CANDIDATE = re.compile(r"([" + STOPS + r"]++)([\"'”’»›)\]}」』）》〉】〕]*+)(\s*+)(?=[^\w\s]{0,8}+\s?(\w*\.?))")
_WORD_BREAK = re.compile(r"[^\w.'’&-]+|--+")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_NUMBER = re.compile(r"[0-9]+\w?|[ivxlcdm]+", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words after which a full stop never ends a sentence: a name or an example follows.
_TITLES = _words(
    "mr mrs ms messrs dr drs prof rev revd hon gen col maj capt cpt lt lieut sgt cpl adm cmdr gov sen rep pres supt "
    "st ste mt ft mme mlle mm fr br herr e.g i.e cf viz vs approx esp née lat trans ed eds"
)
#: Words after which a full stop ends no sentence if a number follows.
_COUNTERS = _words("no nos nr vol vols p pp fig figs ch chap chaps sec secs art pt pl par b c d ca fl")
#: Words after which a full stop ends a sentence only if one of _STARTERS follows.
_TAILS = _words(
    "etc al inc ltd co corp bros jr sr esq u.s u.k u.n u.s.a u.s.s.r d.c l.a n.y a.m p.m b.c a.d b.c.e c.e ph.d m.d "
    "jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thurs fri sat sun op cit ibid "
    "dept univ assn ave blvd rd hwy est min max ext gal lb lbs oz in yd sq cm km kg mi mph inst"
)
#: An abbreviation if capitalised, an ordinary word otherwise: "in.", "mar.", "sat.", "art."
_ALSO_WORDS = _words("in min max sat sun mon mar wed st ms fr br ed mm ext est art par fl dec oct ave")
#: Words that are capitalised at the beginning of a sentence far more often than inside one.
_STARTERS = _words(
    "the a an this that these those he she it they we you i his her its their our my your there here in on at by for "
    "from with after before during since when while where as if but and or so yet then thus however although to "
    "what who why how which one some many most all both each no not is are was were do did have has had will would can "
    "could should let now once until upon under also another other such today meanwhile according"
)
_SPECIAL = _TITLES | _COUNTERS | _TAILS


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph, in order, without the white space between them; none if it is empty."""
    text = paragraph.strip()
    sentences, start, previous_end = [], 0, 0
    for match in _CANDIDATE.finditer(text):
        stop, closers, space, after = match.groups()
        end, wide = match.end(), stop[-1] in _WIDE_STOPS
        if end == len(text) or not (space or wide):
            continue  # the end of the text, or a stop inside a word: 3.14, U.S, example.org
        if wide or (
            not after[:1].islower()
            and (
                stop != "."
                or _full_stop_ends(text[previous_end : match.start()], closers, after, previous_end == start)
            )
        ):
            sentences.append(text[start:end].rstrip())
            start = end
        previous_end = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def _full_stop_ends(text: str, closers: str, after: str, whole: bool) -> bool:
    """Returns whether the full stop between `text` and the word `after` ends a sentence.

    `after` is not in lower case and includes its own stop. `text` begins at the previous candidate; `whole`: the
    sentence begins there, too. `closers` follow the stop.
    """
    words = text.rsplit(None, 1)
    before = _WORD_BREAK.split(words[-1])[-1].lstrip("'’-&") if words else ""
    word = before.lower()
    if len(word) > 3 and word.isalpha() and word not in _SPECIAL:
        return True
    if closers or not word:
        return word not in _TITLES
    if whole and before == text and _NUMBER.fullmatch(before):
        return False  # the number of a heading or of a list item: "1. Introduction", "IV. The storm"
    if word in _COUNTERS and _NUMBER.fullmatch(after.rstrip(".")):
        return False
    ordinary = before.islower() and word in _ALSO_WORDS
    if word in _TITLES and not ordinary:
        return False
    initials = before[-1].isupper() and before != "I" and _INITIALS.fullmatch(before)
    if initials or (word in _TAILS and not ordinary):
        return after.lower() in _STARTERS
    return True


def presplit_paragraphs(sentences: Sequence[str]) -> list[str]:
    """Sentences that must not be split again -> one paragraph, marked as such by a line break after each sentence."""
    return ["".join(f"{sentence}\n" for sentence in sentences)]


def document_sentences(text: str, split: Splitter = split_sentences) -> list[str]:
    """Returns the sentences of a document's text: those of its paragraphs, or those of `presplit_paragraphs`."""
    if text.endswith("\n"):
        return text[:-1].split("\n")
    return [sentence for paragraph in text.split("\n\n") for sentence in split(paragraph)]


def load_splitter(code: bytes, file: str) -> Splitter:
    """Returns the `split_sentences(paragraph) -> list[str]` of a user's Python file, checked to lose and add no text.

    Raises UserError if the file does not define it; the returned function raises UserError if it fails.
    """
    names: dict[str, Any] = {"__name__": "splitter", "__file__": file}
    try:
        exec(compile(code, file, "exec"), names)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: cannot be run ({_one_line(error)}); fix it") from error
    if not callable(names.get("split_sentences")):
        raise UserError(f"{file}: defines no split_sentences(paragraph); add it: it returns the paragraph's sentences")

    def checked(paragraph: str) -> list[str]:
        call = f"{file}: split_sentences({paragraph[:40]!r}...)"
        try:
            sentences: Any = names["split_sentences"](paragraph)
        except (Exception, SystemExit) as error:
            raise UserError(f"{call} fails ({_one_line(error)}); fix it") from error
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError(f"{call} does not return a list of strings; make it return one")
        if "".join("".join(sentences).split()) != "".join(paragraph.split()):
            raise UserError(f"{call} loses or adds text; it may drop only white space")
        return sentences

    return checked


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
