"""Ids -> ids with some hidden behind [MASK], and what stood there: BERT's masked language model, a batch at a time.

Of an example's pieces 15 % are chosen, one at least. Of those 80 % become [MASK], 10 % a random piece and 10 % stay as
they are (Devlin et al. 2019, section 3.1), whether pieces, whole words or runs of words are chosen. The randomness is
passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.keyed_random import mixed
from cloze.pipeline.text.tokenizer import CLS, MASK, SEP

_MASKED, _KEPT = 0.8, 0.9  # below 0.8 a chosen piece is masked, from there up to 0.9 kept, above replaced
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_LONGEST_NGRAM = 3  # words (Lan et al. 2020, ALBERT, section 4.1)

#: What is chosen at a time: a piece, a whole word, or up to three words in a row.
MaskUnit = Literal["token", "word", "ngram"]


class MaskDraws(Protocol):
    """A source of randomness for a batch of b examples."""

    def order(self, words: npt.NDArray[np.int64], width: int, /) -> npt.NDArray[np.int64]:
        """The numbers of words [b] -> [b, width]: in each row its words in random order, then anything below width."""
        ...

    def fates(self, picks: npt.NDArray[np.int64], /) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """picks [b, s] (which pick chose a piece; -1: none) -> numbers in [0, 1) and replacing ids, both [b, s]."""
        ...

    def spans(self, width: int, longest: int, /) -> npt.NDArray[np.int64]:
        """[b, width]: how many words, up to `longest`, each pick is to take; n of them as often as 1 / n says."""
        ...


@dataclass(frozen=True)
class MaskRules:
    """How much is masked, and what masking has to know of the vocabulary."""

    masked_lm_prob: float
    max_predictions_per_seq: int
    mask_id: int
    never_masked: tuple[int, ...]
    vocab_size: int
    #: [vocab] whether a piece goes on with a word; None: every piece stands for itself
    continuation: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    longest_ngram: int = 1  # words in a row that are chosen together


class Masked(NamedTuple):
    """What became of a batch: p = max_predictions_per_seq, of which a row uses the first counts; zeros behind."""

    input_ids: np.ndarray  # [b, s]
    positions: npt.NDArray[np.int64]  # [b, p], ascending
    labels: npt.NDArray[np.int64]  # [b, p]
    counts: npt.NDArray[np.int64]  # [b]


def mask_rules(
    pieces: Sequence[str], masked_lm_prob: float, max_predictions_per_seq: int, unit: MaskUnit = "token"
) -> MaskRules:
    """The rules for a vocabulary, given in the order of its ids."""
    continuation = None if unit == "token" else np.array([piece.startswith("##") for piece in pieces])
    return MaskRules(
        masked_lm_prob=masked_lm_prob,
        max_predictions_per_seq=max_predictions_per_seq,
        mask_id=pieces.index(MASK),
        never_masked=(pieces.index(CLS), pieces.index(SEP)),
        vocab_size=len(pieces),
        continuation=continuation,
        longest_ngram=_LONGEST_NGRAM if unit == "ngram" else 1,
    )


def mask_batch(input_ids: np.ndarray, lengths: npt.NDArray[np.int64], draws: MaskDraws, rules: MaskRules) -> Masked:
    """Mask the first lengths [b] ids of each row of input_ids [b, s]; what is given is left as it is."""
    maskable = np.arange(input_ids.shape[1]) < lengths[:, None]  # [b, s]
    for special in rules.never_masked:
        maskable &= input_ids != special
    word = np.cumsum(_begins(input_ids, maskable, rules), axis=1) - 1  # [b, s]: the number of each piece's word
    picks = _picks(word, maskable, _budget(lengths, rules), draws, rules.longest_ngram)
    chosen = picks >= 0
    unit, replacement = draws.fates(picks)
    masked = np.where(chosen & (unit < _MASKED), rules.mask_id, input_ids)
    masked = np.where(chosen & (unit >= _KEPT), replacement, masked).astype(input_ids.dtype)

    rows, columns = np.nonzero(chosen)
    counts = chosen.sum(axis=1)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((len(input_ids), rules.max_predictions_per_seq), np.int64)
    labels = np.zeros_like(positions)
    positions[rows, slots] = columns
    labels[rows, slots] = input_ids[rows, columns]
    return Masked(masked, positions, labels, counts)


def _budget(lengths: npt.NDArray[np.int64], rules: MaskRules) -> npt.NDArray[np.int64]:
    """How many pieces of each row are to be chosen, [CLS] and [SEP] counted in its length as BERT counts them."""
    share = np.rint(lengths * rules.masked_lm_prob).astype(np.int64)  # halves to even, like round()
    return np.minimum(rules.max_predictions_per_seq, np.maximum(1, share))


def _begins(input_ids: np.ndarray, maskable: npt.NDArray[np.bool_], rules: MaskRules) -> npt.NDArray[np.bool_]:
    """[b, s]: where a word begins. A "##" piece behind [SEP] belongs to the word before it, as in BERT's own code."""
    if rules.continuation is None:
        return maskable
    first = maskable & (np.cumsum(maskable, axis=1) == 1)
    return maskable & (first | ~rules.continuation[input_ids])


