"""A batch of token ids -> ids with [MASK] in place of some, and the original ids as labels: BERT's masked LM.

15 % of an example's pieces are chosen, at least one. Of these, 80 % become [MASK], 10 % a random piece, and 10 % stay
(Devlin et al. 2019, section 3.1). Pieces, whole words or n-grams of words are chosen. The randomness is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.text.tokenizer import CLS, MASK, SEP

_MASKED, _KEPT = 0.8, 0.9  # a chosen piece is masked below 0.8, kept from 0.8 to 0.9, replaced above
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_LONGEST_NGRAM = 3  # words (Lan et al. 2020, ALBERT, section 4.1)

#: The unit that is chosen: a piece, a whole word, or up to three consecutive words.
MaskUnit = Literal["token", "word", "ngram"]


class MaskDraws(Protocol):
    """Random draws for a batch of b examples."""

    def word_order(self, words: npt.NDArray[np.int64], width: int, /) -> npt.NDArray[np.int64]:
        """Numbers of words [b] -> [b, width]: each row's word indices in random order, then any values below width."""
        ...

    def replacements(self, choices: npt.NDArray[np.int64], /) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """choices [b, s] (each piece's choice; -1: none) -> uniform numbers in [0, 1) and random ids, both [b, s]."""
        ...

    def span_lengths(self, width: int, longest: int, /) -> npt.NDArray[np.int64]:
        """[b, width]: the number of words n of each choice, up to `longest`, with p(n) proportional to 1 / n."""
        ...


@dataclass(frozen=True)
class MaskRules:
    """The amount of masking, and what masking needs of the vocabulary."""

    masked_lm_prob: float
    max_predictions_per_seq: int
    mask_id: int
    never_masked: tuple[int, ...]
    vocab_size: int
    #: [vocab] whether a piece continues a word; None: pieces are chosen one by one
    continuation: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    longest_ngram: int = 1  # consecutive words that are chosen together


class MaskedBatch(NamedTuple):
    """A batch with masks. p = max_predictions_per_seq; a row uses the first `counts` of these, the rest is zero."""

    input_ids: np.ndarray  # [b, s]
    positions: npt.NDArray[np.int64]  # [b, p], ascending
    labels: npt.NDArray[np.int64]  # [b, p]
    counts: npt.NDArray[np.int64]  # [b]


def mask_rules(
    pieces: Sequence[str], masked_lm_prob: float, max_predictions_per_seq: int, unit: MaskUnit = "token"
) -> MaskRules:
    """Returns the rules for a vocabulary, whose pieces are in the order of their ids."""
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


def mask_batch(
    input_ids: np.ndarray, lengths: npt.NDArray[np.int64], draws: MaskDraws, rules: MaskRules
) -> MaskedBatch:
    """Mask each row of input_ids [b, s] within its length [b]. The arguments are not changed."""
    maskable = np.arange(input_ids.shape[1]) < lengths[:, None]  # [b, s]
    for special in rules.never_masked:
        maskable &= input_ids != special
    word = np.cumsum(_word_starts(input_ids, maskable, rules), axis=1) - 1  # [b, s]: the index of each piece's word
    choices = _choose_pieces(word, maskable, _num_predictions(lengths, rules), draws, rules.longest_ngram)
    chosen = choices >= 0
    uniform, replacement = draws.replacements(choices)
    masked = np.where(chosen & (uniform < _MASKED), rules.mask_id, input_ids)
    masked = np.where(chosen & (uniform >= _KEPT), replacement, masked).astype(input_ids.dtype)

    rows, columns = np.nonzero(chosen)
    counts = chosen.sum(axis=1)
    slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.zeros((len(input_ids), rules.max_predictions_per_seq), np.int64)
    labels = np.zeros_like(positions)
    positions[rows, slots] = columns
    labels[rows, slots] = input_ids[rows, columns]
    return MaskedBatch(masked, positions, labels, counts)


def _num_predictions(lengths: npt.NDArray[np.int64], rules: MaskRules) -> npt.NDArray[np.int64]:
    """Returns the number of pieces to choose in each row [b]. As in BERT, its length includes [CLS] and [SEP]."""
    expected = np.rint(lengths * rules.masked_lm_prob).astype(np.int64)  # rounds halves to even, like round()
    return np.minimum(rules.max_predictions_per_seq, np.maximum(1, expected))


