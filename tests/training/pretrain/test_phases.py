"""Phases with their own batch sizes and learning rate schedules, and configurations of them that are impossible."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.config import identity
from cloze.training.model.optim import OptimizerConfig, learning_rate_at, learning_rate_in_budget
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.phases import Phase, learning_rate_schedules
from tests.training.small_pretraining import config

LENGTH = {"max_seq_length": 16, "max_predictions_per_seq": 3}
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2)


def phases_config(*phases: dict[str, Any], **changed: Any) -> PretrainConfig:
    return config(phases=[LENGTH | phase for phase in phases], **changed)


def rates(settings: PretrainConfig) -> list[float]:
    """The learning rate of every step of a training without a budget."""
    result: list[float] = []
    for number, (phase, schedule) in enumerate(zip(settings.phases, settings.learning_rate_schedules, strict=True)):
        assert phase.steps
        start = sum(earlier.steps or 0 for earlier in settings.phases[: schedule.phases[0]])
        first = sum(earlier.steps or 0 for earlier in settings.phases[:number])
        result += [schedule.learning_rate(step - start, 0.0) for step in range(first, first + phase.steps)]
    return result


def test_a_later_phase_of_the_same_length_has_another_order_of_examples_and_other_masks() -> None:
    lengths = ({}, {"max_seq_length": 8}, {}, {"max_seq_length": 8}, {})
    settings = phases_config(*(phase | {"steps": 2} for phase in lengths), seed=7)
    first, second, third, fourth, fifth = settings.data_seeds
    assert first == second == 7 and third == fourth and len({7, third, fifth}) == 3


phases_with_steps = st.lists(
    st.builds(
        Phase,
        max_seq_length=st.just(16),
        max_predictions_per_seq=st.just(3),
        steps=st.integers(1, 30),
        learning_rate=st.none() | st.floats(1e-8, 1.0),
        warmup_steps=st.none() | st.integers(0, 30),
    ),
    min_size=1,
    max_size=5,
)


@given(phases_with_steps, st.floats(1e-8, 1.0), st.integers(0, 30))
def test_every_phase_has_one_schedule_which_starts_with_the_first_phase_or_with_one_that_sets_a_key(
    phases: list[Phase], peak: float, warmup: int
) -> None:
    found = learning_rate_schedules(
        phases, [0.0] * len(phases), OptimizerConfig(learning_rate=peak, warmup_steps=warmup)
    )
    assert len(found) == len(phases)
    for number, (phase, schedule) in enumerate(zip(phases, found, strict=True)):
        is_first = number == 0 or phase.starts_schedule
        assert schedule.phases[0] == (number if is_first else found[number - 1].phases[0])
        assert all(found[other] == schedule for other in schedule.phases) and number in schedule.phases
        first = phases[schedule.phases[0]]
        assert schedule.optimizer.learning_rate == (peak if first.learning_rate is None else first.learning_rate)
        assert schedule.optimizer.warmup_steps == (warmup if first.warmup_steps is None else first.warmup_steps)
        assert schedule.steps == sum(phases[other].steps or 0 for other in schedule.phases)


@given(phases_with_steps, st.floats(1e-8, 1.0), st.integers(0, 30))
def test_within_a_schedule_the_rate_is_positive_and_has_no_jumps(
    phases: list[Phase], learning_rate: float, warmup_steps: int
) -> None:
    optimizer = OptimizerConfig(learning_rate=learning_rate, warmup_steps=warmup_steps)
    for schedule in learning_rate_schedules(phases, [0.0] * len(phases), optimizer):
        peak, warmup, steps = schedule.optimizer.learning_rate, schedule.optimizer.warmup_steps, schedule.steps
        assert steps
        if warmup > steps:
            with pytest.raises(ValueError, match="is more than the"):
                schedule.check()
            continue
        schedule.check()
        values = [schedule.learning_rate(step, 0.0) for step in range(steps)]
        assert all(value > 0 for value in values) and max(values) == pytest.approx(peak)
        slope = peak / max(1, min(warmup or steps, steps - warmup or steps))  # the steeper one of warmup and decay
        assert all(abs(after - before) <= slope * (1 + 1e-9) for before, after in pairwise(values))
        assert values[-1] == pytest.approx(peak / max(1, steps - warmup))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 30))
def test_phases_without_keys_of_their_own_share_one_schedule(steps: list[int], warmup: int) -> None:
    warmup = min(warmup, sum(steps))
    settings = phases_config(
        *({"steps": count} for count in steps), optimizer={"learning_rate": 3e-4, "warmup_steps": warmup}
    )
    expected = [learning_rate_at(step, settings.optimizer, sum(steps)) for step in range(sum(steps))]
    assert rates(settings) == expected


@given(st.integers(0, 50), st.floats(0, 2))
def test_a_single_schedule_uses_the_whole_budget(step: int, budget_used: float) -> None:
    phases = [Phase(**LENGTH, share=0.3333333333)] * 3  # rounded: the sum is not exactly 1
    (schedule, *_) = learning_rate_schedules(phases, [0.3333333333] * 3, OPTIMIZER)
    assert schedule.learning_rate(step, budget_used) == learning_rate_in_budget(step, OPTIMIZER, budget_used)


def test_a_schedule_within_a_budget_ends_with_the_share_of_its_phases() -> None:
    settings = phases_config(
        {"share": 0.5}, {"share": 0.2, "learning_rate": 4e-4, "warmup_steps": 0}, {"share": 0.3}, budget="1h"
    )
    first, second, third = settings.learning_rate_schedules
    assert second == third and second.phases == range(1, 3)
    assert [first.learning_rate(9, used) for used in (0.0, 0.25, 0.5)] == pytest.approx([1e-3, 5e-4, 0])
    assert [second.learning_rate(0, used) for used in (0.5, 0.75, 1.0)] == pytest.approx([4e-4, 2e-4, 0])


def test_a_phase_takes_the_key_that_it_does_not_set_from_the_optimizer() -> None:
    settings = phases_config({"steps": 4}, {"steps": 4, "learning_rate": 5e-4}, {"steps": 3, "warmup_steps": 1})
    assert rates(settings) == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 2.5e-4, 5e-4, 5e-4, 2.5e-4, 1e-3, 1e-3, 5e-4])


def test_a_phase_may_have_its_own_batch_sizes() -> None:
    settings = phases_config(
        {"steps": 4}, {"steps": 4, "global_batch_size": 18, "micro_batch_size": 2}, workers=[1, 12]
    )
    assert (settings.global_batch_sizes, settings.micro_batch_sizes) == ([12, 18], [4, 2])
    assert settings.allowed_worker_counts == [1, 2, 3, 6]


def test_a_fingerprint_depends_on_the_keys_of_a_phase_but_not_on_its_micro_batch_size() -> None:
    plain = identity(phases_config({"steps": 8}))
    assert plain["phases"] == [LENGTH | {"steps": 8}]  # as before the keys were added
    assert identity(phases_config({"steps": 8, "micro_batch_size": 3})) == plain
    for key, value in (("global_batch_size", 8), ("learning_rate", 1e-4), ("warmup_steps", 0)):
        changed = identity(phases_config({"steps": 8, key: value}))
        assert json.dumps(changed) != json.dumps(plain)


@pytest.mark.parametrize(
    ("phases", "changed", "message"),
    [
        (
            [{"steps": 4}, {"steps": 4}],
            {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 9}},
            r"optimizer\.warmup_steps 9 is more than the 8 steps .* \(phases\.0 to phases\.1\); lower it$",
        ),
        (
            [{"steps": 8}, {"steps": 1, "learning_rate": 1e-4}],
            {},
            r"optimizer\.warmup_steps 2 is more than the 1 steps .* \(phases\.1\); set phases\.1\.warmup_steps$",
        ),
        (
            [{"steps": 8}, {"steps": 2, "warmup_steps": 4}, {"steps": 1}],
            {},
            r"phases\.1\.warmup_steps 4 is more than the 3 steps .* \(phases\.1 to phases\.2\); lower it$",
        ),
        (
            [{"share": 1.0}, {"learning_rate": 1e-4}],
            {"budget": "2h"},
            r"phases\.1 has no share of budget 2h; set phases\.1\.share$",
        ),
        (
            [{"steps": 8}, {"steps": 8, "global_batch_size": 15}],
            {"workers": [2, 2]},
            r"no number from 2 to 2 divides global_batch_size 12 and phases\.1\.global_batch_size 15; give another",
        ),
        ([{"steps": 8, "micro_batch_size": 0}], {}, r"phases\.0\.micro_batch_size"),
        ([{"steps": 8, "learning_rate": 0.0}], {}, r"phases\.0\.learning_rate"),
    ],
)
def test_impossible_batches_and_schedules_are_an_error_that_names_the_key(
    phases: list[dict[str, Any]], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("$", r"( \[|$)")):
        phases_config(*phases, **changed)
