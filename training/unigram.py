"""examples to train on -> how frequent each piece is, and what knowing that alone scores on held-out masked pieces."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.tokenizer import CLS, MASK, PAD, SEP
from training.data import Examples, Ints, Rows, unmasked
from training.metrics import Baseline

_COUNTED = 16_384  # examples whose pieces are counted: two million at length 128
_NEVER_NAMED = (PAD, CLS, SEP, MASK)  # no position that holds one of them is masked


def unigram_baseline(train: Examples, heldout: Sequence[Rows], pieces: Sequence[str]) -> Baseline:
    """What a unigram model scores on the masked pieces of the held-out examples: loss in nats a masked piece.

    It gives every masked position the same distribution, in which a piece has its share of the pieces of some 16,000
    examples to train on (add-one smoothing over the vocabulary `pieces`), and names the most frequent one. The
    examples are whole row groups, evenly spread over the files: the same for any seed, worker and attempt.
    """
    labels = np.concatenate([rows.masks.labels.values for rows in heldout if rows.masks])
    return score(piece_counts(train.spread(_COUNTED), pieces), labels)


def piece_counts(rows: Rows, pieces: Sequence[str]) -> NDArray[np.int64]:
    """How often each piece of the vocabulary stands in the rows, before anything was masked; [vocab].

    -1 for the pieces that are never masked.
    """
    counts = np.bincount(unmasked(rows), minlength=len(pieces))
    counts[[pieces.index(piece) for piece in _NEVER_NAMED]] = -1
    return counts


def score(counts: NDArray[np.int64], labels: Ints) -> Baseline:
    """The unigram model of these counts on masked pieces; of equally frequent ones it names the first."""
    smoothed = counts + 1
    loss = np.log(smoothed.sum()) - np.log(smoothed[labels]).mean()
    return Baseline(float(loss), float((labels == smoothed.argmax()).mean()))
