"""What counts as a fault among losses and gradients, and which batches are left when some are skipped."""

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


def judged(losses: list[float], factor: float | None = 20.0) -> list[int]:
    """The steps at fault, when each but those is remembered."""
    recent = RecentSteps()
    return [step for step, loss in enumerate(losses, start=1) if recent.check(loss, 1.0, factor)]


def scattered(count: int, level: float = 3.0, deviation: float = 0.1) -> list[float]:
    draw = random.Random(0)
    return [draw.gauss(level, deviation) for _ in range(count)]


def test_ordinary_scatter_is_never_at_fault() -> None:
    assert judged(scattered(5000)) == []
    assert judged([10.0 - 0.001 * step + noise for step, noise in enumerate(scattered(5000, 0.0))]) == []


def test_a_jump_is_at_fault_and_does_not_move_what_the_next_is_judged_by() -> None:
    losses = scattered(150)
    assert judged([*losses, 6.0, 6.0, *losses]) == [151, 152]
    assert judged([*losses, 4.0]) == []  # ten deviations: a hard batch


@pytest.mark.parametrize(
    ("losses", "settings"),
    [
        ([*scattered(99), 6.0], {}),  # too few to judge by
        ([*scattered(150), 6.0], {"factor": None}),
        ([*scattered(150), 0.1], {}),  # far below is no fault
        ([3.0] * 150 + [3.5], {}),  # a twentieth of the level, though nothing has ever scattered
    ],
)
def test_what_is_not_far_above_a_hundred_steps_passes(losses: list[float], settings: dict) -> None:
    assert judged(losses, **settings) == []
    assert judged([*scattered(150), 6.0]) == [151]  # which all of these resemble


def test_a_gradient_out_of_all_proportion_is_at_fault_though_its_loss_is_not() -> None:
    norms = [math.exp(level) for level in scattered(150, 0.0, 0.2)]

    def faults(*last: float, factor: float | None = 20.0) -> list[int]:
        recent = RecentSteps()
        verdicts = [recent.check(3.0, norm, factor) for norm in [*norms, *last]]
        return [step for step, verdict in enumerate(verdicts, start=1) if verdict]

    assert faults(1000.0, 1000.0, *norms) == [151, 152]
    assert faults(10.0, 0.0, 1e-6) == []  # clipping takes care of the first
    assert faults(1000.0, factor=None) == []
    for factor in (2.0, 20.0):
        recent = RecentSteps()
        for _ in range(100):
            recent.check(3.0, 0.5, factor)
        assert recent.check(3.0, 40.0, factor) is None  # though nothing has ever scattered
        reason, value = recent.check(3.0, 60.0, factor) or ("", 0.0)
        assert reason == "the gradient norm is far above the median of 100 steps, 0.5" and value == 60.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_at_fault_from_the_first_step(value: float) -> None:
    reason, found = RecentSteps().check(value, 1.0, None) or ("", 0.0)
    assert reason == "the loss is not finite" and str(found) == str(value)
    reason, found = RecentSteps().check(3.0, value, None) or ("", 0.0)
    assert reason == "the gradient norm is not finite" and str(found) == str(value)


def test_saved_steps_judge_as_those_they_were_saved_from() -> None:
    losses = scattered(400)
    whole, first = RecentSteps(), RecentSteps()
    verdicts = [whole.check(loss, 1.0, 2.0) for loss in losses]
    for loss in losses[:200]:
        first.check(loss, 1.0, 2.0)
    second = RecentSteps(*first.to_json())
    assert [second.check(loss, 1.0, 2.0) for loss in losses[200:]] == verdicts[200:]
    assert any(verdicts[200:])


def test_the_place_of_a_turn_counts_what_is_not_skipped() -> None:
    draw = random.Random(0)
    for _ in range(100):
        skipped = draw.sample(range(20), draw.randrange(10))
        left = [batch for batch in range(40) if batch not in skipped]
        assert [nth_kept_batch(turn, skipped) for turn in range(20)] == left[:20]


def test_what_is_noted_is_read_again(tmp_path) -> None:
    skips = [
        SkippedBatch(5, 0, 4, "the loss is not finite", "nan", [[0, 7], [1, 3]]),
        SkippedBatch(6, 0, 5, "", "inf", []),
    ]
    (tmp_path / FILE).write_bytes(encode_skipped(skips))
    assert read_skipped(Location(str(tmp_path))) == skips
    assert read_skipped(Location(str(tmp_path / "nowhere"))) == []
