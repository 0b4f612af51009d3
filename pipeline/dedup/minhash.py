"""Texts -> MinHash signatures -> groups of near duplicates.

The resemblance of two texts is the fraction of their shingles (five consecutive words, as words.py defines a word) that
both have (Broder 1997, "On the resemblance and containment of documents"). A signature holds 128 minima of the
shingles' hashes, one for each of 128 permutations, a byte of each (Li and König 2010, "b-Bit minwise hashing"): two
signatures agree in a value with probability s + (1 - s) / 256 at resemblance s. Eight values are a band, and texts that
share one of the 16 bands are compared (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), which
finds 1 - (1 - s^8)^16 of the pairs: 6 % at 0.5, 61 % at 0.7, 95 % at 0.8, 99.99 % at 0.9. The estimate of 0.8 by 128
values has a standard deviation of 0.035.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import offsets_of, ragged_ranges
from cloze.pipeline.text.words import case_folded, word_bounds

NUM_PERMUTATIONS = 128
NUM_BANDS = 16
SHINGLE_WORDS = 5
MIN_SHINGLES = 5  # a text with fewer has no signature

_BATCH_CHARACTERS = 1 << 17
_MAX_CHARACTERS = 1 << 20  # longer texts are cut
_BATCH_SHINGLES = 1 << 14  # fit in a processor's cache
_BATCH_PAIRS = 1 << 16
_WINDOW = 64  # texts of a band with which each is compared

_FACTORS = (hash64(1, np.arange(NUM_PERMUTATIONS)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_SHIFTS = (hash64(2, np.arange(NUM_PERMUTATIONS)) >> np.uint64(32)).astype(np.uint32)
_SCATTER = np.uint32(0x9E3779B1)  # a byte of a minimum that depends on all its bits
_LETTER_FACTORS = hash64(3, np.arange(64)) | np.uint64(1)  # one for each position in a word
_WORD_FACTORS = hash64(4, np.arange(SHINGLE_WORDS)) | np.uint64(1)  # one for each position in a shingle


def compute_signatures(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Texts -> [texts, 128]; zeros for texts of fewer than five shingles. Case and compatibility forms are folded.

    Takes about 0.025 CPU seconds per megabyte, and 512 bytes of memory per text plus 20 MB. A text is cut after every
    million characters; the shingles across a cut are left out.
    """
    minima = np.full((len(texts), NUM_PERMUTATIONS), 0xFFFFFFFF, np.uint32)
    counts = np.zeros(len(texts), np.int64)
    for owners, chunks in _text_batches(texts):
        hashes, offsets = shingles(chunks)
        np.add.at(counts, owners, np.diff(offsets))
        for batch in _cache_batches(offsets):
            np.minimum.at(minima, owners[batch], _minima(hashes, offsets, batch))
    signatures = ((minima * _SCATTER) >> np.uint32(24)).astype(np.uint8)
    signatures[counts < MIN_SHINGLES] = 0
    return signatures


