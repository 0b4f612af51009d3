"""Which losses and gradient norms are bad, and which batches remain when some are skipped."""

import math
import random

import pytest

from cloze.pipeline.core.storage import Location
from cloze.training.pretrain.loss_spikes import (
    FILE,
    RecentSteps,
    SkippedBatch,
    encode_skipped,
    nth_kept_batch,
    read_skipped,
)


def bad_steps(losses: list[float], factor: float | None = 20.0) -> list[int]:
    """The bad steps; all other steps are added to the recent ones."""
    recent = RecentSteps()
    return [step for step, loss in enumerate(losses, start=1) if recent.check(loss, 1.0, factor)]


def scattered(count: int, level: float = 3.0, deviation: float = 0.1) -> list[float]:
    draw = random.Random(0)
    return [draw.gauss(level, deviation) for _ in range(count)]


def test_ordinary_scatter_is_never_bad() -> None:
    assert bad_steps(scattered(5000)) == []
    assert bad_steps([10.0 - 0.001 * step + noise for step, noise in enumerate(scattered(5000, 0.0))]) == []


def test_a_spike_is_bad_and_does_not_move_the_threshold() -> None:
    losses = scattered(150)
    assert bad_steps([*losses, 6.0, 6.0, *losses]) == [151, 152]
    assert bad_steps([*losses, 4.0]) == []  # ten deviations: a hard batch


@pytest.mark.parametrize(
    ("losses", "settings"),
    [
        ([*scattered(99), 6.0], {}),  # too few to compare with
        ([*scattered(150), 6.0], {"factor": None}),
        ([*scattered(150), 0.1], {}),  # far below is not bad
        ([3.0] * 150 + [3.5], {}),  # a twentieth of the level, though nothing has ever scattered
    ],
)
def test_a_loss_that_is_not_far_above_a_hundred_steps_is_good(losses: list[float], settings: dict) -> None:
    assert bad_steps(losses, **settings) == []
    assert bad_steps([*scattered(150), 6.0]) == [151]  # the control of the cases above


def test_a_huge_gradient_norm_is_bad_even_if_the_loss_is_good() -> None:
    norms = [math.exp(level) for level in scattered(150, 0.0, 0.2)]

    def bad(*last: float, factor: float | None = 20.0) -> list[int]:
        recent = RecentSteps()
        results = [recent.check(3.0, norm, factor) for norm in [*norms, *last]]
        return [step for step, result in enumerate(results, start=1) if result]

    assert bad(1000.0, 1000.0, *norms) == [151, 152]
    assert bad(10.0, 0.0, 1e-6) == []  # clipping is enough for the first
    assert bad(1000.0, factor=None) == []
    for factor in (2.0, 20.0):
        recent = RecentSteps()
        for _ in range(100):
            recent.check(3.0, 0.5, factor)
        assert recent.check(3.0, 40.0, factor) is None  # though nothing has ever scattered
        reason, value = recent.check(3.0, 60.0, factor) or ("", 0.0)
        assert reason == "the gradient norm is far above the median of 100 steps, 0.5" and value == 60.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_bad_from_the_first_step(value: float) -> None:
    reason, found = RecentSteps().check(value, 1.0, None) or ("", 0.0)
    assert reason == "the loss is not finite" and str(found) == str(value)
    reason, found = RecentSteps().check(3.0, value, None) or ("", 0.0)
    assert reason == "the gradient norm is not finite" and str(found) == str(value)


def test_restored_recent_steps_give_the_same_results() -> None:
    losses = scattered(400)
    whole, first = RecentSteps(), RecentSteps()
    results = [whole.check(loss, 1.0, 2.0) for loss in losses]
    for loss in losses[:200]:
        first.check(loss, 1.0, 2.0)
    second = RecentSteps(*first.to_json())
    assert [second.check(loss, 1.0, 2.0) for loss in losses[200:]] == results[200:]
    assert any(results[200:])


def test_the_nth_kept_batch_does_not_count_skipped_ones() -> None:
    draw = random.Random(0)
    for _ in range(100):
        skipped = draw.sample(range(20), draw.randrange(10))
        left = [batch for batch in range(40) if batch not in skipped]
        assert [nth_kept_batch(n, skipped) for n in range(20)] == left[:20]


def test_skipped_batches_are_read_as_they_were_written(tmp_path) -> None:
    skips = [
        SkippedBatch(5, 0, 4, "the loss is not finite", "nan", [[0, 7], [1, 3]]),
        SkippedBatch(6, 0, 5, "", "inf", []),
    ]
    (tmp_path / FILE).write_bytes(encode_skipped(skips))
    assert read_skipped(Location(str(tmp_path))) == skips
    assert read_skipped(Location(str(tmp_path / "nowhere"))) == []
