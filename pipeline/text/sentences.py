"""A paragraph -> its sentences, by rules: a stop ends a sentence unless what stands around it says otherwise.

Candidates are stops with the quotes and brackets that close behind them. A Latin one needs white space behind it and no
lower-case word after; a full stop also needs a word before it that is no abbreviation and no initial. CJK and Indic
stops need nothing. Every character is looked at a bounded number of times: the time is linear in the text.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from cloze.pipeline.core.errors import UserError

Splitter = Callable[[str], list[str]]

_WIDE_STOPS = "。！？｡．।॥။"
# A run of stops, what closes behind it, white space, and a look at the next word. Possessive: no run is scanned twice.
_CANDIDATE = re.compile(
    r"([.!?…؟۔։።‼⁇⁈⁉" + _WIDE_STOPS + r"]++)([\"'”’»›)\]}」』）》〉】〕]*+)(\s*+)(?=[^\w\s]{0,8}+\s?(\w*\.?))"
)
_NO_PART_OF_A_WORD = re.compile(r"[^\w.'’&-]+|--+")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_NUMBER = re.compile(r"[0-9]+\w?|[ivxlcdm]+", re.IGNORECASE)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words whose full stop never ends a sentence: a name or an example follows.
_TITLES = _words(
    "mr mrs ms messrs dr drs prof rev revd hon gen col maj capt cpt lt lieut sgt cpl adm cmdr gov sen rep pres supt "
    "st ste mt ft mme mlle mm fr br herr e.g i.e cf viz vs approx esp née lat trans ed eds"
)
#: Words whose full stop ends no sentence when a number follows.
_COUNTERS = _words("no nos nr vol vols p pp fig figs ch chap chaps sec secs art pt pl par b c d ca fl")
#: Words whose full stop ends a sentence only when a word follows that likes to begin one.
_TAILS = _words(
    "etc al inc ltd co corp bros jr sr esq u.s u.k u.n u.s.a u.s.s.r d.c l.a n.y a.m p.m b.c a.d b.c.e c.e ph.d m.d "
    "jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thurs fri sat sun op cit ibid "
    "dept univ assn ave blvd rd hwy est min max ext gal lb lbs oz in yd sq cm km kg mi mph inst"
)
#: In print an abbreviation when capitalised, an ordinary word otherwise: "in.", "mar.", "sat.", "art."
_ALSO_WORDS = _words("in min max sat sun mon mar wed st ms fr br ed mm ext est art par fl dec oct ave")
#: Words that begin a sentence far more often than they stand capitalised inside one.
_STARTERS = _words(
    "the a an this that these those he she it they we you i his her its their our my your there here in on at by for "
    "from with after before during since when while where as if but and or so yet then thus however although to "
    "what who why how which one some many most all both each no not is are was were do did have has had will would can "
    "could should let now once until upon under also another other such today meanwhile according"
)
_SPECIAL = _TITLES | _COUNTERS | _TAILS


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph, in order, without the white space between them; none for an empty paragraph."""
    text = paragraph.strip()
    sentences, start, word_from = [], 0, 0
    for match in _CANDIDATE.finditer(text):
        stop, closers, space, after = match.groups()
        end, wide = match.end(), stop[-1] in _WIDE_STOPS
        if end == len(text) or not (space or wide):
            continue  # nothing follows; or a stop inside a word: 3.14, U.S, example.org
        if wide or (
            not after[:1].islower()
            and (stop != "." or _full_stop_ends(text[word_from : match.start()], closers, after, word_from == start))
        ):
            sentences.append(text[start:end].rstrip())
            start = end
        word_from = end
    if start < len(text):
        sentences.append(text[start:])
    return sentences


def _full_stop_ends(text: str, closers: str, after: str, whole: bool) -> bool:
    """Whether a full stop between `text` and the word `after` (not in lower case; with its full stop) ends a sentence.

    `text` reaches back to the last candidate; `whole`: the sentence begins with it. `closers` stand behind the stop.
    """
    words = text.rsplit(None, 1)
    before = _NO_PART_OF_A_WORD.split(words[-1])[-1].lstrip("'’-&") if words else ""
    word = before.lower()
    if len(word) > 3 and word.isalpha() and word not in _SPECIAL:
        return True
    if closers or not word:
        return word not in _TITLES
    if whole and before == text and _NUMBER.fullmatch(before):
        return False  # the number in front of a heading or of a list's item: "1. Introduction", "IV. The storm"
    if word in _COUNTERS and _NUMBER.fullmatch(after.rstrip(".")):
        return False
    ordinary = before.islower() and word in _ALSO_WORDS
    if word in _TITLES and not ordinary:
        return False
    initials = before[-1].isupper() and before != "I" and _INITIALS.fullmatch(before)
    if initials or (word in _TAILS and not ordinary):
        return after.lower() in _STARTERS
    return True


def as_given(sentences: Sequence[str]) -> list[str]:
    """Sentences that are to stay as they are -> the paragraphs that say so: one, with a line break behind each."""
    return ["".join(f"{sentence}\n" for sentence in sentences)]


def sentences_of(text: str, split: Splitter = split_sentences) -> list[str]:
    """The sentences of a document's text: those of its paragraphs, or as they were given."""
    if text.endswith("\n"):
        return text[:-1].split("\n")
    return [sentence for paragraph in text.split("\n\n") for sentence in split(paragraph)]


def splitter_from(code: bytes, file: str) -> Splitter:
    """The `split_sentences(paragraph) -> list[str]` that a user's Python file defines, held to lose and add nothing.

    Raises UserError, here where the file does not define it, and when it is called where it fails.
    """
    names: dict[str, Any] = {"__name__": "splitter", "__file__": file}
    try:
        exec(compile(code, file, "exec"), names)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: cannot be run ({_said(error)}); mend it") from error
    if not callable(names.get("split_sentences")):
        raise UserError(f"{file}: defines no split_sentences(paragraph); add it: it returns the paragraph's sentences")

    def checked(paragraph: str) -> list[str]:
        about = f"{file}: split_sentences({paragraph[:40]!r}...)"
        try:
            sentences: Any = names["split_sentences"](paragraph)
        except (Exception, SystemExit) as error:
            raise UserError(f"{about} fails ({_said(error)}); mend it") from error
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError(f"{about} gives something else than a list of strings; make it return one")
        if "".join("".join(sentences).split()) != "".join(paragraph.split()):
            raise UserError(f"{about} loses or adds text; it may drop white space alone")
        return sentences

    return checked


def _said(error: BaseException) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
