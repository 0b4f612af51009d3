"""Scores that a model must exceed: those of a unigram model on masked pieces, and of a constant answer on pairs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.text.tokenizer import CLS, MASK, PAD, SEP
from cloze.training.model.batch_totals import Totals
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.example_arrays import ExampleArrays, unmasked_ids

_COUNTED_EXAMPLES = 16_384  # to estimate piece frequencies: two million pieces at length 128
_NEVER_MASKED = (PAD, CLS, SEP, MASK)


class Baseline(NamedTuple):
    """The score of a trivial prediction: mean loss in nats, and accuracy."""

    loss: float
    accuracy: float


def constant_baseline(ones: float, total: float) -> Baseline:
    """The best constant prediction of `total` binary labels, of which `ones` are 1.

    The loss is the entropy of the labels: that of always predicting their frequencies. The accuracy is that of always
    predicting the more frequent label.
    """
    frequencies = [frequency for frequency in (ones / total, 1 - ones / total) if frequency]
    # log(1 / f) rather than -log(f): with one label only, the loss is 0.0 and not -0.0
    return Baseline(sum(frequency * math.log(1 / frequency) for frequency in frequencies), max(frequencies))


def training_counts(train: ExampleDataset, pieces: Sequence[str]) -> NDArray[np.int64]:
    """`count_pieces` of some 16,000 training examples: evenly spaced row groups, the same for any seed, worker and
    attempt."""
    return count_pieces(train.evenly_spaced(_COUNTED_EXAMPLES), pieces)


def unigram_baseline(counts: NDArray[np.int64], heldout: Sequence[ExampleArrays]) -> Baseline:
    """The score of a unigram model on the masked pieces of the held-out examples.

    It predicts the same distribution at every mask: that of the `counts` of the pieces in training, with add-one
    smoothing over the vocabulary.
    """
    return score_unigram(counts, np.concatenate([arrays.masks.labels.values for arrays in heldout if arrays.masks]))


def count_pieces(examples: ExampleArrays, pieces: Sequence[str]) -> NDArray[np.int64]:
    """How often each piece of the vocabulary occurs in the examples before masking: [vocab].

    -1 for the pieces that are never masked.
    """
    counts = np.bincount(unmasked_ids(examples), minlength=len(pieces))
    counts[[pieces.index(piece) for piece in _NEVER_MASKED]] = -1
    return counts


def score_unigram(counts: NDArray[np.int64], labels: Ints) -> Baseline:
    """The score of the unigram model with these counts; of equally frequent pieces it predicts the first."""
    smoothed = counts + 1
    loss = np.log(smoothed.sum()) - np.log(smoothed[labels]).mean()
    return Baseline(float(loss), float((labels == smoothed.argmax()).mean()))


def baseline_metrics(totals: Totals, unigram: Baseline) -> dict[str, float]:
    """Metrics of a held-out row: each mean's baseline as `<name>_baseline`, and the counts for them.

    The counts are the masked pieces, the pairs, the pairs labelled 1 and the pairs predicted as 1, and the choices
    between a true piece and a distractor, whose baseline is chance.
    """
    means = {"mlm_loss": unigram.loss, "mlm_accuracy": unigram.accuracy}
    counts = {"masked": int(totals.masked)}
    if totals.labels:
        constant = constant_baseline(totals.labels_1, totals.labels)
        means |= {"nsp_loss": constant.loss, "nsp_accuracy": constant.accuracy}
        counts |= {"pairs": int(totals.labels), "pairs_1": int(totals.labels_1), "answers_1": int(totals.answers_1)}
    if totals.choices:
        means["choice_accuracy"] = 0.5
        counts["choices"] = int(totals.choices)
    means = {"loss": means["mlm_loss"] + means.get("nsp_loss", 0.0)} | means
    return {f"{name}_baseline": value for name, value in means.items()} | counts
