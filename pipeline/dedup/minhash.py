"""Texts -> MinHash signatures -> which of them are near duplicates.

The resemblance of two texts is the share of their shingles (five words in a row, as words.py has words) that both have
(Broder 1997, "On the resemblance and containment of documents"). A signature holds 128 minima of the shingles' hashes,
one for each of 128 permutations, a byte of each (Li and König 2010, "b-Bit minwise hashing"): two signatures agree in a
value with probability s + (1 - s) / 256 at resemblance s. Eight values are a band, and texts that share one of the 16
bands are compared (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), which finds 1 - (1 -
s^8)^16 of the pairs: 6 % at 0.5, 61 % at 0.7, 95 % at 0.8, 99.99 % at 0.9. The estimate of 0.8 by 128 values has a
deviation of 0.035.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import offsets_of, ragged_ranges
from cloze.pipeline.text.words import case_folded, word_bounds

VALUES = 128
BANDS = 16
WORDS = 5  # in a shingle
FEWEST = 5  # shingles: a text with fewer has no signature

_CHARACTERS_AT_ONCE = 1 << 17
_LONGEST = 1 << 20
_SHINGLES_AT_ONCE = 1 << 14  # what stays in a processor's cache
_PAIRS_AT_ONCE = 1 << 16
_WINDOW = 64

_FACTORS = (hash64(1, np.arange(VALUES)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_SHIFTS = (hash64(2, np.arange(VALUES)) >> np.uint64(32)).astype(np.uint32)
_SCATTER = np.uint32(0x9E3779B1)  # a byte of a minimum that depends on all its bits
_LETTERS = hash64(3, np.arange(64)) | np.uint64(1)  # a factor for each place in a word
_PLACES = hash64(4, np.arange(WORDS)) | np.uint64(1)  # and for each word of a shingle


def signatures(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Texts -> [texts, 128]; zeros where there are fewer than five shingles. Case and compatibility forms are folded.

    Costs about 0.025 CPU seconds a megabyte. Takes 512 bytes of memory for each text and some 20 MB in all: of a text
    longer than a million characters, the shingles that cross a million are left out.
    """
    minima = np.full((len(texts), VALUES), 0xFFFFFFFF, np.uint32)
    counts = np.zeros(len(texts), np.int64)
    for owners, pieces in _batches(texts):
        found, offsets = shingles(pieces)
        np.add.at(counts, owners, np.diff(offsets))
        for run in _runs(offsets):
            np.minimum.at(minima, owners[run], _minima(found, offsets, run))
    signed = ((minima * _SCATTER) >> np.uint32(24)).astype(np.uint8)
    signed[counts < FEWEST] = 0
    return signed


def _batches(texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
    """Texts, cut where they are very long, and whose they are: so many characters at once that they stay in a cache."""
    pieces: list[str] = []
    owners: list[int] = []
    size = 0
    for owner, text in enumerate(texts):
        for start in range(0, len(text), _LONGEST):
            pieces.append(text[start : start + _LONGEST])
            owners.append(owner)
            size += len(pieces[-1])
            if size >= _CHARACTERS_AT_ONCE:
                yield np.array(owners), pieces
                pieces, owners, size = [], [], 0
    if pieces:
        yield np.array(owners), pieces


def shingles(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Texts -> the hashes of their shingles in the order of the text, and offsets [texts + 1]."""
    folded = [case_folded(text) for text in texts]
    codes = np.frombuffer("".join(f"{text}\n" for text in folded).encode("utf-32-le"), "<u4")
    inside, begins = word_bounds(codes)
    words_offsets = np.searchsorted(np.flatnonzero(begins), offsets_of([len(text) + 1 for text in folded]))
    words = _words(codes[inside], np.flatnonzero(begins[inside]))
    counts = np.maximum(np.diff(words_offsets) - WORDS + 1, 0)
    if not counts.any():
        return np.zeros(0, np.uint32), offsets_of(counts)
    total = len(words) - WORDS + 1
    combined = np.zeros(total, np.uint64)
    for place, factor in enumerate(_PLACES):
        combined += words[place : place + total] * factor
    found = (hash64(combined) >> np.uint64(32)).astype(np.uint32)
    return found[ragged_ranges(words_offsets[:-1], counts)], offsets_of(counts)


def _words(letters: npt.NDArray[np.uint32], first: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Letters, and where words begin -> a hash of each word: the sum of its letters, each times its place's factor."""
    if not len(first):
        return np.zeros(0, np.uint64)
    lengths = np.diff(np.append(first, len(letters)))
    place = np.arange(len(letters)) - np.repeat(first, lengths)
    return hash64(np.add.reduceat(letters * _LETTERS[place & 63], first))


def _runs(offsets: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The texts with any shingle, a few at a time."""
    lengths = np.diff(offsets)
    some = np.flatnonzero(lengths)
    parts = np.cumsum(lengths[some]) // _SHINGLES_AT_ONCE
    return iter(np.split(some, np.flatnonzero(np.diff(parts)) + 1)) if len(some) else iter(())


def _minima(
    found: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """The least hash of each text under each permutation: [texts, 128]."""
    lengths = offsets[texts + 1] - offsets[texts]
    own = found[ragged_ranges(offsets[texts], lengths)]
    starts = offsets_of(lengths)[:-1]
    minima = np.empty((VALUES, len(texts)), np.uint32)
    permuted = np.empty_like(own)
    for row, factor, shift in zip(minima, _FACTORS, _SHIFTS, strict=True):
        np.multiply(own, factor, out=permuted)
        np.add(permuted, shift, out=permuted)
        np.minimum.reduceat(permuted, starts, out=row)
    return minima.T


def bands(signed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Signatures [texts, 128] -> [texts, 16]: equal where texts share a band."""
    return hash64(signed.view(np.uint64), np.arange(BANDS))


def groups(
    keys: npt.NDArray[np.uint64], owners: npt.NDArray[np.int64], signed: npt.NDArray[np.uint8], threshold: float
) -> npt.NDArray[np.int64]:
    """Signatures [texts, 128] -> for each text the number of the first in its group of near duplicates: [texts].

    `keys` are bands, `owners` the text that each is of. Those that share a band are compared, and belong together where
    their estimated resemblance is at least `threshold`. Of a band that many share, each is compared with the next 64 in
    the order of the signatures, so that the time stays linear.
    """
    rank = np.empty(len(signed), np.int64)
    rank[np.lexsort(signed.view(np.uint64).T)] = np.arange(len(signed))
    order = np.lexsort((rank[owners], keys))
    keys, owners = keys[order], owners[order]
    least = (threshold + (1 - threshold) / 256) * VALUES
    root = np.arange(len(signed))
    first = np.arange(len(keys))
    for distance in range(1, _WINDOW + 1):
        first = first[first + distance < len(keys)]
        first = first[keys[first] == keys[first + distance]]
        pairs = np.stack([owners[first], owners[first + distance]], axis=1)
        pairs = pairs[root[pairs[:, 0]] != root[pairs[:, 1]]]
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[start : start + _PAIRS_AT_ONCE]
            agreeing = (signed[some[:, 0]] == signed[some[:, 1]]).sum(axis=1)
            root = joined(root, some[agreeing >= least])
    return root


def joined(root: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest number that each is joined to, [count], once these pairs [pairs, 2] are joined as well."""
    root = root.copy()
    while len(pairs := pairs[root[pairs[:, 0]] != root[pairs[:, 1]]]):
        ends = root[pairs]
        np.minimum.at(root, ends.max(axis=1), ends.min(axis=1))
        while not np.array_equal(root, further := root[root]):
            root = further
    return root
