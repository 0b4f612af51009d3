"""A figure and its reference -> whether it passes, by how much, and which key accepts it."""

import math
from collections.abc import Callable

from cloze.infra.checks.check import Figure, Verdict
from cloze.infra.checks_config import ChecksConfig

_LAST = "in the last run that passed"
_PROMOTED = "of the best promoted model"
_ROUNDING = 1e-9  # so that the advised value is accepted

Judge = Callable[[Figure, Figure | None, ChecksConfig], Verdict]


def count_changed(figure: Figure, reference: Figure | None, config: ChecksConfig) -> Verdict:
    """A count may decrease and increase by limited fractions of the reference."""
    assert reference
    name, value, before = figure.name, figure.value, reference.value
    if not before:
        return Verdict(True, f"{value:,.0f} {name}, none {_LAST}")
    change = abs(value - before) / before
    key, most, more = "max_increase", config.max_increase, "more"
    if value < before:
        key, most, more = "max_decrease", config.max_decrease, "fewer"
    text = f"{value:,.0f} {name}, {_percent(change)} {more} than {before:,.0f} {_LAST}"
    limit = None if most is None else before * (1 + most if value >= before else 1 - most)
    if most is None or change <= most:
        return Verdict(True, text, limit)
    return Verdict(False, f"{text}, at most {_percent(most)} are accepted; {_fix(key, change)}", limit)


def rate_increased(key: str) -> Judge:
    """A rate may increase by a limited number of percentage points."""

    def judge(figure: Figure, reference: Figure | None, config: ChecksConfig) -> Verdict:
        assert reference
        most: float = getattr(config, key)
        increase = figure.value - reference.value
        text = f"{figure.name}: {_percent(figure.value)}, {_percent(reference.value)} {_LAST}"
        limit = reference.value + most
        if increase <= most + _ROUNDING:
            return Verdict(True, text, limit)
        accepted = f"an increase by at most {_percent(most)} is accepted"
        return Verdict(False, f"{text}, {accepted}; {_fix(key, increase)}", limit)

    return judge


def is_finite(figure: Figure, _: Figure | None, __: ChecksConfig) -> Verdict:
    if math.isfinite(figure.value):
        return Verdict(True, f"{figure.name} is {figure.value:.4g}")
    advice = "lower the learning rate, or look at the report's curves"
    return Verdict(False, f"{figure.name} is {figure.value}, not a finite number; {advice}")


def loss_increased(figure: Figure, reference: Figure | None, config: ChecksConfig) -> Verdict:
    """A loss may be higher than the best promoted model's by a limited fraction."""
    assert reference and config.max_loss_increase is not None
    most = config.max_loss_increase
    text = f"{figure.name} {figure.value:.4f}, {reference.value:.4f} {_PROMOTED}"
    limit = reference.value * (1 + most)
    if figure.value <= limit + _ROUNDING:
        return Verdict(True, text, limit)
    increase = figure.value / reference.value - 1 if reference.value else math.inf
    accepted = f"{_percent(increase)} higher, at most {_percent(most)} are accepted"
    return Verdict(False, f"{text}: {accepted}; {_fix('max_loss_increase', increase)}", limit)


def score_decreased(figure: Figure, reference: Figure | None, config: ChecksConfig) -> Verdict:
    """A score may be lower than the best promoted model's, unless the whole 95 % interval of the difference is too low.

    The interval of the difference of two estimates: Newcombe 1998 (Statistics in Medicine 17, 873-890, method 10).
    """
    assert reference and config.max_score_decrease is not None
    most, decrease = config.max_score_decrease, reference.value - figure.value
    margin = math.hypot(reference.value - (reference.low or 0.0), (figure.high or 0.0) - figure.value)
    text = f"{_estimate(figure)}, {_interval(reference)} {_PROMOTED}"
    limit = reference.value - margin - most
    if decrease - margin <= most:
        return Verdict(True, text, limit)
    certain = f"at least {decrease - margin:.3f} lower with 95 % confidence, at most {most:g} is accepted"
    return Verdict(False, f"{text}: {certain}; {_fix('max_score_decrease', decrease - margin)}", limit)


def is_recent(figure: Figure, _: Figure | None, config: ChecksConfig) -> Verdict:
    assert config.max_age_days is not None
    text = f"{figure.name}: {figure.value:.1f} days old"
    if figure.value <= config.max_age_days:
        return Verdict(True, text, config.max_age_days)
    fix = f"fetch a newer one, or accept it with checks.max_age_days={math.ceil(figure.value)}"
    return Verdict(False, f"{text}, at most {config.max_age_days:g} are accepted; {fix}", config.max_age_days)


def _fix(key: str, value: float) -> str:
    """The advice, with the smallest value of two decimals that accepts the figure."""
    accepting = f"{math.ceil(value * 100 - 1e-9) / 100:g}" if math.isfinite(value) else "null"
    return f"look at its input, or accept it with checks.{key}={accepting}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _estimate(figure: Figure) -> str:
    return f"{figure.name} {_interval(figure)}"


def _interval(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
