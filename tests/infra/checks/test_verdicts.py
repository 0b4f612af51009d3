"""Figures and references -> verdicts: what passes, what fails, by how much, and what accepts it."""

import math
import re
from typing import Any

import pytest

from cloze.infra.checks.check import Figure, Verdict
from cloze.infra.checks.verdicts import (
    count_changed,
    is_finite,
    is_recent,
    loss_increased,
    rate_increased,
    score_decreased,
)
from cloze.infra.checks_config import ChecksConfig

LIMITS = ChecksConfig()


def figure(value: float, low: float | None = None, high: float | None = None, name: str = "documents") -> Figure:
    return Figure(name=name, value=value, low=low, high=high)


def judged(judge: Any, value: Figure, reference: Figure | None, **limits: Any) -> Verdict:
    return judge(value, reference, ChecksConfig(**limits))


def accepting(verdict: Verdict) -> dict[str, float]:
    """The key and the value that the message advises."""
    match = re.search(r"accept it with checks\.(\w+)=([\d.]+)$", verdict.message)
    assert match, verdict.message
    return {match[1]: float(match[2])}


def test_a_count_may_decrease_by_a_tenth_and_double():
    for value in (900, 1000, 2000):
        assert count_changed(figure(value), figure(1000), LIMITS).passed
    fewer, more = (count_changed(figure(value), figure(1000), LIMITS) for value in (899, 2001))
    assert not fewer.passed and not more.passed
    assert fewer.message.startswith("899 documents, 10.1 % fewer than 1,000 in the last run that passed, at most 10 %")
    assert (fewer.limit, more.limit) == (900, 2000)


@pytest.mark.parametrize(
    ("judge", "value", "reference"),
    [
        (count_changed, figure(615), figure(1000)),
        (count_changed, figure(3333), figure(1000)),
        (rate_increased("max_drop_rate_increase"), figure(0.3333), figure(0.01)),
        (loss_increased, figure(2.5), figure(2.0)),
        (score_decreased, figure(0.5, 0.45, 0.55), figure(0.9, 0.85, 0.93)),
        (is_recent, figure(40.2), None),
    ],
)
def test_what_a_failed_check_advises_makes_it_pass(judge: Any, value: Figure, reference: Figure | None):
    verdict = judged(judge, value, reference, max_age_days=30.0)
    assert not verdict.passed
    assert judged(judge, value, reference, **{"max_age_days": 30.0, **accepting(verdict)}).passed


def test_each_direction_of_a_count_can_be_switched_off():
    assert judged(count_changed, figure(1), figure(1000), max_decrease=None).passed
    assert judged(count_changed, figure(9999), figure(1000), max_increase=None).passed
    assert not judged(count_changed, figure(1), figure(1000), max_increase=None).passed


def test_a_score_fails_only_if_the_interval_of_the_difference_is_below_the_tolerance():
    promoted = figure(0.90, 0.87, 0.92)
    assert score_decreased(figure(0.87, 0.84, 0.90), promoted, LIMITS).passed  # three points, but by chance
    worse = score_decreased(figure(0.80, 0.76, 0.83), promoted, LIMITS)
    assert not worse.passed
    assert "at least 0.058 lower with 95 % confidence" in worse.message
    assert judged(score_decreased, figure(0.80, 0.76, 0.83), promoted, max_score_decrease=0.06).passed


def test_the_margin_of_a_difference_is_newcombes():
    """The lower limit for 56/70 against 48/80: Newcombe 1998, table II, method 10."""
    from cloze.training.finetune.metrics.estimates import proportion

    before, after = proportion(56, 70), proportion(48, 80)
    verdict = score_decreased(figure(*after), figure(*before), LIMITS)
    assert "at least 0.052 lower" in verdict.message


def test_a_loss_that_is_no_number_fails():
    for value in (math.nan, math.inf, -math.inf):
        assert not is_finite(figure(value), None, LIMITS).passed
        assert math.isinf(-abs(value)) or not loss_increased(figure(value), figure(2.0), LIMITS).passed
    assert is_finite(figure(2.5), None, LIMITS).passed
    assert loss_increased(figure(2.03), figure(2.0), LIMITS).passed
