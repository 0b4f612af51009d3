"""Texts with the same word -> its vector in each: their cosines, also by layer, and their differences in a plane."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cloze.infra.inspection.model import InspectedModel, InspectedText
from cloze.infra.inspection.nearest import unit
from cloze.infra.inspection.word_charts import cosine_chart, plane_chart
from cloze.pipeline.core.errors import UserError

_CONTEXTS = 12  # shown
_READ = 2 * _CONTEXTS  # occurrences, as some have other pieces
_CONTEXT_CHARS = 60  # shown before and after the word
_WORD = re.compile(r"[^\W\d_]{3,}(?:['’-][^\W\d_]+)*")
_ENGLISH_FUNCTION_WORDS = (
    "the and for are was were but not you your his her its our their they them she him has have had this that these "
    "those with from into onto over under than then there here when where which who whom whose what how why all any "
    "each some such only very can could will would shall should may might must been being does did done about after "
    "before between because while during both nor yet also too more most other one two out off per via"
)
_FUNCTION_WORDS = frozenset(_ENGLISH_FUNCTION_WORDS.split())
_NO_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)  # Thai, Lao, Burmese, CJK


class WordContext(NamedTuple):
    """An occurrence of the word. `source` is A, B or "sentence", `vectors` [layers + 1, hidden]."""

    source: str
    before: str
    word: str
    after: str
    pieces: tuple[int, ...]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class WordSection:
    """One word in several contexts. `cosines`: for each pair, its text and how dark it is drawn, in percent."""

    word: str
    paragraphs: list[str]
    contexts: Sequence[WordContext] = ()
    cosines: list[list[tuple[str, int]]] = field(default_factory=list)
    charts: list[Markup] = field(default_factory=list)


def word_section(
    model: InspectedModel, texts: Sequence[str], sentences: Sequence[str], word: str | None
) -> WordSection:
    """The word in its contexts: by default the most frequent content word that both texts have.

    Raises UserError when `word` is not in at least two contexts with the same pieces.
    """
    chosen = word or common_word(texts)
    if chosen is None:
        how = "Name a word with --word WORD: one that is at least twice in the texts and --sentences FILE together."
        return WordSection("", [f"{'The two texts have no content word in common. ' * (len(texts) > 1)}{how}"])
    labelled = [*zip("AB" if len(texts) > 1 else ["text"], texts, strict=False)]
    labelled += [("sentence", sentence) for sentence in sentences if sentence not in texts]
    found, total = word_contexts(model, labelled, chosen)
    if len(found) < 2:
        if word is None:
            return WordSection(
                "", [f"The word {chosen!r} has other pieces in each text: name another with --word WORD."]
            )
        raise UserError(
            f"--word {word}: occurs in {len(found)} of the texts and sentences with the same pieces; name a word that "
            "is in at least two, or give more with --sentences"
        )
    vectors = np.stack([context.vectors for context in found])  # [contexts, layers + 1, hidden]
    directions = unit(vectors.swapaxes(0, 1))  # [layers + 1, contexts, hidden]
    cosines = directions @ directions.swapaxes(1, 2)  # [layers + 1, contexts, contexts]
    pairs = cosines[:, ~np.eye(len(found), dtype=bool)]  # [layers + 1, pairs]
    pieces = " ".join(str(model.tokenizer.id_to_token(piece)) for piece in found[0].pieces)
    paragraphs = [
        f"A static embedding, such as word2vec or the input embedding of this model ({pieces}), has one vector for the "
        "word, whatever stands around it: the cosine of each pair is 1.00 by construction. This model's vector in the "
        f"last layer, the mean of the word's pieces, depends on the context: the cosines are {pairs[-1].min():.2f} to "
        f"{pairs[-1].max():.2f}, on average {pairs[-1].mean():.2f}. Each text is read by itself.",
    ]
    if total > len(found):
        read = f", of which the first {_READ} were read" if total > _READ else ""
        paragraphs.append(
            f"The word occurs {total:,} times{read}. Shown are the first {len(found)} contexts with the same pieces, "
            "in texts that fit the model."
        )
    low = cosines[-1].min()
    shades = np.rint(100 * (cosines[-1] - low) / max(1 - low, 1e-6)).astype(int)  # the lowest is white
    table = [
        [(f"{value:.2f}", int(shade)) for value, shade in zip(*row, strict=True)]
        for row in zip(cosines[-1], shades, strict=True)
    ]
    sources = [context.source for context in found]
    charts = [plane_chart(vectors[:, -1], sources), cosine_chart(pairs.mean(1).tolist())]
    return WordSection(chosen, paragraphs, found, table, charts)


def common_word(texts: Sequence[str]) -> str | None:
    """The most frequent word that both texts have and that is no function word of English; the longest of several."""
    if len(texts) < 2:
        return None
    first, second = (Counter(word.lower() for word in _WORD.findall(text)) for text in texts)
    common = [word for word in first if word in second and word not in _FUNCTION_WORDS and word != "mask"]
    return max(common, key=lambda word: (first[word] + second[word], len(word)), default=None)


def word_contexts(
    model: InspectedModel, labelled: Sequence[tuple[str, str]], word: str
) -> tuple[list[WordContext], int]:
    """The first contexts with the same pieces of the word, and how often it occurs in all.

    `labelled`: (source, text). The word counts in upper and lower case; of several ways to write it, which have other
    pieces in a cased model, the most frequent one is taken.
    """
    found = [(source, text, span) for source, text in labelled for span in occurrences(text, word)]
    read = dict[str, tuple[InspectedText, NDArray[np.float32]]]()
    contexts = list[WordContext]()
    for source, text, (start, end) in found[:_READ]:
        if text not in read:
            try:
                tokens = model.read([text])
            except UserError:
                continue  # a sentence that is longer than the model
            read[text] = tokens, model.hidden_states(tokens)
        tokens, states = read[text]
        positions = [at for at, (left, right) in enumerate(tokens.spans) if left < end and right > start]
        if positions:
            pieces = tuple(tokens.ids[at] for at in positions)
            before, after = text[max(0, start - _CONTEXT_CHARS) : start], text[end : end + _CONTEXT_CHARS]
            shown = "… " * (start > _CONTEXT_CHARS) + before, after + " …" * (len(text) - end > _CONTEXT_CHARS)
            vectors = states[:, positions].mean(1)  # [layers + 1, hidden]
            contexts.append(WordContext(source, shown[0], text[start:end], shown[1], pieces, vectors))
    most = Counter(context.pieces for context in contexts).most_common(1)
    same = [context for context in contexts if most and context.pieces == most[0][0]]
    return same[:_CONTEXTS], len(found)


def occurrences(text: str, word: str) -> Iterator[tuple[int, int]]:
    """The word's characters in the text: not inside a longer word, where the script has spaces."""
    pattern = re.escape(word)
    if not _NO_SPACES.search(word):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    for match in re.finditer(pattern, text, re.IGNORECASE):
        yield match.span()
