"""Counted words -> how often each piece of one character occurs in them -> the alphabet of a vocabulary."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cloze.pipeline.core.ragged import Ints, Ragged
from cloze.pipeline.vocab.word_counts import WordCounts

CONTINUES = "##"


class CharacterCounts(NamedTuple):
    """How often each character occurs as the first one of a word, and after it."""

    first: dict[str, int]
    continuing: dict[str, int]
    in_longer_words: Set[str]  # in words of several characters

    def pieces(self) -> dict[str, int]:
        """Returns the pieces of one character that occur, with their counts."""
        return self.first | {CONTINUES + character: count for character, count in self.continuing.items()}


def count_characters(words: Iterable[WordCounts]) -> CharacterCounts:
    """Counted words -> how often each character occurs in them."""
    first, continuing = Counter[str](), Counter[str]()
    in_longer_words = set[str]()
    for some in words:
        characters, offsets = some.characters()
        lengths = np.diff(offsets)
        is_first = np.zeros(len(characters), bool)
        is_first[offsets[:-1]] = True
        first.update(_count(characters[is_first], some.counts))
        continuing.update(_count(characters[~is_first], np.repeat(some.counts, lengths - 1)))
        in_longer_words.update(_count(characters[np.repeat(lengths > 1, lengths)], 1))
    return CharacterCounts(first, continuing, in_longer_words)


def _count(characters: Ints, counts: Ints | int) -> dict[str, int]:
    """Code points and a count for each -> the sum for each character."""
    totals = np.zeros(characters.max(initial=0) + 1, np.int64)
    np.add.at(totals, characters, counts)
    return {chr(character): int(totals[character]) for character in np.flatnonzero(totals)}


class CharacterSpelling:
    """Words -> the ids of their pieces of one character, -1 for one that is not in the vocabulary."""

    def __init__(self, pieces: Sequence[str]) -> None:
        ids = {piece: index for index, piece in enumerate(pieces) if len(piece.removeprefix(CONTINUES)) == 1}
        self._end = max((ord(piece[-1]) for piece in ids), default=0) + 1  # after the last known code point
        self._first, self._continuing = np.full((2, self._end + 1), -1, np.int64)
        for piece, index in ids.items():
            (self._first if len(piece) == 1 else self._continuing)[ord(piece[-1])] = index

    def __call__(self, words: WordCounts) -> Ragged:
        characters, offsets = words.characters()
        characters, starts = np.minimum(characters, self._end), offsets[:-1]
        ids = self._continuing[characters]
        ids[starts] = self._first[characters[starts]]
        return Ragged(ids, offsets)


def alphabet(characters: CharacterCounts, coverage: float, minimum: int = 0) -> tuple[list[str], list[str]]:
    """The pieces of one character: those of the alphabet, and those that are left out of it.

    The alphabet's characters are the most frequent ones that make up `coverage` of all characters of the words
    (sentencepiece's character coverage), but no fewer than `minimum`. Their word-initial pieces come first, then their
    continuing ones (##). The pieces left out are ordered by frequency, the word-initial one first. A character that is
    always a whole word (punctuation, an ideograph) has no continuing piece. Of equally frequent characters the first by
    code point is taken.
    """
    counts = Counter(characters.first)
    counts.update(characters.continuing)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    covered = list(accumulate(counts[character] for character in ordered))
    enough = max(minimum, bisect_left(covered, coverage * counts.total()) + 1)
    kept, rare = sorted(ordered[:enough]), ordered[enough:]
    continuing = {character: [CONTINUES + character] for character in characters.in_longer_words}
    left_out = [piece for character in rare for piece in (character, *continuing.get(character, ()))]
    return kept + [piece for character in kept for piece in continuing.get(character, ())], left_out
