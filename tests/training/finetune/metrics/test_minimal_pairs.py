"""Minimal pairs: which of two sentences is more probable."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.training.finetune.metrics.minimal_pairs import pair_accuracy


def test_a_pair_is_correct_when_the_acceptable_sentence_is_more_probable_and_a_tie_is_wrong():
    assert pair_accuracy([-10.0, -20.0, -30.0, -40.0], [-11.0, -19.0, -30.0, -math.inf]).value == 2 / 4


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), min_size=1))
def test_the_accuracies_of_both_sides_and_of_ties_sum_to_one(pairs):
    acceptable, unacceptable = zip(*pairs, strict=True)
    ties = sum(left == right for left, right in pairs) / len(pairs)
    found, swapped = pair_accuracy(acceptable, unacceptable), pair_accuracy(unacceptable, acceptable)
    assert found.value + swapped.value + ties == pytest.approx(1)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_pairs_require_a_score_for_both_sentences():
    with pytest.raises(ValueError, match="1 scores of unacceptable sentences for 2 scores of acceptable sentences"):
        pair_accuracy([1, 2], [1])
    with pytest.raises(ValueError, match="there must be one"):
        pair_accuracy([], [])
    with pytest.raises(ValueError, match="pair 1 has the scores nan and 2"):
        pair_accuracy([1, math.nan], [1, 2])
