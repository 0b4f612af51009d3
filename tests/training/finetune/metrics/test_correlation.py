"""Correlations against SciPy's, and their intervals by how often they contain the true correlation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cloze.training.finetune.metrics.correlation import pearson, spearman
from cloze.training.finetune.metrics.estimates import Estimate

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PAIRS = st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=30)


def correlated(count: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x, noise = generator.normal(size=(2, count))
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


@pytest.mark.parametrize("count", [4, 10, 1500])
def test_pearson_and_its_interval_equal_scipys(count: int):
    x, y = correlated(count, 0.8, seed=count)
    expected = stats.pearsonr(x, y)
    interval = expected.confidence_interval(0.95)
    assert pearson(x, y) == pytest.approx((expected.statistic, interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize("count", [4, 10, 1500])
def test_spearman_equals_scipys_also_with_ties(count: int):
    x, y = correlated(count, 0.8, seed=count)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    x = np.round(2 * x) / 2
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_spearmans_interval_is_that_of_bonett_and_wright_2000():
    x, y = correlated(50, 0.6, seed=0)
    found = spearman(x, y)
    margin = 1.959964 * math.sqrt((1 + found.value**2 / 2) / 47)
    expected = [math.tanh(math.atanh(found.value) + sign * margin) for sign in (-1, 1)]
    assert found[1:] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_intervals_cover_the_true_correlation_in_about_95_of_100_samples(metric):
    correlation = 0.8
    truth = correlation if metric is pearson else 6 / math.pi * math.asin(correlation / 2)
    found = [metric(*correlated(60, correlation, seed)) for seed in range(400)]
    covered = np.mean([score.low <= truth <= score.high for score in found])
    assert 0.92 <= covered <= 0.98


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.randoms())
def test_correlations_are_bounded_within_their_intervals_and_ignore_the_order(pairs, draw):
    for metric in (pearson, spearman):
        found = metric(*zip(*pairs, strict=True))
        assert -1 <= found.low <= found.value <= found.high <= 1
        assert metric(*zip(*draw.sample(pairs, len(pairs)), strict=True)).value == pytest.approx(found.value, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=30, unique=True))
def test_a_number_correlates_with_itself_and_against_its_negative(values: list[float]):
    for metric in (pearson, spearman):
        assert metric(values, values).value == pytest.approx(1)
        assert metric(values, [-value for value in values]).value == pytest.approx(-1)


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_spearman_is_unchanged_when_the_numbers_are_replaced_by_their_order(pairs):
    x, y = zip(*pairs, strict=True)
    order = {value: rank for rank, value in enumerate(sorted(set(x)))}
    assert spearman([order[value] for value in x], y) == pytest.approx(spearman(x, y))


def test_pearson_is_exact_for_almost_equal_and_for_very_large_numbers():
    expected = stats.pearsonr([0, 0, 2], [1, 2, 3]).statistic
    assert pearson([1, 1, 1 + 2**-51], [1, 2, 3]).value == pytest.approx(expected)
    assert pearson([0, 0, 1e308], [1, 2, 3]).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_the_correlation_of_a_constant_is_zero_within_the_whole_range(metric):
    undefined = Estimate(0, -1, 1)
    assert metric([1, 2, 3, 4, 5], [0.1] * 5) == metric([0.1] * 5, [1, 2, 3, 4, 5]) == metric([3], [4]) == undefined


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_the_interval_of_fewer_than_four_examples_is_the_whole_range(metric):
    found = metric([1, 2, 3], [1, 2, 3.5])
    assert found.value > 0.9 and found[1:] == (-1, 1)


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_correlations_refuse_other_lengths_and_numbers_that_are_not_finite(metric):
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        metric([1, 2], [1])
    with pytest.raises(ValueError, match="0 predictions for 0 labels"):
        metric([], [])
    with pytest.raises(ValueError, match="prediction 1 is nan"):
        metric([1, 2], [1, math.nan])
    with pytest.raises(ValueError, match="label 0 is inf"):
        metric([math.inf, 2], [1, 2])
