"""Piece counts and held-out examples -> a distractor for each mask: is the true piece more likely than another one?

A loss mostly shows how well a model knows the frequencies of pieces. This choice shows what it makes of the context: at
a mask, its logit of the true piece is compared with that of one distractor, which is about as frequent.

Chance is 0.5, as true piece and distractor are exchangeable. A distractor is drawn evenly from the neighbours in the
ranking by frequency, and b is a neighbour of a whenever a is one of b. What is drawn is used with
probability min(1, f(b) / f(a)), where f are the training frequencies: the acceptance of Metropolis et al. (1953). So
"a is true, b the distractor" is as frequent as the reverse, f(a) min(1, f(b) / f(a)) = min(f(a), f(b)). A model that
does not look at the context prefers the same one of the two wherever they meet, and is right half of the time. This
holds as far as the held-out text has the training frequencies, from which it differs by chance, more if it is small or
of another kind.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS
from cloze.training.pretrain.example_arrays import ExampleArrays

_NEIGHBOURS = 4  # ranks on each side
_SEED = 0  # the same distractors in every run


class Distractors:
    """Draws the distractors of masks. A draw depends on the example and the position of the mask alone."""

    def __init__(self, counts: NDArray[np.int64], pieces: Sequence[str]) -> None:
        """`counts` [vocab]: how often each piece occurs in the training examples. Pieces without a positive count and
        special tokens are in no pair."""
        is_used = counts > 0
        is_used[[pieces.index(token) for token in SPECIAL_TOKENS]] = False
        used = np.flatnonzero(is_used)
        self._ranked = used[np.argsort(-counts[used], kind="stable")]  # ids, the most frequent first
        self._ranks = np.full(len(counts), -1)
        self._ranks[self._ranked] = np.arange(len(used))
        self._counts = counts

    def of_masks(self, examples: ExampleArrays) -> NDArray[np.int64]:
        """The distractor of each stored mask [n], in the order of the masks' labels; IGNORE_INDEX where there is
        none."""
        assert examples.masks, "only held-out examples, whose masks are stored, have distractors"
        positions, labels = examples.masks
        return self._draw(labels.values, np.repeat(examples.index, positions.lengths), positions.values)

    def _draw(self, labels: Ints, example: Ints, position: Ints) -> NDArray[np.int64]:
        """All are [n]: the true pieces, and the two numbers that key their draws."""
        bits = hash64(_SEED, example, position)
        step = ((bits >> np.uint64(32)) % np.uint64(2 * _NEIGHBOURS)).astype(np.int64) - _NEIGHBOURS
        rank = self._ranks[labels] + step + (step >= 0)  # never the piece itself
        exists = (self._ranks[labels] >= 0) & (rank >= 0) & (rank < len(self._ranked))
        chosen, uniform = self._ranked[rank[exists]], (bits[exists] & np.uint64(0xFFFFFFFF)) / 2**32
        accepted = uniform * self._counts[labels[exists]] < self._counts[chosen]
        distractors = np.full(len(labels), IGNORE_INDEX, np.int64)
        distractors[exists] = np.where(accepted, chosen, IGNORE_INDEX)
        return distractors
