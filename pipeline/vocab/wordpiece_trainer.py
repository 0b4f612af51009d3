"""Counted words -> a WordPiece vocabulary: the most frequent pair of pieces becomes one piece, again and again.

The result depends on the counts alone: of pairs equally frequent, the first by text is taken. Counts are Python's
integers and cannot overflow. A merge costs what it changes, not a look at every word: pairs know where they stand.
"""

import heapq
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

_CONTINUES = "##"
Pair = tuple[int, int]


def spell(word: str) -> list[str]:
    """A word as pieces of one character."""
    return [word[0], *(_CONTINUES + character for character in word[1:])]


def alphabet(words: Mapping[str, int], coverage: float, least: int = 0) -> tuple[list[str], list[str]]:
    """The pieces of one character, of those that belong to the alphabet and of those that are left out of it.

    The alphabet's characters are the most frequent ones that make up `coverage` of all characters of the words (what
    sentencepiece calls character coverage), at least `least` of them: first the pieces that begin a word, then those
    that go on. The others stand by frequency, the beginning before what goes on. A character that only ever was a whole
    word (punctuation, an ideograph) goes on with none. Of characters equally frequent the first by code point is taken.
    """
    counts: Counter[str] = Counter()
    joined: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        if len(word) > 1:
            joined.update(word)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    covered = list(accumulate(counts[character] for character in ordered))
    enough = max(least, bisect_left(covered, coverage * counts.total()) + 1)
    kept, rare = sorted(ordered[:enough]), ordered[enough:]
    goes_on = {character: [_CONTINUES + character] for character in joined}
    left_out = [piece for character in rare for piece in (character, *goes_on.get(character, ()))]
    return kept + [piece for character in kept for piece in goes_on.get(character, ())], left_out


def learn(words: Mapping[str, int], known: list[str], size: int, min_frequency: int) -> list[str]:
    """Pieces, in the order in which they are found, until there are `size` of them besides those `known`.

    Characters and pieces found before are among the known. A word with a character that is not will be unknown as a
    whole, and teaches nothing.
    Fewer pieces come out when no pair is left that occurs `min_frequency` times.
    """
    merges = _Merges(words, known)
    found: list[str] = []
    while len(found) < size and (pair := merges.most_frequent(min_frequency)):
        if piece := merges.merge(pair):
            found.append(piece)
    return found


class _Merges:
    """All words as one row of symbols, linked within each word, and where each pair of neighbours stands in it."""

    def __init__(self, words: Mapping[str, int], known: Iterable[str]) -> None:
        self.pieces = list(known)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        self._symbols: list[int] = []  # -1 for one that was merged into the one before it
        self._before: list[int] = []  # -1 in front of a word's first
        self._after: list[int] = []
        self._weights: list[int] = []  # how often the word occurs
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self._places: defaultdict[Pair, list[int]] = defaultdict(list)  # may name places where the pair stands no more
        for word in sorted(words):
            self._add(word, words[word])
        self._heap = [self._entry(pair) for pair in self._counts]
        heapq.heapify(self._heap)

    def _add(self, word: str, count: int) -> None:
        spelt = spell(word)
        if any(piece not in self._ids for piece in spelt):
            return
        start = len(self._symbols)
        symbols = [self._ids[piece] for piece in spelt]
        self._symbols += symbols
        self._before += [-1, *range(start, start + len(symbols) - 1)]
        self._after += [*range(start + 1, start + len(symbols)), -1]
        self._weights += [count] * len(symbols)
        for place, pair in enumerate(pairwise(symbols), start):
            self._counts[pair] += count
            self._places[pair].append(place)

    def _entry(self, pair: Pair) -> tuple[int, str, str, Pair]:
        return -self._counts[pair], self.pieces[pair[0]], self.pieces[pair[1]], pair

    def most_frequent(self, min_frequency: int) -> Pair | None:
        """The most frequent pair, the first by text among equals; None when none occurs `min_frequency` times."""
        while self._heap:
            count, _, _, pair = heapq.heappop(self._heap)
            now = self._counts[pair]
            if now == -count and now >= min_frequency:
                return pair
            if min_frequency <= now < -count:
                heapq.heappush(self._heap, self._entry(pair))
        return None

    def merge(self, pair: Pair) -> str | None:
        """Make the pair one symbol wherever it stands; its text, or None when that piece was known already."""
        left, right = pair
        text = self.pieces[left] + self.pieces[right].removeprefix(_CONTINUES)
        new = self._ids.setdefault(text, len(self.pieces))
        is_new = new == len(self.pieces)
        if is_new:
            self.pieces.append(text)
        symbols, after = self._symbols, self._after
        grown: set[Pair] = set()
        for place in sorted(self._places.pop(pair)):
            other = after[place]
            if symbols[place] == left and other >= 0 and symbols[other] == right:
                self._merge_at(place, other, new, grown)
        del self._counts[pair]
        for changed in grown:
            heapq.heappush(self._heap, self._entry(changed))
        return text if is_new else None

    def _merge_at(self, place: int, other: int, new: int, grown: set[Pair]) -> None:
        symbols, before, after = self._symbols, self._before, self._after
        weight, previous, following = self._weights[place], before[place], after[other]
        if previous >= 0:
            self._counts[symbols[previous], symbols[place]] -= weight
            self._grow((symbols[previous], new), previous, weight, grown)
        if following >= 0:
            self._counts[symbols[other], symbols[following]] -= weight
            self._grow((new, symbols[following]), place, weight, grown)
            before[following] = place
        symbols[place], symbols[other], after[place] = new, -1, following

    def _grow(self, pair: Pair, place: int, weight: int, grown: set[Pair]) -> None:
        self._counts[pair] += weight
        self._places[pair].append(place)
        grown.add(pair)
