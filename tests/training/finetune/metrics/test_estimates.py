"""Intervals against values printed in the literature, SciPy's, and properties that hold for any numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.training.finetune.metrics import estimates
from cloze.training.finetune.metrics.estimates import bootstrap, proportion


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_returns_the_intervals_of_newcombe_1998(successes: int, total: int, low: float, high: float):
    # Statistics in Medicine 17, table I, method 3
    assert estimates.wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_within_zero_and_one():
    assert estimates.wilson(5, 5)[1] == 1
    assert estimates.wilson(0, 5)[0] == 0
    with pytest.raises(ValueError, match="6 of 5"):
        estimates.wilson(6, 5)


def test_wilson_equals_scipys():
    from scipy.stats import binomtest

    for total in (1, 2, 7, 29, 1000, 392_702):
        for successes in {0, 1, total // 3, total - 1, total}:
            interval = binomtest(successes, total).proportion_ci(method="wilson")
            assert estimates.wilson(successes, total) == pytest.approx(tuple(interval), rel=1e-12, abs=1e-15)


@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_proportion_is_within_its_interval(counts: tuple[int, int]):
    found = proportion(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def rows(values: list[float]) -> np.ndarray:
    return np.array([(value, 1) for value in values])


NUMBERS = st.lists(st.floats(-100, 100), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, st.randoms())
def test_the_bootstrap_is_deterministic_contains_the_value_and_ignores_the_order(values: list[float], draw):
    found = bootstrap(rows(values), mean)
    assert min(values) - 1e-9 <= found.low <= found.value <= found.high <= max(values) + 1e-9
    assert found == bootstrap(rows(values), mean)
    assert found == bootstrap(rows(draw.sample(values, len(values))), mean)


@settings(max_examples=25, deadline=None)
@given(NUMBERS)
def test_counts_stand_for_equal_rows(values: list[float]):
    assert bootstrap(rows(values * 3), mean) == bootstrap(rows(values), mean, counts=[3] * len(values))


def test_the_bootstrap_of_a_mean_equals_the_interval_of_the_normal_distribution_and_narrows_with_n():
    generator = np.random.default_rng(0)
    for count in (100, 10_000):
        values = generator.normal(size=count)
        found = bootstrap(rows(values.tolist()), mean)
        half = 1.96 * values.std() / count**0.5
        assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 8)


def test_the_bootstrap_equals_scipys():
    from scipy.stats import bootstrap as scipys

    values = np.random.default_rng(0).gamma(1, size=200)
    expected = scipys((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    found = bootstrap(rows(values.tolist()), mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.03)


def test_the_number_of_resamples_drawn_at_once_does_not_change_the_interval(monkeypatch):
    table = rows(np.random.default_rng(0).normal(size=500).tolist())
    at_once = bootstrap(table, mean)
    monkeypatch.setattr(estimates, "_DRAWN_AT_ONCE", 3000)
    assert bootstrap(table, mean) == pytest.approx(at_once)


def test_the_bootstrap_has_no_width_when_all_examples_are_equal():
    assert bootstrap(rows([0.5] * 9), mean) == (0.5, 0.5, 0.5)
