"""Counted words -> a WordPiece vocabulary: the most frequent pair of pieces is merged into one piece, repeatedly.

The result depends on the counts alone: of equally frequent pairs, the first by text is merged. The cost of a merge
depends on what it changes, as the words of each pair are known. So that memory is bounded with many million words, only
the most frequent pairs are indexed. When all of them are merged, the pairs are counted again.
"""

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.ragged import Ragged
from cloze.pipeline.core.schema import id_dtype
from cloze.pipeline.vocab.alphabet import CONTINUES, CharacterSpelling
from cloze.pipeline.vocab.spelled_words import PairCounts, SpelledWords, left_of, right_of
from cloze.pipeline.vocab.word_counts import WordCounts


def train_pieces(words: Iterable[WordCounts], known: Sequence[str], size: int, min_frequency: int) -> list[str]:
    """Train up to `size` new pieces, in the order of their merges; fewer if no pair occurs `min_frequency` times.

    `known` holds the alphabet and pieces trained before. A word with a character outside the alphabet will be unknown
    as a whole, and is ignored.
    """
    trainer = _Trainer(spell(words, known, size), known, min_frequency)
    trained: list[str] = []
    while len(trained) < size and (pair := trainer.most_frequent()) is not None:
        if piece := trainer.merge(pair):
            trained.append(piece)
    return trained


def spell(words: Iterable[WordCounts], known: Sequence[str], size: int) -> SpelledWords:
    """Words -> the ids of their characters' pieces, with room for `size` more pieces.

    Words of one character and words with a character that is not known are left out.
    """
    dtype = id_dtype(len(known) + size)
    spelling = CharacterSpelling(known)
    all_ids: list[npt.NDArray[np.integer]] = [np.zeros(0, dtype)]
    lengths, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for some in words:
        ids, offsets = spelling(some)
        has_unknown = np.zeros(len(some.counts), bool)
        has_unknown[np.searchsorted(offsets, np.flatnonzero(ids < 0), "right") - 1] = True
        kept = np.flatnonzero(~has_unknown & (np.diff(offsets) > 1))
        words_ids = Ragged(ids.astype(dtype), offsets).take(kept)
        all_ids.append(words_ids.values)
        lengths.append(words_ids.lengths.astype(np.int32))
        counts.append(some.counts[kept])
    return SpelledWords(_concatenate(all_ids), np.concatenate(lengths), np.concatenate(counts))


def _concatenate(parts: list[npt.NDArray[np.integer]]) -> npt.NDArray[np.integer]:
    """Concatenate the arrays, and remove each one from the list once it is copied, so that it takes no more memory."""
    whole = np.empty(sum(map(len, parts)), parts[0].dtype)
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


class _Trainer:
    """Finds the most frequent pair, and merges it.

    Pairs that occur `_floor` times or more are indexed: their counts and words are known. The others are not.
    """

    def __init__(self, words: SpelledWords, known: Sequence[str], min_frequency: int) -> None:
        self._words, self._min_frequency = words, min_frequency
        self._pieces = list(known)
        self._ids = {piece: index for index, piece in enumerate(known)}
        self._index_frequent_pairs()

    def _index_frequent_pairs(self) -> None:
        self._counts: dict[int, int] = {}
        # May include words that no longer contain the pair, as one of its pieces was merged.
        self._words_of: dict[int, npt.NDArray[np.integer]] = {}
        self._heap: list[tuple[int, str, str, int]] = []
        self._floor, pairs = self._words.frequent_pairs(self._min_frequency)
        self._index(pairs)

    def _index(self, found: PairCounts) -> None:
        """Index those of the pairs that are frequent enough."""
        words, offsets = found.words
        for row in np.flatnonzero(found.counts >= self._floor).tolist():
            pair = int(found.pairs[row])
            self._counts[pair] = int(found.counts[row])
            self._words_of[pair] = words[offsets[row] : offsets[row + 1]].copy()  # not a view of all
            self._push(pair)

    def _push(self, pair: int) -> None:
        entry = -self._counts[pair], self._pieces[left_of(pair)], self._pieces[right_of(pair)], pair
        heapq.heappush(self._heap, entry)

    def most_frequent(self) -> int | None:
        """The most frequent pair, the first by text among equals; None if none occurs `min_frequency` times."""
        while True:
            while self._heap:
                count, _, _, pair = heapq.heappop(self._heap)
                now = self._counts.get(pair, 0)
                if now == -count:
                    return pair
                if now >= self._floor:
                    if now < -count:
                        self._push(pair)
                elif now:
                    del self._counts[pair], self._words_of[pair]
            if self._floor <= self._min_frequency:
                return None
            self._index_frequent_pairs()

    def merge(self, pair: int) -> str | None:
        """Merge the pair in all its words. Returns the new piece; None if the piece was known already."""
        text = self._pieces[left_of(pair)] + self._pieces[right_of(pair)].removeprefix(CONTINUES)
        new = self._ids.setdefault(text, len(self._pieces))
        is_new = new == len(self._pieces)
        if is_new:
            self._pieces.append(text)
        del self._counts[pair]
        removed, created = self._words.merge(pair, new, self._words_of.pop(pair))
        for changed, count in zip(removed.pairs.tolist(), removed.counts.tolist(), strict=True):
            if changed in self._counts:
                self._counts[changed] -= count
        # A piece that was known is in other words, too, in pairs that may not be indexed.
        self._index(created if is_new else self._words.pairs_with(new))
        return text if is_new else None
