"""Counted words -> a WordPiece vocabulary: the most frequent pair of pieces is merged into one piece, repeatedly.

The result depends on the counts alone: of equally frequent pairs, the first by text is merged. Counts are Python's
integers and cannot overflow. The cost of a merge depends on what it changes, as the positions of each pair are known.
"""

import heapq
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

_CONTINUES = "##"
PiecePair = tuple[int, int]


def split_characters(word: str) -> list[str]:
    """A word -> its pieces of one character."""
    return [word[0], *(_CONTINUES + character for character in word[1:])]


def alphabet(words: Mapping[str, int], coverage: float, minimum: int = 0) -> tuple[list[str], list[str]]:
    """The pieces of one character: those of the alphabet, and those that are left out of it.

    The alphabet's characters are the most frequent ones that make up `coverage` of all characters of the words
    (sentencepiece's character coverage), but no fewer than `minimum`. Their word-initial pieces come first, then their
    continuing ones (##). The pieces left out are ordered by frequency, the word-initial one first. A character that is
    always a whole word (punctuation, an ideograph) has no continuing piece. Of equally frequent characters the first by
    code point is taken.
    """
    counts: Counter[str] = Counter()
    in_longer_words: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        if len(word) > 1:
            in_longer_words.update(word)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    covered = list(accumulate(counts[character] for character in ordered))
    enough = max(minimum, bisect_left(covered, coverage * counts.total()) + 1)
    kept, rare = sorted(ordered[:enough]), ordered[enough:]
    continuing = {character: [_CONTINUES + character] for character in in_longer_words}
    left_out = [piece for character in rare for piece in (character, *continuing.get(character, ()))]
    return kept + [piece for character in kept for piece in continuing.get(character, ())], left_out


def train_pieces(words: Mapping[str, int], known: list[str], size: int, min_frequency: int) -> list[str]:
    """Train up to `size` new pieces, in the order of their merges; fewer if no pair occurs `min_frequency` times.

    `known` holds the alphabet and pieces trained before. A word with a character outside the alphabet will be unknown
    as a whole, and is ignored.
    """
    index = _PairIndex(words, known)
    trained: list[str] = []
    while len(trained) < size and (pair := index.most_frequent(min_frequency)):
        if piece := index.merge(pair):
            trained.append(piece)
    return trained


class _PairIndex:
    """All words as one sequence of piece ids, linked within each word, with the positions of each adjacent pair."""

    def __init__(self, words: Mapping[str, int], known: Iterable[str]) -> None:
        self.pieces = list(known)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        self._symbols: list[int] = []  # piece ids; -1 for one that was merged into the previous one
        self._before: list[int] = []  # the position of the previous piece of the word; -1 for the first
        self._after: list[int] = []  # the position of the next piece of the word; -1 for the last
        self._word_counts: list[int] = []
        self._counts: defaultdict[PiecePair, int] = defaultdict(int)
        # May include positions at which the pair no longer is, as one of its pieces was merged.
        self._positions: defaultdict[PiecePair, list[int]] = defaultdict(list)
        for word in sorted(words):
            self._add(word, words[word])
        self._heap = [self._entry(pair) for pair in self._counts]
        heapq.heapify(self._heap)

    def _add(self, word: str, count: int) -> None:
        spelling = split_characters(word)
        if any(piece not in self._ids for piece in spelling):
            return
        start = len(self._symbols)
        symbols = [self._ids[piece] for piece in spelling]
        self._symbols += symbols
        self._before += [-1, *range(start, start + len(symbols) - 1)]
        self._after += [*range(start + 1, start + len(symbols)), -1]
        self._word_counts += [count] * len(symbols)
        for position, pair in enumerate(pairwise(symbols), start):
            self._counts[pair] += count
            self._positions[pair].append(position)

    def _entry(self, pair: PiecePair) -> tuple[int, str, str, PiecePair]:
        return -self._counts[pair], self.pieces[pair[0]], self.pieces[pair[1]], pair

    def most_frequent(self, min_frequency: int) -> PiecePair | None:
        """The most frequent pair, the first by text among equals; None if none occurs `min_frequency` times."""
        while self._heap:
            count, _, _, pair = heapq.heappop(self._heap)
            now = self._counts[pair]
            if now == -count and now >= min_frequency:
                return pair
            if min_frequency <= now < -count:
                heapq.heappush(self._heap, self._entry(pair))
        return None

    def merge(self, pair: PiecePair) -> str | None:
        """Merge the pair at all its positions. Returns the new piece; None if the piece was known already."""
        left, right = pair
        text = self.pieces[left] + self.pieces[right].removeprefix(_CONTINUES)
        new = self._ids.setdefault(text, len(self.pieces))
        is_new = new == len(self.pieces)
        if is_new:
            self.pieces.append(text)
        symbols, after = self._symbols, self._after
        changed_pairs: set[PiecePair] = set()
        for position in sorted(self._positions.pop(pair)):
            right_position = after[position]
            if symbols[position] == left and right_position >= 0 and symbols[right_position] == right:
                self._merge_at(position, right_position, new, changed_pairs)
        del self._counts[pair]
        for changed in changed_pairs:
            heapq.heappush(self._heap, self._entry(changed))
        return text if is_new else None

    def _merge_at(self, position: int, right_position: int, new: int, changed_pairs: set[PiecePair]) -> None:
        symbols, before, after = self._symbols, self._before, self._after
        word_count, previous, following = self._word_counts[position], before[position], after[right_position]
        if previous >= 0:
            self._counts[symbols[previous], symbols[position]] -= word_count
            self._add_pair((symbols[previous], new), previous, word_count, changed_pairs)
        if following >= 0:
            self._counts[symbols[right_position], symbols[following]] -= word_count
            self._add_pair((new, symbols[following]), position, word_count, changed_pairs)
            before[following] = position
        symbols[position], symbols[right_position], after[position] = new, -1, following

    def _add_pair(self, pair: PiecePair, position: int, word_count: int, changed_pairs: set[PiecePair]) -> None:
        self._counts[pair] += word_count
        self._positions[pair].append(position)
        changed_pairs.add(pair)
