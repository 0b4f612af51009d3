"""Counted words as arrays of piece ids, in which pairs of adjacent pieces are counted and merged.

A pair is one integer: the left id in the upper 32 bits, the right id in the lower ones.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cloze.pipeline.core.ragged import Ragged, offsets_of, ragged_ranges

_MAX_PAIRS, _MAX_OCCURRENCES = 1 << 18, 1 << 24  # in `frequent_pairs`: 100 MB as objects, 64 MB of word numbers
_BATCH_WORDS = 1 << 15
_MAX_SUMMED_ROWS = 1 << 22

Ids = npt.NDArray[np.integer]
Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def left_of(pair: int) -> int:
    return pair >> 32


def right_of(pair: int) -> int:
    return pair & 0xFFFFFFFF


class PairsInWords(NamedTuple):
    """Pairs, and for each one the number of the word that contains it."""

    pairs: Int64s
    words: Ids


class PairCounts(NamedTuple):
    """Distinct pairs, how often each occurs, and the numbers of the words that contain it: sorted, some repeated."""

    pairs: Int64s
    counts: Int64s
    words: Ragged


class SpelledWords:
    """Words as piece ids: word i is ids[starts[i] : starts[i] + lengths[i]], and occurs counts[i] times."""

    def __init__(self, ids: Ids, lengths: npt.NDArray[np.int32], counts: Int64s) -> None:
        self._ids, self._lengths, self._counts = ids, lengths, counts
        self._starts = offsets_of(lengths)[:-1]

    def merge(self, pair: int, new: int, words: Ids) -> tuple[PairCounts, PairCounts]:
        """Replace the pair by the piece `new` in these words, which are sorted, from left to right.

        Returns the pairs that no longer occur at these positions, and the pairs with the new piece.
        """
        words = words[np.diff(words, prepend=-1) > 0]
        batches = [words[start : start + _BATCH_WORDS] for start in range(0, len(words), _BATCH_WORDS)]
        removed, created = zip(*(self._merge_in(batch, pair, new) for batch in batches), strict=True)
        return self._count(removed), self._count(created)

    def _merge_in(self, words: Ids, pair: int, new: int) -> tuple[PairsInWords, PairsInWords]:
        ids, owners = self._pieces_of(words)
        adjacent = owners[:-1] == owners[1:]
        is_pair = (ids[:-1] == left_of(pair)) & (ids[1:] == right_of(pair)) & adjacent
        if left_of(pair) == right_of(pair):
            is_pair = _without_overlaps(is_pair)
        changed = is_pair.copy()
        changed[1:] |= is_pair[:-1]
        changed[:-1] |= is_pair[1:]
        removed = _select_pairs(ids, words, owners, changed & adjacent)
        is_new, kept = np.append(is_pair, False), np.append(True, ~is_pair)
        ids[is_new] = new
        ids, owners, is_new = ids[kept], owners[kept], is_new[kept]
        lengths = np.bincount(owners, minlength=len(words))
        self._ids[ragged_ranges(self._starts[words], lengths)] = ids
        self._lengths[words] = lengths
        created = (is_new[:-1] | is_new[1:]) & (owners[:-1] == owners[1:])
        return removed, _select_pairs(ids, words, owners, created)

    def pairs_with(self, piece: int) -> PairCounts:
        """Returns the pairs of which one is this piece, by a search of all words."""
        positions = np.flatnonzero(self._ids == piece)  # some are after the end of a word that has become shorter
        words = np.unique(np.searchsorted(self._starts, positions, "right") - 1)
        ids, owners = self._pieces_of(words)
        is_piece = ids == piece
        contains_piece = (is_piece[:-1] | is_piece[1:]) & (owners[:-1] == owners[1:])
        return self._count([_select_pairs(ids, words, owners, contains_piece)])

    def frequent_pairs(self, min_count: int) -> tuple[int, PairCounts]:
        """Returns a count, and all pairs that occur so many times or more.

        The count is `min_count`, or a higher one if so many pairs would take too much memory.
        """
        pairs, counts, occurrences = self._total_counts()
        order = np.argsort(-counts)
        fitting = int(np.searchsorted(np.cumsum(occurrences[order]), _MAX_OCCURRENCES, "right"))
        fitting = min(fitting, _MAX_PAIRS)
        if fitting < len(pairs):
            min_count = max(min_count, min(int(counts[order[fitting]]) + 1, int(counts[order[0]])))
        frequent = counts >= min_count
        pairs, counts, occurrences = pairs[frequent], counts[frequent], occurrences[frequent]
        return min_count, PairCounts(pairs, counts, Ragged(self._words_of(pairs, occurrences), offsets_of(occurrences)))

    def _total_counts(self) -> tuple[Int64s, Int64s, Int64s]:
        """Returns all pairs, how often each occurs in the text, and how often in the distinct words."""
        tables: list[pa.Table] = []
        for pairs, words in self._batches():
            columns = {"pair": pairs, "count": self._counts[words], "occurrences": np.ones(len(pairs), np.int64)}
            tables.append(_sum_by_pair([pa.table(columns)]))
            if sum(map(len, tables)) > _MAX_SUMMED_ROWS:
                tables = [_sum_by_pair(tables)]
        totals = _sum_by_pair(tables)
        return totals["pair"].to_numpy(), totals["count"].to_numpy(), totals["occurrences"].to_numpy()

    def _words_of(self, pairs: Int64s, occurrences: Int64s) -> npt.NDArray[np.int32]:
        """Returns the words that contain each of these pairs, which occur so often in them."""
        found, end = np.empty(occurrences.sum(), np.int64), 0
        for batch, words in self._batches():
            rows = pc.call_function("index_in", [pa.array(batch)], pc.SetLookupOptions(pa.array(pairs)))
            rows = rows.fill_null(-1).to_numpy()
            start, end = end, end + int((rows >= 0).sum())
            found[start:end] = (rows.astype(np.int64) << 32 | words)[rows >= 0]
        found.sort()
        return (found & 0xFFFFFFFF).astype(np.int32)

    def _batches(self) -> Iterator[PairsInWords]:
        """Yields the pairs of some words, and the word of each, until all words were included."""
        for start in range(0, len(self._counts), _BATCH_WORDS):
            words = np.arange(start, min(start + _BATCH_WORDS, len(self._counts)))
            ids, owners = self._pieces_of(words)
            yield _select_pairs(ids, words, owners, owners[:-1] == owners[1:])

    def _pieces_of(self, words: Ids) -> tuple[Int64s, Int64s]:
        """Words -> their ids, concatenated, and for each id the index of its word in `words`."""
        lengths = self._lengths[words]
        ids = self._ids[ragged_ranges(self._starts[words], lengths)].astype(np.int64)
        return ids, np.repeat(np.arange(len(words)), lengths)

    def _count(self, found: Sequence[PairsInWords]) -> PairCounts:
        """Count pairs. Each batch of them is in the order of its words, and the batches are, too."""
        pairs, words = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        order = np.argsort(pairs, kind="stable")
        pairs, words = pairs[order], words[order]
        starts = np.flatnonzero(np.diff(pairs, prepend=-1))
        counts = np.add.reduceat(self._counts[words], starts) if len(pairs) else starts
        return PairCounts(pairs[starts], counts, Ragged(words.astype(np.int32), np.append(starts, len(pairs))))


def _select_pairs(ids: Int64s, words: Ids, owners: Int64s, selected: Mask) -> PairsInWords:
    """Returns the pairs of an id and the next one at the selected positions. `owners`: each id's index in `words`."""
    positions = np.flatnonzero(selected)
    return PairsInWords(ids[positions] << 32 | ids[positions + 1], words[owners[positions]])


def _without_overlaps(is_pair: Mask) -> Mask:
    """Of positions at which a pair of equal pieces begins -> every other one of adjacent positions."""
    positions = np.arange(len(is_pair))
    before_run = np.maximum.accumulate(np.where(is_pair, -1, positions))  # the last position without the pair
    return is_pair & ((positions - before_run) % 2 == 1)


def _sum_by_pair(tables: Sequence[pa.Table]) -> pa.Table:
    names = ["pair", "count", "occurrences"]
    empty = pa.table({name: np.zeros(0, np.int64) for name in names})
    sums = [(name, "sum") for name in names[1:]]
    return pa.concat_tables([empty, *tables]).group_by("pair", use_threads=False).aggregate(sums).rename_columns(names)