def _word_starts(input_ids: np.ndarray, maskable: npt.NDArray[np.bool_], rules: MaskRules) -> npt.NDArray[np.bool_]:
    """[b, s]: whether a word begins. A "##" piece after [SEP] belongs to the word before it, as in BERT's own code."""
    if rules.continuation is None:
        return maskable
    first = maskable & (np.cumsum(maskable, axis=1) == 1)
    return maskable & (first | ~rules.continuation[input_ids])


def _choose_pieces(
    word: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    num_predictions: npt.NDArray[np.int64],
    draws: MaskDraws,
    longest: int,
) -> npt.NDArray[np.int64]:
    """[b, s]: the index of the choice that took a piece, or -1.

    Words are tried in random order; one with too many pieces is skipped. A choice of several words takes consecutive
    words, up to the first that is taken already, has too many pieces or follows a [SEP].
    """
    rows, width = np.arange(len(word)), word.shape[1]
    words = word[:, -1] + 1  # [b]
    numbered = (word + rows[:, None] * width)[maskable]
    sizes = np.bincount(numbered, minlength=word.size).reshape(word.shape)  # [b, s]: the number of pieces of each word
    order = draws.word_order(words, width)
    spans = draws.span_lengths(width, longest) if longest > 1 else np.ones_like(order)
    adjacent = _adjacent_to_previous(word, maskable) if longest > 1 else maskable
    choice_of_word = np.full(word.shape, -1)  # [b, s]
    taken = np.zeros_like(num_predictions)
    for choice in range(int(words.max(initial=0))):
        first = order[:, choice]
        fits = choice < words
        for offset in range(longest):
            candidate = np.minimum(first + offset, width - 1)
            size = sizes[rows, candidate]
            fits = fits & (first + offset < words) & (offset < spans[:, choice]) & (taken + size <= num_predictions)
            if longest > 1:
                fits &= (choice_of_word[rows, candidate] < 0) & (adjacent[rows, candidate] | (offset == 0))
            choice_of_word[rows[fits], candidate[fits]] = choice
            taken += size * fits
        if (taken == num_predictions).all():
            break
    return np.where(maskable, np.take_along_axis(choice_of_word, np.maximum(word, 0), axis=1), -1)


def _adjacent_to_previous(word: npt.NDArray[np.int64], maskable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[b, s]: for each word, whether it immediately follows the previous one."""
    adjacent = np.zeros_like(maskable)
    begins = maskable[:, 1:] & maskable[:, :-1] & (word[:, 1:] > word[:, :-1])
    rows, columns = np.nonzero(begins)
    adjacent[rows, word[rows, columns + 1]] = True
    return adjacent


class KeyedMaskDraws:
    """Random draws that depend on each example's key alone, not on the rest of the batch."""

    def __init__(self, keys: npt.NDArray[np.uint64], vocab_size: int) -> None:
        """`keys` [b], such as hash64(seed, epoch, example)."""
        self._keys, self._vocab_size = keys[:, None], np.uint64(vocab_size)

    def word_order(self, words: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        bits = hash64(self._keys, 1, np.arange(width))
        return np.argsort(np.where(np.arange(width) < words[:, None], bits, _LAST), axis=1)

    def replacements(self, choices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        bits = hash64(self._keys, 2, np.arange(choices.shape[1]))
        uniform = (bits >> np.uint64(32)) / 2**32
        replacement = ((bits & np.uint64(0xFFFFFFFF)) * self._vocab_size) >> np.uint64(32)
        return uniform, replacement.astype(np.int64)

    def span_lengths(self, width: int, longest: int) -> npt.NDArray[np.int64]:
        cumulative = np.cumsum(1 / np.arange(1, longest + 1))  # p(n) is proportional to 1 / n
        uniform = (hash64(self._keys, 3, np.arange(width)) >> np.uint64(11)) / 2**53
        return 1 + np.searchsorted(cumulative / cumulative[-1], uniform, side="right")