def _picks(
    word: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    budget: npt.NDArray[np.int64],
    draws: MaskDraws,
    longest: int,
) -> npt.NDArray[np.int64]:
    """[b, s]: which pick chose a piece, or -1. Words come in random order; one that is too long is passed over.

    A pick of several words takes the one that came and those behind it, up to the first that is not free, does not fit
    or stands behind a [SEP].
    """
    rows, width = np.arange(len(word)), word.shape[1]
    words = word[:, -1] + 1  # [b]
    numbered = (word + rows[:, None] * width)[maskable]
    sizes = np.bincount(numbered, minlength=word.size).reshape(word.shape)  # [b, s]: pieces of each word
    order = draws.order(words, width)
    spans = draws.spans(width, longest) if longest > 1 else np.ones_like(order)
    follows = _follows(word, maskable) if longest > 1 else maskable
    pick = np.full(word.shape, -1)  # [b, s]: by word
    taken = np.zeros_like(budget)
    for turn in range(int(words.max(initial=0))):
        first = order[:, turn]
        fits = turn < words
        for place in range(longest):
            candidate = np.minimum(first + place, width - 1)
            size = sizes[rows, candidate]
            fits = fits & (first + place < words) & (place < spans[:, turn]) & (taken + size <= budget)
            if longest > 1:
                fits &= (pick[rows, candidate] < 0) & (follows[rows, candidate] | (place == 0))
            pick[rows[fits], candidate[fits]] = turn
            taken += size * fits
        if (taken == budget).all():
            break
    return np.where(maskable, np.take_along_axis(pick, np.maximum(word, 0), axis=1), -1)


def _follows(word: npt.NDArray[np.int64], maskable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[b, s]: by word, whether it stands right behind the one before it."""
    found = np.zeros_like(maskable)
    begins = maskable[:, 1:] & maskable[:, :-1] & (word[:, 1:] > word[:, :-1])
    rows, columns = np.nonzero(begins)
    found[rows, word[rows, columns + 1]] = True
    return found


class KeyedMaskDraws:
    """Draws that depend on an example's own key and on nothing else in the batch."""

    def __init__(self, keys: npt.NDArray[np.uint64], vocab_size: int) -> None:
        """`keys` [b], such as mixed(seed, epoch, example)."""
        self._keys, self._vocab_size = keys[:, None], np.uint64(vocab_size)

    def order(self, words: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        bits = mixed(self._keys, 1, np.arange(width))
        return np.argsort(np.where(np.arange(width) < words[:, None], bits, _LAST), axis=1)

    def fates(self, picks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        bits = mixed(self._keys, 2, np.arange(picks.shape[1]))
        unit = (bits >> np.uint64(32)) / 2**32
        replacement = ((bits & np.uint64(0xFFFFFFFF)) * self._vocab_size) >> np.uint64(32)
        return unit, replacement.astype(np.int64)

    def spans(self, width: int, longest: int) -> npt.NDArray[np.int64]:
        shares = np.cumsum(1 / np.arange(1, longest + 1))  # p(n) is proportional to 1 / n
        unit = (mixed(self._keys, 3, np.arange(width)) >> np.uint64(11)) / 2**53
        return 1 + np.searchsorted(shares / shares[-1], unit, side="right")
