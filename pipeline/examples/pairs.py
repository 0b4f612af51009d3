"""The sentences of documents -> pairs of segments, or packs of full sentences.

Pairs follow BERT's original data (Devlin et al. 2019, section 3.1 and appendix A.2): in half of them the second segment
follows the first, in half it comes from another document. Or they follow ALBERT (Lan et al. 2020, section 3.1): the
segments always follow each other, and in half of the pairs they are swapped. Packs without pairs are RoBERTa's
FULL-SENTENCES (Liu et al. 2019, section 4.2). Sentences are given as offsets into a flat array of ids; results are
ranges of it. Random draws are passed in.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

_MAX_TRIES = 10  # to draw another document


class PairDraws(Protocol):
    """The random draws that pairs need."""

    def chance(self, probability: float, /) -> bool: ...

    def randint(self, low: int, high: int, /) -> int:
        """An integer from low to high, both included."""
        ...

    def getrandbits(self, count: int, /) -> int:
        """The results of `count` fair coins as bits, the first in the lowest."""
        ...


class DocumentOffsets(NamedTuple):
    """Documents in a flat array of ids: document i has the sentences documents[i] to documents[i + 1] - 1, sentence j
    the ids sentences[j] to sentences[j + 1] - 1.
    """

    documents: Sequence[int]  # [documents + 1]
    sentences: Sequence[int]  # [sentences + 1]


class Segment(NamedTuple):
    """The ids [start, end)."""

    start: int
    end: int


class Pair(NamedTuple):
    """Two segments as ranges of ids. `label` is 0 if the second follows the first, and 1 if it is random or the two are
    swapped.
    """

    first_start: int
    first_end: int
    second_start: int
    second_end: int
    label: bool


def make_pairs(
    offsets: DocumentOffsets,
    index: int,
    max_tokens: int,
    short_seq_prob: float,
    draws: PairDraws,
    swap: bool = False,
) -> Iterator[Pair]:
    """One pass over document `index`: pairs of at most `max_tokens` ids, at least one in each segment.

    Sentences are packed up to a target length, drawn once per pass. The pack is divided in two at a random sentence.
    With probability 0.5, and always if it is a single sentence, the second segment comes from a random document, and
    the sentences that it replaces are used again. With `swap`, the two segments are swapped instead.
    """
    sentences, (start, last) = offsets.sentences, offsets.documents[index : index + 2]
    target = draws.randint(2, max_tokens) if draws.chance(short_seq_prob) else max_tokens
    while start < last:
        end = _end_of_target(sentences, start, last, target)
        cut = start + draws.randint(1, end - start - 1) if end - start > 1 else end
        first, second = (sentences[start], sentences[cut]), (sentences[cut], sentences[end])
        label = cut == end or draws.chance(0.5)
        if not label:
            start = end
        elif swap and cut < end:
            first, second, start = second, first, end
        else:
            second = _random_segment(offsets, index, target - (first[1] - first[0]), draws)
            start = cut
        first, second = _truncate(first, second, max_tokens, draws)
        yield Pair(*first, *second, label)


def full_sentences(offsets: DocumentOffsets, indices: Iterable[int], max_tokens: int) -> Iterator[list[Segment]]:
    """Consecutive documents -> packs of whole sentences, with a segment for each document in a pack.

    A pack holds at most `max_tokens` ids, including one for the [SEP] after each segment. A sentence that is longer
    than a pack is cut.
    """
    pack, room = list[Segment](), max_tokens
    for index in indices:
        sentences, (sentence, last) = offsets.sentences, offsets.documents[index : index + 2]
        start = sentences[sentence]
        while sentence < last:
            end_sentence = bisect_right(sentences, start + room - 1, sentence, last + 1) - 1
            end = sentences[end_sentence] if end_sentence > sentence else start + max_tokens - 1
            if end_sentence > sentence or not pack:
                pack.append(Segment(start, end))
                room -= end - start + 1
                sentence, start = end_sentence, end
            else:
                yield pack
                pack, room = [], max_tokens
    if pack:
        yield pack


def _end_of_target(sentences: Sequence[int], start: int, last: int, target: int) -> int:
    """The end of the shortest run of sentences from `start` with at least `target` ids; `last` if there are fewer."""
    return bisect_left(sentences, sentences[start] + target, start + 1, last)


def _random_segment(offsets: DocumentOffsets, index: int, target: int, draws: PairDraws) -> tuple[int, int]:
    """At least `target` ids, or all that there are, from a random sentence on in a random other document."""
    other = index
    for _ in range(_MAX_TRIES):
        other = draws.randint(0, len(offsets.documents) - 2)
        if other != index:
            break
    sentences, (first, last) = offsets.sentences, offsets.documents[other : other + 2]
    start = draws.randint(first, last - 1)
    return sentences[start], sentences[_end_of_target(sentences, start, last, target)]


def _truncate(
    first: tuple[int, int], second: tuple[int, int], max_tokens: int, draws: PairDraws
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Remove ids from the longer segment, the second if equal, until both fit. A coin decides: front or back."""
    (a, a_end), (b, b_end) = first, second
    surplus = (a_end - a) + (b_end - b) - max_tokens
    if surplus <= 0:
        return first, second
    coins = draws.getrandbits(surplus)
    # Only the longer segment loses ids until both are equal; then they lose ids alternately, the second first.
    difference = (a_end - a) - (b_end - b)
    longer_only = min(abs(difference), surplus)
    alternating = surplus - longer_only
    longer_coins, alternate_coins = coins & ((1 << longer_only) - 1), coins >> longer_only
    of_second = ((1 << alternating + alternating % 2) - 1) // 3  # every other bit, starting with the lowest
    a_loses, a_front = alternating // 2, (alternate_coins & ~of_second).bit_count()
    b_loses, b_front = alternating - alternating // 2, (alternate_coins & of_second).bit_count()
    if difference > 0:
        a_loses, a_front = a_loses + longer_only, a_front + longer_coins.bit_count()
    else:
        b_loses, b_front = b_loses + longer_only, b_front + longer_coins.bit_count()
    return (a + a_front, a_end - (a_loses - a_front)), (b + b_front, b_end - (b_loses - b_front))
