"""Classification metrics against values computed by hand and by scikit-learn."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.training.finetune.metrics import classification
from cloze.training.finetune.metrics.estimates import Estimate, wilson

LABELS = ["a", "a", "a", "a", "b", "b", "c"]
PREDICTIONS = ["a", "a", "b", "c", "b", "a", "c"]


def test_accuracy_is_the_fraction_of_correct_predictions():
    assert classification.accuracy(LABELS, PREDICTIONS).value == pytest.approx(4 / 7)


def test_accuracy_requires_one_prediction_for_each_label():
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        classification.accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 predictions for 0 labels"):
        classification.accuracy([], [])


def test_macro_f1_weighs_every_class_alike():
    a, b, c = 2 * 2 / (4 + 3), 2 * 1 / (2 + 2), 2 * 1 / (1 + 2)
    assert classification.macro_f1(LABELS, PREDICTIONS).value == pytest.approx((a + b + c) / 3)


def test_macro_f1_counts_a_class_that_was_only_predicted():
    assert classification.macro_f1(["a", "a"], ["a", "b"]).value == pytest.approx((2 / 3 + 0) / 2)


def test_matthews_of_two_classes_is_the_phi_coefficient():
    # tp 6, fn 2, fp 1, tn 3: (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5)
    labels = [1] * 8 + [0] * 4
    predictions = [1] * 6 + [0] * 2 + [1] + [0] * 3
    assert classification.matthews(labels, predictions).value == pytest.approx(16 / 1120**0.5)


def test_matthews_is_one_when_all_is_correct_and_minus_one_when_all_is_wrong():
    assert classification.matthews(LABELS, LABELS).value == pytest.approx(1)
    assert classification.matthews([0, 1, 0, 1], [1, 0, 1, 0]).value == pytest.approx(-1)


def test_matthews_is_zero_when_one_class_is_predicted_throughout():
    assert classification.matthews([0, 1, 1], [1, 1, 1]).value == 0


@pytest.mark.filterwarnings("ignore")  # one class only
def test_metrics_equal_those_of_scikit_learn():
    from sklearn import metrics

    draw = random.Random(0)
    for _ in range(100):
        names = "abcdefghij"[: draw.randint(2, 10)]
        labels = draw.choices(names, k=draw.randint(1, 300))
        predictions = [draw.choice([label, label, draw.choice(names)]) for label in labels]
        assert classification.accuracy(labels, predictions).value == metrics.accuracy_score(labels, predictions)
        assert classification.matthews(labels, predictions).value == metrics.matthews_corrcoef(labels, predictions)
        scores = metrics.f1_score(labels, predictions, labels=sorted({*labels, *predictions}), average=None)
        assert classification.macro_f1(labels, predictions).value == pytest.approx(scores.mean(), rel=1e-14)
        first = min(*labels, *predictions)
        assert classification.f1(labels, predictions, first).value == pytest.approx(scores[0], rel=1e-14)


def test_f1_is_that_of_the_positive_label():
    labels, predictions = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert classification.f1(labels, predictions, 1).value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert classification.f1(labels, predictions, 0).value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_the_interval_of_f1_is_that_of_the_proportion_from_which_it_follows():
    # 2 true positives among the 4 examples that are positive or predicted so
    low, high = wilson(2, 4)
    found = classification.f1([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 1)
    assert found[1:] == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert classification.f1([1] * 10, [1] * 10, 1).low < 0.9  # a bootstrap would have no width


def test_undefined_scores_are_zero_within_the_whole_range():
    assert classification.f1(["a", "a"], ["a", "a"], "b") == Estimate(0, 0, 1)
    assert classification.matthews([0, 1, 1], [1, 1, 1]) == Estimate(0, -1, 1)
    assert classification.matthews([1, 1, 1], [0, 1, 1]) == Estimate(0, -1, 1)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "matthews"])
def test_metrics_require_one_prediction_for_each_label(name: str):
    metric = getattr(classification, name)
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 predictions for 0 labels"):
        metric([], [])
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        classification.f1([0, 1], [0, 1, 1], 1)


def metrics_of(labels: list[int], predictions: list[int]) -> list[Estimate]:
    return [
        classification.accuracy(labels, predictions),
        classification.f1(labels, predictions, 1),
        classification.macro_f1(labels, predictions),
        classification.matthews(labels, predictions),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.randoms())
def test_scores_are_bounded_within_their_intervals_and_ignore_the_order(pairs: list[tuple[int, int]], draw):
    found = metrics_of(*map(list, zip(*pairs, strict=True)))
    for score, lowest in zip(found, (0, 0, 0, -1), strict=True):
        assert lowest - 1e-12 <= score.low <= score.value <= score.high <= 1 + 1e-12
    shuffled = draw.sample(pairs, len(pairs))
    for score, other in zip(found, metrics_of(*map(list, zip(*shuffled, strict=True))), strict=True):
        assert score == pytest.approx(other, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_perfect_predictions_score_one(labels: list[int]):
    labels = [*labels, 0, 1]
    assert [score.value for score in metrics_of(labels, labels)] == pytest.approx([1, 1, 1, 1])


def test_intervals_cover_the_true_score_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    joint = np.array([0.5, 0.1, 0.1, 0.3])  # (label, prediction): (0, 0), (0, 1), (1, 0), (1, 1)
    truth = [0.8, 0.75, (10 / 12 + 0.75) / 2, (0.15 - 0.01) / (0.6 * 0.4)]
    covered = np.zeros(4)
    for _ in range(300):
        cells = generator.choice(4, 200, p=joint)
        found = metrics_of((cells // 2).tolist(), (cells % 2).tolist())
        covered += [score.low <= true <= score.high for score, true in zip(found, truth, strict=True)]
    assert (covered >= 0.91 * 300).all() and (covered <= 0.99 * 300).all()


def test_400_000_examples_are_scored_within_seconds():
    draw = random.Random(0)
    labels = draw.choices(range(3), k=400_000)
    predictions = [label if draw.random() < 0.85 else 0 for label in labels]
    found = metrics_of(labels, predictions)
    assert all(score.high - score.low < 0.005 for score in found)


def test_arrays_are_scored_as_lists_are_and_results_are_plain_floats():
    labels, predictions = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    found = metrics_of(labels, predictions)
    assert found == metrics_of(labels.tolist(), predictions.tolist())
    assert {type(number) for score in found for number in score} == {float}