def _text_batches(texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
    """Batches that fit in a cache: texts (long ones in several chunks), and the index of the text of each chunk."""
    chunks: list[str] = []
    owners: list[int] = []
    size = 0
    for owner, text in enumerate(texts):
        for start in range(0, len(text), _MAX_CHARACTERS):
            chunks.append(text[start : start + _MAX_CHARACTERS])
            owners.append(owner)
            size += len(chunks[-1])
            if size >= _BATCH_CHARACTERS:
                yield np.array(owners), chunks
                chunks, owners, size = [], [], 0
    if chunks:
        yield np.array(owners), chunks


def shingles(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Texts -> the hashes of their shingles in the order of the text, and offsets [texts + 1]."""
    folded = [case_folded(text) for text in texts]
    codes = np.frombuffer("".join(f"{text}\n" for text in folded).encode("utf-32-le"), "<u4")
    inside, begins = word_bounds(codes)
    word_offsets = np.searchsorted(np.flatnonzero(begins), offsets_of([len(text) + 1 for text in folded]))
    word_hashes = _word_hashes(codes[inside], np.flatnonzero(begins[inside]))
    counts = np.maximum(np.diff(word_offsets) - SHINGLE_WORDS + 1, 0)
    if not counts.any():
        return np.zeros(0, np.uint32), offsets_of(counts)
    total = len(word_hashes) - SHINGLE_WORDS + 1
    combined = np.zeros(total, np.uint64)
    for position, factor in enumerate(_WORD_FACTORS):
        combined += word_hashes[position : position + total] * factor
    hashes = (hash64(combined) >> np.uint64(32)).astype(np.uint32)
    return hashes[ragged_ranges(word_offsets[:-1], counts)], offsets_of(counts)


def _word_hashes(letters: npt.NDArray[np.uint32], first: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Letters, and where words begin -> a hash of each word: the sum of its letters times their position's factors."""
    if not len(first):
        return np.zeros(0, np.uint64)
    lengths = np.diff(np.append(first, len(letters)))
    position = np.arange(len(letters)) - np.repeat(first, lengths)
    return hash64(np.add.reduceat(letters * _LETTER_FACTORS[position & 63], first))


def _cache_batches(offsets: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """The indices of the texts that have shingles, in batches that fit in a cache."""
    lengths = np.diff(offsets)
    nonempty = np.flatnonzero(lengths)
    batches = np.cumsum(lengths[nonempty]) // _BATCH_SHINGLES
    return iter(np.split(nonempty, np.flatnonzero(np.diff(batches)) + 1)) if len(nonempty) else iter(())


def _minima(
    hashes: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """The smallest hash of each text under each permutation: [texts, 128]."""
    lengths = offsets[texts + 1] - offsets[texts]
    selected = hashes[ragged_ranges(offsets[texts], lengths)]
    starts = offsets_of(lengths)[:-1]
    minima = np.empty((NUM_PERMUTATIONS, len(texts)), np.uint32)
    permuted = np.empty_like(selected)
    for row, factor, shift in zip(minima, _FACTORS, _SHIFTS, strict=True):
        np.multiply(selected, factor, out=permuted)
        np.add(permuted, shift, out=permuted)
        np.minimum.reduceat(permuted, starts, out=row)
    return minima.T


def band_keys(signatures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Signatures [texts, 128] -> [texts, 16]: equal for texts that share a band."""
    return hash64(signatures.view(np.uint64), np.arange(NUM_BANDS))


def group_near_duplicates(
    keys: npt.NDArray[np.uint64], owners: npt.NDArray[np.int64], signatures: npt.NDArray[np.uint8], threshold: float
) -> npt.NDArray[np.int64]:
    """Signatures [texts, 128] -> for each text the index of the first text in its group of near duplicates: [texts].

    `keys` are band keys, `owners` the index of each one's text. Texts that share a band are compared, and are in the
    same group if their estimated resemblance is at least `threshold`. In a band that many texts share, each is compared
    with the next 64 in the order of the signatures, so that the time stays linear.
    """
    rank = np.empty(len(signatures), np.int64)
    rank[np.lexsort(signatures.view(np.uint64).T)] = np.arange(len(signatures))
    order = np.lexsort((rank[owners], keys))
    keys, owners = keys[order], owners[order]
    min_equal = (threshold + (1 - threshold) / 256) * NUM_PERMUTATIONS
    roots = np.arange(len(signatures))
    first = np.arange(len(keys))
    for distance in range(1, _WINDOW + 1):
        first = first[first + distance < len(keys)]
        first = first[keys[first] == keys[first + distance]]
        pairs = np.stack([owners[first], owners[first + distance]], axis=1)
        pairs = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
        for start in range(0, len(pairs), _BATCH_PAIRS):
            some = pairs[start : start + _BATCH_PAIRS]
            num_equal = (signatures[some[:, 0]] == signatures[some[:, 1]]).sum(axis=1)
            roots = join_groups(roots, some[num_equal >= min_equal])
    return roots


def join_groups(roots: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Join the groups of each pair [pairs, 2]. `roots` [count] holds the smallest index of the group of each index."""
    roots = roots.copy()
    while len(pairs := pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]):
        ends = roots[pairs]
        np.minimum.at(roots, ends.max(axis=1), ends.min(axis=1))
        while not np.array_equal(roots, further := roots[roots]):
            roots = further
    return roots
