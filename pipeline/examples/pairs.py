"""The sentences of documents -> pairs of segments, or runs of full sentences.

The pairs follow the rules of BERT's own data (Devlin et al. 2019, section 3.1 and appendix A.2): half are neighbours,
half have a second segment from elsewhere; or, as ALBERT has it (Lan et al. 2020, section 3.1), all are neighbours and
half of them change places. Runs without pairs are RoBERTa's FULL-SENTENCES (Liu et al. 2019, section 4.2). All of it
works on lengths alone: in go offsets of sentences in a flat array of ids, out come ranges of it. The source of
randomness is passed in.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from cloze.pipeline.text.token_shards import DocumentSentences

_TRIES = 10  # to draw a document that is another one


class Draws(Protocol):
    """A source of randomness."""

    def chance(self, probability: float, /) -> bool: ...

    def randint(self, low: int, high: int, /) -> int:
        """A whole number from low to high, both included."""
        ...

    def getrandbits(self, count: int, /) -> int:
        """The results of so many fair coins as bits, the first in the lowest."""
        ...


class Segment(NamedTuple):
    """The ids from start to end of a shard."""

    shard: int
    start: int
    end: int


class Pair(NamedTuple):
    """Two segments as ranges of ids; the first is in the document's own shard, the second in `shard`.

    `label` is 0 where the second follows the first, and 1 where it is a random one or the two have changed places.
    """

    first_start: int
    first_end: int
    shard: int
    second_start: int
    second_end: int
    label: bool


def make_pairs(
    corpus: Sequence[DocumentSentences],
    index: int,
    max_tokens: int,
    short_seq_prob: float,
    draws: Draws,
    swap: bool = False,
) -> Iterator[Pair]:
    """One pass over document `index` of `corpus`: pairs of at most `max_tokens` ids, at least one in each segment.

    Sentences are packed up to a target length, drawn once a pass. The pack is cut in two at a random sentence. On a
    coin, and always when it is a single sentence, the second segment comes from a random document and the sentences
    it displaces are used again. With `swap` the coin has the two segments change places instead.
    """
    shard, offsets, start, last = corpus[index]
    target = draws.randint(2, max_tokens) if draws.chance(short_seq_prob) else max_tokens
    while start < last:
        end = _reaches(offsets, start, last, target)
        cut = start + draws.randint(1, end - start - 1) if end - start > 1 else end
        first, second, other_shard = (offsets[start], offsets[cut]), (offsets[cut], offsets[end]), shard
        label = cut == end or draws.chance(0.5)
        if not label:
            start = end
        elif swap and cut < end:
            first, second, start = second, first, end
        else:
            other_shard, second = _random_segment(corpus, index, target - (first[1] - first[0]), draws)
            start = cut
        first, second = _truncated(first, second, max_tokens, draws)
        yield Pair(*first, other_shard, *second, label)


def full_sentences(
    corpus: Sequence[DocumentSentences], indices: Iterable[int], max_tokens: int
) -> Iterator[list[Segment]]:
    """Documents, one after the other -> packs of whole sentences, a segment for each document that a pack reaches into.

    A pack holds at most `max_tokens` ids, one for the [SEP] behind each segment counted in. A sentence that is longer
    than a pack is cut.
    """
    pack, room = list[Segment](), max_tokens
    for index in indices:
        shard, offsets, sentence, last = corpus[index]
        start = offsets[sentence]
        while sentence < last:
            fits = bisect_right(offsets, start + room - 1, sentence, last + 1) - 1
            end = offsets[fits] if fits > sentence else start + max_tokens - 1
            if fits > sentence or not pack:
                pack.append(Segment(shard, start, end))
                room -= end - start + 1
                sentence, start = fits, end
            else:
                yield pack
                pack, room = [], max_tokens
    if pack:
        yield pack


def _reaches(offsets: Sequence[int], start: int, last: int, target: int) -> int:
    """The end of the shortest run of sentences from `start` with `target` ids; `last` when there are not so many."""
    return bisect_left(offsets, offsets[start] + target, start + 1, last)


def _random_segment(
    corpus: Sequence[DocumentSentences], index: int, target: int, draws: Draws
) -> tuple[int, tuple[int, int]]:
    """At least `target` ids, where there are so many, from a random sentence on in a random other document."""
    other = index
    for _ in range(_TRIES):
        other = draws.randint(0, len(corpus) - 1)
        if other != index:
            break
    shard, offsets, first, last = corpus[other]
    start = draws.randint(first, last - 1)
    return shard, (offsets[start], offsets[_reaches(offsets, start, last, target)])


def _truncated(
    first: tuple[int, int], second: tuple[int, int], max_tokens: int, draws: Draws
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Take ids off the longer segment, the second when equal, until both fit; a coin for each: front or back."""
    (a, a_end), (b, b_end) = first, second
    surplus = (a_end - a) + (b_end - b) - max_tokens
    if surplus <= 0:
        return first, second
    coins = draws.getrandbits(surplus)
    # The longer segment alone loses ids until they are equal; from there on they lose them in turn, the second first.
    difference = (a_end - a) - (b_end - b)
    alone = min(abs(difference), surplus)
    turns = surplus - alone
    coins_alone, coins_in_turn = coins & ((1 << alone) - 1), coins >> alone
    of_second = ((1 << turns + turns % 2) - 1) // 3  # every other bit, the lowest among them
    a_loses, a_front = turns // 2, (coins_in_turn & ~of_second).bit_count()
    b_loses, b_front = turns - turns // 2, (coins_in_turn & of_second).bit_count()
    if difference > 0:
        a_loses, a_front = a_loses + alone, a_front + coins_alone.bit_count()
    else:
        b_loses, b_front = b_loses + alone, b_front + coins_alone.bit_count()
    return (a + a_front, a_end - (a_loses - a_front)), (b + b_front, b_end - (b_loses - b_front))
