"""Texts -> an index of their 13-grams of words; documents -> the first 13-gram that each text shares with them.

Words are those of pipeline/text/words.py, case folded. 13 is the length in GPT-3's analysis of contamination (Brown et
al. 2020, arXiv:2005.14165, appendix C). A shared hash of 64 bits is a candidate only: the characters are compared, so
that a collision is never a match.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints, offsets_of
from cloze.pipeline.text.words import case_folded, code_points, word_bounds

NGRAM = 13  # words

_BATCH = 1 << 17  # characters of documents that are hashed at once: the arrays fit into a processor's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_WORD_START = 1 << 21  # is added to the first character of a word; more than any code point
_FILTER_BITS = 26  # at most 64 MiB


class Words(NamedTuple):
    """The words of texts: their case-folded characters, without what separates the words, one after another."""

    codes: NDArray[Any]  # [characters]: code points
    starts: Ints  # [words + 1]: each word's first character; the last is the number of characters
    texts: NDArray[np.int32]  # [words]: the number of the text that the word is in

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        folded = list(map(case_folded, texts))
        codes = code_points("\n".join(folded))
        inside, begins = word_bounds(codes)
        text_starts = offsets_of([len(text) + 1 for text in folded])  # with the line feed
        counts = np.diff(np.searchsorted(np.flatnonzero(begins), text_starts))
        characters = codes[inside]
        starts = np.append(np.flatnonzero(begins[inside]), len(characters))
        return cls(characters, starts, np.repeat(np.arange(len(texts), dtype=np.int32), counts))

    def ngram_hashes(self) -> NDArray[np.uint64]:
        """A hash of each run of 13 words [words - 12], also of those that continue into the next text.

        It is a polynomial of the characters modulo 2**64: the difference of two sums over all characters before a
        place, divided by the power of the base at which the run begins.
        """
        values = self.codes.astype(np.uint64)
        values[self.starts[:-1]] += np.uint64(_WORD_START)
        values *= _powers(_BASE, len(values))[: len(values)]
        sums = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values, out=sums[1:])
        first, end = self.starts[:-NGRAM], self.starts[NGRAM:]
        inverse_powers = _powers(pow(_BASE, -1, 1 << 64), len(values))
        return (sums[end] - sums[first]) * inverse_powers[first]

    def is_in_one_text(self, ngrams: Ints) -> NDArray[np.bool_]:
        """Whether the 13 words from each of these words on are in one text."""
        return self.texts[ngrams] == self.texts[ngrams + NGRAM - 1]

    def ngram(self, word: int) -> str:
        """The 13 words from this one on, with spaces between them."""
        bounds = self.starts[word : word + NGRAM + 1].tolist()
        characters = "".join(map(chr, self.codes[bounds[0] : bounds[-1]].tolist()))
        return " ".join(characters[a - bounds[0] : b - bounds[0]] for a, b in itertools.pairwise(bounds))

    def is_same_ngram(self, word: int, other: "Words", other_word: int) -> bool:
        """Whether the 13 words from `word` on are those from `other_word` on."""
        starts, other_starts = self.starts[word:][: NGRAM + 1], other.starts[other_word:][: NGRAM + 1]
        return np.array_equal(starts - starts[0], other_starts - other_starts[0]) and np.array_equal(
            self.codes[starts[0] : starts[-1]], other.codes[other_starts[0] : other_starts[-1]]
        )


@lru_cache(maxsize=8)
def _powers_of(base: int, length: int) -> NDArray[np.uint64]:
    powers = np.full(length, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _powers(base: int, length: int) -> NDArray[np.uint64]:
    """The powers of `base` modulo 2**64 from 0 on, at least `length` of them."""
    return _powers_of(base, max(_BATCH, 1 << length.bit_length()))


class Match(NamedTuple):
    """The first 13 words that a text shares with a document, and the document's number."""

    document: int
    ngram: str


class NgramIndex:
    """The 13-grams of texts, sorted by hash. Its size depends on the texts alone, and on no document."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = Words.of(texts)
        hashes = self._words.ngram_hashes()
        ngrams = np.flatnonzero(self._words.is_in_one_text(np.arange(len(hashes))))
        order = np.argsort(hashes[ngrams], kind="stable")
        self._ngrams, self._hashes = ngrams[order], hashes[ngrams][order]
        counts = np.bincount(self._words.texts[ngrams], minlength=len(texts))
        self.too_short: list[bool] = (counts == 0).tolist()  # by text: it has fewer than 13 words
        # Most 13-grams of documents are ruled out by the first bits of their hashes, eight times as many as there are.
        bits = min(_FILTER_BITS, max(10, (8 * len(ngrams)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[self._hashes >> self._shift] = True

    def first_matches(self, documents: Iterable[str]) -> dict[int, Match]:
        """The number of each text that shares a 13-gram with a document -> the first such 13-gram of the documents.

        Memory depends on the index and on the longest document.
        """
        matches = dict[int, Match]()
        found = np.zeros(len(self._hashes), np.bool_)  # whether all texts with a hash have a match
        for first_document, batch in _batches(documents):
            words = Words.of(batch)
            for word, place in self._candidates(words, found):
                if not found[place]:
                    found[place] = self._match(words, word, place, first_document, matches)
        return matches

    def _candidates(self, words: Words, found: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """The first words of 13-grams whose hash is in the index, and the first place of that hash there."""
        hashes = words.ngram_hashes()
        numbers = np.flatnonzero(self._filter[hashes >> self._shift])
        places = np.searchsorted(self._hashes, hashes[numbers])
        in_index = places < len(self._hashes)
        numbers, places = numbers[in_index], places[in_index]
        is_match = (self._hashes[places] == hashes[numbers]) & ~found[places] & words.is_in_one_text(numbers)
        return list(zip(numbers[is_match].tolist(), places[is_match].tolist(), strict=True))

    def _match(self, words: Words, word: int, place: int, first_document: int, matches: dict[int, Match]) -> bool:
        """Add the matches of a document's 13-gram with those in the index from `place` on that have its hash.

        Returns whether all texts of these have a match now, so that the hash needs no other search.
        """
        all_matched = True
        end = np.searchsorted(self._hashes, self._hashes[place], side="right")
        for ngram in self._ngrams[place:end].tolist():
            text = int(self._words.texts[ngram])
            if text in matches:
                continue
            if words.is_same_ngram(word, self._words, ngram):
                matches[text] = Match(first_document + int(words.texts[word]), words.ngram(word))
            else:
                all_matched = False
        return all_matched


def _batches(documents: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Batches of documents, each with the number of its first document."""
    batch, size, first = list[str](), 0, 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH:
            yield first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield first, batch
