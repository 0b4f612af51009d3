"""Scores against values computed by hand, printed in the literature, and computed by scikit-learn and SciPy."""

import random

import pytest

from cloze.training.finetune import scores

LABELS = ["a", "a", "a", "a", "b", "b", "c"]
PREDICTIONS = ["a", "a", "b", "c", "b", "a", "c"]


def test_accuracy_is_the_fraction_of_correct_predictions():
    assert scores.accuracy(LABELS, PREDICTIONS) == pytest.approx(4 / 7)


def test_accuracy_requires_one_prediction_for_each_label():
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        scores.accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 predictions for 0 labels"):
        scores.accuracy([], [])


def test_macro_f1_weighs_every_class_alike():
    a, b, c = 2 * 2 / (4 + 3), 2 * 1 / (2 + 2), 2 * 1 / (1 + 2)
    assert scores.macro_f1(LABELS, PREDICTIONS) == pytest.approx((a + b + c) / 3)


def test_macro_f1_counts_a_class_that_was_only_predicted():
    assert scores.macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)


def test_matthews_of_two_classes_is_the_phi_coefficient():
    # tp 6, fn 2, fp 1, tn 3: (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5)
    labels = [1] * 8 + [0] * 4
    predictions = [1] * 6 + [0] * 2 + [1] + [0] * 3
    assert scores.matthews(labels, predictions) == pytest.approx(16 / 1120**0.5)


def test_matthews_is_one_when_all_is_correct_and_minus_one_when_all_is_wrong():
    assert scores.matthews(LABELS, LABELS) == pytest.approx(1)
    assert scores.matthews([0, 1, 0, 1], [1, 0, 1, 0]) == pytest.approx(-1)


def test_matthews_is_zero_when_one_class_is_predicted_throughout():
    assert scores.matthews([0, 1, 1], [1, 1, 1]) == 0


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_returns_the_intervals_of_newcombe_1998(successes: int, total: int, low: float, high: float):
    # Statistics in Medicine 17, table I, method 3
    assert scores.wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_within_zero_and_one():
    assert scores.wilson(5, 5)[1] == 1
    assert scores.wilson(0, 5)[0] == 0
    with pytest.raises(ValueError, match="6 of 5"):
        scores.wilson(6, 5)


@pytest.mark.filterwarnings("ignore")  # one class only
def test_scores_agree_with_scikit_learn_and_scipy():
    from scipy.stats import binomtest
    from sklearn import metrics

    draw = random.Random(0)
    for _ in range(200):
        names = "abcdefghij"[: draw.randint(2, 10)]
        labels = draw.choices(names, k=draw.randint(1, 300))
        predictions = [draw.choice([label, label, draw.choice(names)]) for label in labels]
        assert scores.accuracy(labels, predictions) == metrics.accuracy_score(labels, predictions)
        assert scores.matthews(labels, predictions) == metrics.matthews_corrcoef(labels, predictions)
        macro_f1 = metrics.f1_score(labels, predictions, average="macro", zero_division=0)
        assert scores.macro_f1(labels, predictions) == pytest.approx(macro_f1, rel=1e-14)
        correct = scores.correct(labels, predictions)
        interval = binomtest(correct, len(labels)).proportion_ci(method="wilson")
        assert scores.wilson(correct, len(labels)) == pytest.approx(tuple(interval), rel=1e-12, abs=1e-15)


def test_majority_uses_the_train_labels_only():
    assert scores.majority(["x", "y", "y"], 2) == ["y", "y"]
    assert scores.majority(["y", "x"], 1) == ["x"]
