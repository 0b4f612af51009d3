"""Metrics of several labels at once against scikit-learn's and values computed by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.training.finetune.metrics.estimates import Estimate
from cloze.training.finetune.metrics.multilabel import exact_match, macro_f1, micro_f1

METRICS = (exact_match, micro_f1, macro_f1)


def test_exact_match_requires_all_labels_and_no_others():
    labels = [{"a"}, {"a", "b"}, {"b"}, set()]
    assert exact_match(labels, [["a"], ["b", "a"], ["b", "a"], []]).value == 3 / 4


def test_micro_f1_counts_labels_and_macro_f1_averages_over_them():
    labels, predictions = [{"a"}, {"a", "b"}, {"a"}], [{"a"}, {"a"}, {"b"}]
    assert micro_f1(labels, predictions).value == pytest.approx(2 * 2 / (4 + 3))
    assert macro_f1(labels, predictions).value == pytest.approx((2 * 2 / (3 + 2) + 0) / 2)


def test_metrics_equal_those_of_scikit_learn():
    from sklearn import metrics
    from sklearn.preprocessing import MultiLabelBinarizer

    draw = random.Random(0)
    for _ in range(50):
        names = range(draw.randint(1, 8))
        labels = [{name for name in names if draw.random() < 0.3} for _ in range(draw.randint(1, 60))]
        predictions = [{name for name in names if draw.random() < (0.8 if name in true else 0.1)} for true in labels]
        binarizer = MultiLabelBinarizer().fit([*labels, *predictions])
        if len(binarizer.classes_) < 2:  # scikit-learn takes one column for two classes
            continue
        true, predicted = binarizer.transform(labels), binarizer.transform(predictions)
        assert exact_match(labels, predictions).value == pytest.approx(metrics.accuracy_score(true, predicted))
        for metric, average in ((micro_f1, "micro"), (macro_f1, "macro")):
            expected = metrics.f1_score(true, predicted, average=average, zero_division=0)
            assert metric(labels, predictions).value == pytest.approx(expected)


SETS = st.lists(st.tuples(st.frozensets(st.integers(0, 4)), st.frozensets(st.integers(0, 4))), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(SETS, st.randoms())
def test_scores_are_bounded_within_their_intervals_and_ignore_the_order(pairs, draw):
    for metric in METRICS:
        found = metric(*zip(*pairs, strict=True))
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert metric(*zip(*draw.sample(pairs, len(pairs)), strict=True)) == pytest.approx(found)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 4), min_size=1), min_size=1, max_size=30))
def test_perfect_predictions_score_one(labels):
    assert [metric(labels, labels).value for metric in METRICS] == [1, 1, 1]


def test_f1_is_undefined_where_no_label_occurs():
    assert micro_f1([set(), set()], [set(), set()]) == macro_f1([set()], [set()]) == Estimate(0, 0, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_require_one_prediction_for_each_set(metric):
    with pytest.raises(ValueError, match="1 predictions for 2 sets of labels"):
        metric([{1}, {2}], [{1}])
    with pytest.raises(ValueError, match="0 predictions for 0 sets of labels"):
        metric([], [])
