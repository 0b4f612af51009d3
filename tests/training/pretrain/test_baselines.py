"""The unigram model of the training examples, scored on held-out masked pieces."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cloze.training.pretrain.baselines import (
    constant_baseline,
    count_pieces,
    score_unigram,
    training_counts,
    unigram_baseline,
)
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.example_arrays import unmasked_ids
from tests.training.small_examples import CLS, MASK, PIECES, SEP, VOCAB_SIZE, examples_artifact

SPECIAL = (0, CLS, SEP, MASK)


@pytest.mark.parametrize("masked", [True, False])
def test_the_baseline_is_the_one_computed_piece_by_piece_whether_masks_are_stored_or_not(
    tmp_path: Path, masked: bool
) -> None:
    artifact = examples_artifact(tmp_path, masked=masked)
    plain = ExampleDataset(examples_artifact(tmp_path / "plain", masked=False), "train")
    counts = Counter(plain.read(np.arange(len(plain._groups))).input_ids.values.tolist())
    total = sum(count for piece, count in counts.items() if piece not in SPECIAL) + VOCAB_SIZE - len(SPECIAL)
    heldout = ExampleDataset(artifact, "heldout").sample(0, 8, 3)
    labels = [
        int(label) for rows in heldout if rows.masks for label in rows.masks.labels.values
    ]  # of the sampled examples only
    most = min((piece for piece in counts if piece not in SPECIAL), key=lambda piece: (-counts[piece], piece))
    found = unigram_baseline(training_counts(ExampleDataset(artifact, "train"), PIECES), heldout)
    assert found.loss == pytest.approx(-sum(math.log((counts[label] + 1) / total) for label in labels) / len(labels))
    assert found.accuracy == labels.count(most) / len(labels)


def test_stored_masks_are_undone(tmp_path: Path) -> None:
    masked, plain = (
        ExampleDataset(examples_artifact(tmp_path / str(stored), masked=stored), "train").evenly_spaced(40)
        for stored in (True, False)
    )
    assert MASK in masked.input_ids.values and MASK not in unmasked_ids(masked)
    assert (unmasked_ids(masked) == unmasked_ids(plain)).all()


def test_counted_examples_are_evenly_spaced_over_all_files(tmp_path: Path) -> None:
    examples = ExampleDataset(examples_artifact(tmp_path, train=160, shards=4), "train")
    assert len(examples.evenly_spaced(1000)) == len(examples) == 160
    some = examples.evenly_spaced(16)
    assert some.index.tolist() == examples.evenly_spaced(16).index.tolist()
    assert len(some) == 16 and {index // 40 for index in some.index.tolist()} == {0, 1, 2, 3}
    assert len(examples.evenly_spaced(1)) == 4  # a row group


def test_unseen_pieces_have_a_probability_and_special_pieces_have_none(tmp_path: Path) -> None:
    counts = count_pieces(ExampleDataset(examples_artifact(tmp_path), "train").evenly_spaced(40), PIECES)
    assert [counts[special] for special in SPECIAL] == [-1] * 4
    unseen = int((counts == 0).argmax())
    assert counts[unseen] == 0 and math.isfinite(score_unigram(counts, np.array([unseen])).loss)
    every = np.flatnonzero(counts >= 0)
    shares = [math.exp(-score_unigram(counts, np.array([piece])).loss) for piece in every]
    assert sum(shares) == pytest.approx(1)


def test_the_best_constant_answer_has_the_accuracy_of_the_majority_and_the_entropy_of_the_labels() -> None:
    loss, accuracy = constant_baseline(375, 640)
    assert accuracy == 375 / 640 == constant_baseline(265, 640).accuracy
    losses = [-(375 * math.log(p) + 265 * math.log(1 - p)) / 640 for p in (i / 640 for i in range(1, 640))]
    assert loss == pytest.approx(min(losses))
    assert constant_baseline(320, 640) == (pytest.approx(math.log(2)), 0.5)
    assert constant_baseline(0, 9) == constant_baseline(9, 9) == (0, 1)
