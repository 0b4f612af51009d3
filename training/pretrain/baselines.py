"""examples to train on -> how frequent each piece is, and what knowing that alone scores on held-out masked pieces."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.text.tokenizer import CLS, MASK, PAD, SEP
from cloze.training.model.totals import Totals
from cloze.training.pretrain.data_loader import Examples, Rows, unmasked


class Baseline(NamedTuple):
    """What is scored without a model: the mean loss in nats, the share that is right."""

    loss: float
    accuracy: float


def constant_baseline(ones: float, total: float) -> Baseline:
    """The best constant answer to labels of which `ones` are 1 and the others 0: the entropy of the labels is the loss
    of the one probability that has the least, the majority's share is the accuracy of the one label."""
    shares = [share for share in (ones / total, 1 - ones / total) if share]
    return Baseline(sum(share * math.log(1 / share) for share in shares), max(shares))  # 0.0, not -0.0, of one label


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


def baselines(totals: Totals, unigram: Baseline) -> dict[str, float]:
    """What is scored without a model on the held-out examples of `totals`, by the names of their means and _baseline;
    how many masked pieces and pairs these are, how many pairs are labelled 1, how many answered with 1."""
    found = {"mlm_loss": unigram.loss, "mlm_accuracy": unigram.accuracy}
    counts = {"masked": int(totals.masked)}
    if totals.labels:
        constant = constant_baseline(totals.labels_1, totals.labels)
        found |= {"nsp_loss": constant.loss, "nsp_accuracy": constant.accuracy}
        counts |= {"pairs": int(totals.labels), "pairs_1": int(totals.labels_1), "answers_1": int(totals.answers_1)}
    found = {"loss": found["mlm_loss"] + found.get("nsp_loss", 0.0)} | found
    return {f"{name}_baseline": value for name, value in found.items()} | counts
