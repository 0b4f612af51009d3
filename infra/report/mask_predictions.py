"""a trained model + held-out sentences with a word hidden -> what the model would fill in."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING

from cloze.infra.report.charts import percent
from cloze.infra.report.views import HeldoutText, TrainedModel
from cloze.pipeline.text.sentences import document_sentences
from cloze.pipeline.text.tokenizer import MASK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Where the documents are English, these are asked too.
_ENGLISH = [
    "The capital of France is [MASK].",
    "She opened the [MASK] and looked out of the window.",
    "He was born in [MASK] and died in London.",
    "The [MASK] was built in the nineteenth century.",
]
_HELDOUT = 6  # sentences
_CHARACTERS = range(40, 150)  # of a sentence


@dataclass(frozen=True)
class Guess:
    piece: str
    probability: float
    right: bool

    @property
    def share(self) -> str:
        return percent(self.probability)


@dataclass(frozen=True)
class Hidden:
    """A sentence around a hidden word; `original` is empty where no text says what stood there."""

    before: str
    after: str
    original: str = ""


@dataclass(frozen=True)
class FillIn:
    hidden: Hidden
    guesses: list[Guess]


@dataclass(frozen=True)
class FillIns:
    """The section; `groups` are titles with what stands under each."""

    sentence: str
    groups: list[tuple[str, list[FillIn]]]


def fill_ins(model: TrainedModel | None) -> FillIns | None:
    """The guesses of the final checkpoint; None before there is one."""
    if model is None:
        return None
    found, english = heldout_sentences(model.heldout(), model.tokenizer)
    ours = [Hidden(*sentence.split(MASK)) for sentence in _ENGLISH] if english else []
    groups = [
        (title, [FillIn(hidden, _guesses(model, hidden)) for hidden in asked])
        for title, asked in (("In held-out documents", found), ("In sentences of ours", ours))
        if asked
    ]
    return FillIns(_sentence([row for _, rows in groups for row in rows]), groups) if groups else None


def _guesses(model: TrainedModel, hidden: Hidden) -> list[Guess]:
    guesses = model.guesses(f"{hidden.before}{MASK}{hidden.after}")
    wanted = model.tokenizer.encode(hidden.original, add_special_tokens=False).tokens
    return [Guess(guess.piece, guess.probability, [guess.piece] == wanted) for guess in guesses]


def _sentence(rows: list[FillIn]) -> str:
    alike = len({row.guesses[0].piece for row in rows}) == 1 < len(rows)
    known = [row.guesses for row in rows if row.hidden.original]
    first = sum(guesses[0].right for guesses in known)
    among = sum(any(guess.right for guess in guesses) for guesses in known)
    return (
        f"A word is hidden, and the model names the five likeliest pieces. Of {len(known)} sentences from held-out "
        f"documents it puts the word of the text first in {first} and among its five in {among}."
        + (" It says the same of all: all it has learnt is which pieces are frequent." if alike else "")
    )


def heldout_sentences(documents: Iterable[HeldoutText], tokenizer: "Tokenizer") -> tuple[list[Hidden], bool]:
    """Some sentences of held-out documents, the sources by turns, each with a word hidden; are they English?"""
    by_source: dict[str, list[Hidden]] = {}
    languages: dict[str, int] = {}
    for document in documents:
        languages[document.language] = languages.get(document.language, 0) + 1
        found = by_source.setdefault(document.source, [])
        if len(found) < _HELDOUT and (hidden := _hidden(document.text, tokenizer)):
            found.append(hidden)
    turns = chain.from_iterable(zip_longest(*by_source.values()))
    english = max(languages, key=lambda language: languages[language], default="") == "en"
    return list(islice(filter(None, turns), _HELDOUT)), english


def _hidden(text: str, tokenizer: "Tokenizer") -> Hidden | None:
    """A sentence of the text with a word hidden that is a piece of its own; the text itself draws both."""
    fitting = [
        sentence for sentence in document_sentences(text) if len(sentence) in _CHARACTERS and MASK not in sentence
    ]
    if not fitting:
        return None
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    sentence = fitting[draw % len(fitting)]
    encoding = tokenizer.encode(sentence, add_special_tokens=False)
    goes_on = [piece.startswith("##") for piece in encoding.tokens] + [False]
    whole = [
        place
        for place, piece in enumerate(encoding.tokens)
        if piece.isalpha() and not goes_on[place + 1] and (len(piece) > 2 or not piece.isascii())
    ]
    if not whole:
        return None
    start, end = encoding.offsets[whole[draw % len(whole)]]
    return Hidden(sentence[:start], sentence[end:], sentence[start:end])
