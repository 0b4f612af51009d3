"""Texts and sentences to compare them with -> the nearest sentences by the cosine of their vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloze.infra.inspection.model import InspectedModel

_SHOWN = 8  # sentences for each text
_USUAL = 40  # sentences of which one says what cosine is usual
_HOW = (
    "give some with --sentences FILE, a line each. For a run that Cloze has pretrained, sentences of its held-out "
    "documents are taken."
)


@dataclass(frozen=True)
class Sentences:
    """The sentences to compare with, each once, and where they are from, to be displayed."""

    texts: list[str]
    origin: str


@dataclass(frozen=True)
class NearestGroup:
    """The sentences that are nearest to one text, with their cosines; and what is usual among all sentences."""

    title: str
    sentences: list[tuple[str, str]]
    comparison: str


@dataclass(frozen=True)
class NearestSection:
    summary: str
    groups: list[NearestGroup]


def nearest_section(model: InspectedModel, texts: Sequence[str], sentences: Sentences) -> NearestSection:
    """The sentences with the largest cosine to each text, the text itself left out."""
    if not sentences.texts:
        return NearestSection(f"There are no sentences to compare with: {_HOW}", [])
    vectors = unit(model.vectors([*texts, *sentences.texts]))
    queries, candidates = vectors[: len(texts)], vectors[len(texts) :]
    summary = (
        f"Of {len(sentences.texts):,} sentences, {sentences.origin}, those whose vectors have the largest cosine with "
        f"that of the text. A vector is {model.vector_in_words}. "
    )
    if len(texts) == 2:
        summary += f"The cosine of A and B is {queries[0] @ queries[1]:.2f}."
    groups = [
        _group(f"Nearest to {letter}" if len(texts) > 1 else "Nearest to the text", text, sentences.texts, cosines)
        for letter, text, cosines in zip("AB", texts, queries @ candidates.T, strict=False)
    ]
    return NearestSection(summary, groups)


def _group(title: str, text: str, sentences: list[str], cosines: NDArray[np.float32]) -> NearestGroup:
    order = [index for index in np.argsort(-cosines, kind="stable") if sentences[index].strip() != text.strip()]
    shown = [(sentences[index], f"{cosines[index]:.2f}") for index in order[:_SHOWN]]
    if len(order) < _USUAL:
        return NearestGroup(title, shown, "")
    low, middle, high = np.percentile(cosines[order], [5, 50, 95])
    comparison = (
        f"Of all of them, half have a cosine above {middle:.2f}, one in twenty above {high:.2f}, one in twenty below "
        f"{low:.2f}: compare with these, not with 0."
    )
    return NearestGroup(title, shown, comparison)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, hidden] -> the same directions with length 1; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
