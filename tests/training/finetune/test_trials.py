"""A search over hyperparameters and seeds: which trial is chosen, and that nothing is lost or trained twice."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.artifacts import Part
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.lease_files import Owner, lease_file
from cloze.pipeline.core.leases import Lease, LeaseLost
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.finetune import stage
from cloze.training.finetune.stage import gpus_of_trial
from cloze.training.finetune.tasks.task_config import Trial
from cloze.training.finetune.trainer import FinetuneTrainer, TrialResult
from cloze.training.finetune.trial_runs import _store
from cloze.training.finetune.trials import best_trial, possible_best
from tests.training.finetune.tasks.trained import MortalOutput, encoded
from tests.training.finetune.test_finetune import (
    VARIANTS,
    config,
    inputs,  # noqa: F401 (a fixture)
    output,
    report_nothing,
    run,
    setup,
    trained_here,
)

SWEEP = {"learning_rate": (1e-9, 0.02), "seeds": (4, 5), "epochs": 3}


def test_the_best_trial_has_the_hyperparameters_with_the_best_mean_over_seeds():
    low, high = Trial(1e-4, 9, 1), Trial(2e-4, 9, 1)
    scores = {(low, 1): 0.9, (low, 2): 0.1, (high, 1): 0.6, (high, 2): 0.7}
    keys = {trial._replace(seed=seed): (score, 0.0) for (trial, seed), score in scores.items()}
    assert best_trial(keys) == high._replace(seed=2)


def test_hyperparameters_that_diverge_with_a_seed_are_chosen_only_if_all_do():
    stable, unstable, worst = Trial(1e-4, 9, 1), Trial(2e-4, 9, 1), Trial(3e-4, 9, 1)
    keys: dict[Trial, Any] = {unstable._replace(seed=1): (0.9,), unstable._replace(seed=2): None}
    keys |= {worst._replace(seed=seed): None for seed in (1, 2)}
    assert best_trial(keys) == unstable._replace(seed=1)
    keys |= {stable._replace(seed=seed): (0.1,) for seed in (1, 2)}
    assert best_trial(keys) == stable._replace(seed=1)
    assert best_trial({worst: None}) is None


@given(st.lists(st.none() | st.integers(0, 3), min_size=6, max_size=6), st.permutations(range(6)))
def test_in_any_order_the_best_trial_is_among_the_few_whose_weights_are_kept(scores, order):
    trials = [Trial(rate, 9, 1, seed) for rate in (1e-4, 2e-4) for seed in (1, 2, 3)]
    scored = {trial: None if score is None else (float(score),) for trial, score in zip(trials, scores, strict=True)}
    keys, kept = dict[Trial, Any](), set[Trial]()
    for number in order:
        finished = {*keys, trials[number]}
        keys = {trial: scored[trial] for trial in trials if trial in finished}
        kept = (kept | {trials[number]}) & possible_best(keys, trials)
        assert kept == possible_best(keys, trials) and len(kept) <= 3
    best = best_trial(scored)
    assert kept == ({best} if best else set())


def test_the_weights_of_the_best_trial_are_stored_until_the_variants_are_finished(
    inputs,  # noqa: F811
    single_process_group,
    tmp_path,
):
    settings = config(**SWEEP)
    out = trained_here(settings, inputs, tmp_path)
    facts = {variant: part.facts for variant, part in out.finished_parts(VARIANTS).items()}
    best = {f"{variant}-{Trial(**found['trial']).name}.safetensors" for variant, found in facts.items()}
    assert {path.name for path in (tmp_path / "trials").iterdir()} == best
    assert all("-0.02-" in name for name in best)

    # Without the variant's part only the evaluation is run again; without the weights, the best trial as well.
    names = [f"pretrained-{trial.name}" for trial in settings.trials]
    for lose_weights in (False, True):
        before = {name: record_time(tmp_path, name) for name in names}
        (tmp_path / "parts/pretrained.json").unlink()
        if lose_weights:
            for path in (tmp_path / "trials").glob("pretrained-*"):
                path.unlink()
        again = trained_here(settings, inputs, tmp_path).finished_part("pretrained")
        assert again and again.facts == facts["pretrained"]
        repeated = {name for name in names if record_time(tmp_path, name) != before[name]}
        assert {f"{name}.safetensors" for name in repeated} <= best and len(repeated) == lose_weights

    run(settings, inputs, out)
    assert not (tmp_path / "trials").exists()


def record_time(root: Path, part: str) -> int:
    return (root / f"parts/{part}.json").stat().st_mtime_ns


class TakenOver(Output):
    """Another run takes over as soon as this part is committed."""

    last = ""

    def commit(self, name: str, *arguments: Any, **more: Any) -> Part:
        part = super().commit(name, *arguments, **more)
        if name == self.last:
            take_over(self)
        return part


def take_over(out: Output) -> None:
    current = lease_file(out.location).read()
    assert current and lease_file(out.location).claim(Owner(token="other", attempt=2), current)


def owned(folder: Path) -> TakenOver:
    out = TakenOver(Location(str(folder)), "finetune-words", 1, "0")
    assert lease_file(out.location).claim(Owner(token="own", attempt=1), None)
    out.lease = Lease(out.location, "own")
    return out


def test_a_run_that_has_lost_its_lease_writes_and_deletes_no_weights(
    inputs,  # noqa: F811
    tmp_path,
):
    out, settings = owned(tmp_path), config(**SWEEP)
    its_setup = setup(settings, inputs, out)
    better, worse, other, _ = settings.trials
    names = [its_setup.weights_file("pretrained", trial) for trial in (better, worse, other)]

    def store(trial: Trial, score: float) -> None:
        result = TrialResult(selection_key=(score,), best_epoch=1, weights={"a": torch.zeros(2)})
        _store(its_setup, "pretrained", trial, result)

    store(better, 0.9)
    out.last = f"pretrained-{worse.name}"
    with pytest.raises(LeaseLost):
        store(worse, 0.1)
    with pytest.raises(LeaseLost):
        store(other, 0.5)
    assert [name.exists() for name in names] == [True, True, False]


def test_a_stage_that_has_lost_its_lease_leaves_the_weights_of_trials(
    inputs,  # noqa: F811
    tmp_path,
):
    out, settings = owned(tmp_path / "out"), config()
    its_setup = setup(settings, inputs, out)
    for name in [name for variant in VARIANTS for name in its_setup.parts(variant)]:
        out.commit(name, {})
    weights = its_setup.weights_file("pretrained", settings.trials[0])
    weights.write_bytes(b"of the run that took over")
    take_over(out)
    with pytest.raises(LeaseLost):
        stage.run(settings, {**inputs, "encoded": encoded(settings, inputs, tmp_path / "encoded")}, out)
    assert weights.exists()


class Mortal(MortalOutput):
    doomed = "pretrained-1e-09-batch-9-epochs-3-seed-5"


@pytest.mark.campaign
def test_two_trials_at_once_and_a_killed_worker_change_no_bit(
    ray_session,
    inputs,  # noqa: F811
    single_process_group,
    tmp_path,
):
    settings = config(**SWEEP)
    out = Mortal(Location(str(tmp_path / "parallel")), "finetune-words", 1, "0")
    parallel = run(settings, inputs, out)
    one_by_one = run(settings, inputs, trained_here(settings, inputs, tmp_path / "sequential"))
    assert parallel.files == one_by_one.files and parallel.facts == one_by_one.facts

    commits = [line.split() for line in (tmp_path / "parallel.log").read_text().splitlines()]
    killed = "pretrained-1e-09-batch-9-epochs-3-seed-5"
    names = [*(f"{variant}-{trial.name}" for variant in VARIANTS for trial in settings.trials), *VARIANTS]
    assert sorted(name for name, _ in commits) == sorted([*names, killed, "scores"])
    in_workers = {process for name, process in commits if name != "scores"}
    assert len(in_workers) == 3  # two groups, one of them with a second worker
    assert not (tmp_path / "parallel/trials").exists()


def test_early_stopping_ends_a_trial_after_epochs_without_a_better_one(
    inputs,  # noqa: F811
    single_process_group,
    tmp_path,
):
    results = []
    for patience in (None, 1, 2, 3, 9):
        settings = config(learning_rate=0.1, epochs=9, early_stopping=patience)
        trainer = FinetuneTrainer(setup(settings, inputs, output(tmp_path / str(patience))), report_nothing)
        results.append((patience, trainer.run_trial("pretrained", settings.trials[0])))
    (_, whole), *stopped = results
    keys = [trainer.setup.task.selection_key(metrics) for metrics in whole.dev]
    for patience, result in stopped:
        best_so_far = [keys.index(max(keys[:epoch])) + 1 for epoch in range(1, 10)]
        last = next((epoch for epoch, best in enumerate(best_so_far, 1) if epoch - best >= patience), 9)
        assert len(result.dev) == last and result.best_epoch == best_so_far[last - 1]
        assert result.losses == whole.losses[: 8 * last]  # the learning rates are those of all epochs
        assert result.facts().get("stopped_epoch") == (last if last < 9 else None)
    assert min(len(result.dev) for _, result in stopped) < 9
    assert "stopped_epoch" not in whole.facts()


def test_a_trial_that_diverges_is_recorded_and_not_chosen(inputs, single_process_group, tmp_path):  # noqa: F811
    settings = config(learning_rate=(1e30, 0.02), seeds=(4, 5), epochs=1, compare_random=False)
    facts = run(settings, inputs, trained_here(settings, inputs, tmp_path)).facts
    assert facts["variants"]["pretrained"]["trial"]["learning_rate"] == 0.02
    diverged = facts["trials"]["pretrained-1e+30-batch-9-epochs-1-seed-4"]
    assert 1 < diverged["diverged_step"] <= 8 and len(diverged["loss"]) == diverged["diverged_step"] - 1
    assert all(math.isfinite(loss) for _, loss in diverged["loss"])
    first, second = facts["seeds"]["pretrained"]
    assert (first["seeds"], first["diverged"], first["mean"]) == ([], [4, 5], {})
    assert second["seeds"] == [4, 5] and "diverged" not in second and second["mean"]["accuracy"] > 0


def test_a_trial_that_its_last_step_ruins_has_diverged(inputs, single_process_group, tmp_path):  # noqa: F811
    settings = config(learning_rate=(1e30, 0.02), batch_size=9999, epochs=1, compare_random=False)
    facts = run(settings, inputs, trained_here(settings, inputs, tmp_path / "two")).facts
    assert facts["variants"]["pretrained"]["trial"]["learning_rate"] == 0.02
    diverged = facts["trials"]["pretrained-1e+30-batch-9999-epochs-1"]
    assert diverged["diverged_step"] == len(diverged["loss"]) == 1 and "best_epoch" not in diverged
    with pytest.raises(UserError, match="finetune-words: the loss on dev is nan or inf; lower learning_rate"):
        trained_here(config(learning_rate=1e30, batch_size=9999, epochs=1), inputs, tmp_path / "one")


def test_a_search_of_which_all_trials_diverge_is_an_error(inputs, single_process_group, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="finetune-words: the loss of every trial is nan or inf; lower learning_rate"):
        trained_here(config(learning_rate=(1e30, 2e30)), inputs, tmp_path)


def test_the_manifest_has_mean_and_deviation_over_seeds_for_each_hyperparameters(
    inputs,  # noqa: F811
    single_process_group,
    tmp_path,
):
    settings = config(**SWEEP)
    facts = run(settings, inputs, trained_here(settings, inputs, tmp_path)).facts
    assert facts["variants"]["pretrained"]["trial"]["learning_rate"] == 0.02
    assert facts["variants"]["pretrained"]["trial"]["seed"] in (4, 5)
    for variant in VARIANTS:
        _, found = facts["seeds"][variant]
        assert (found["trial"], found["seeds"]) == ({"learning_rate": 0.02, "batch_size": 9, "epochs": 3}, [4, 5])
        curves = [facts["trials"][f"{variant}-{trial.name}"] for trial in settings.trials[2:]]
        a, b = (curve["dev_accuracy"][curve["best_epoch"] - 1] for curve in curves)
        assert found["mean"]["accuracy"] == pytest.approx((a + b) / 2)
        assert found["standard_deviation"]["accuracy"] == pytest.approx(abs(a - b) / 2**0.5)


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({}, 8, "auto"),  # one trial: all
        ({"learning_rate": (1e-3, 1e-4)}, 8, 4),
        ({"learning_rate": (1e-3, 1e-4), "compare_random": True}, 8, 2),
        ({"learning_rate": (1e-3, 1e-4), "seeds": (1, 2, 3)}, 4, 1),
        ({"learning_rate": (1e-3, 1e-4)}, 0, 0),
        ({"learning_rate": (1e-3, 1e-4), "gpus": 3}, 8, 3),
        ({"learning_rate": (1e-3, 1e-4), "workers": 3}, 8, "auto"),
        ({"learning_rate": (1e-3, 1e-4), "seeds": (1, 2, 3), "max_concurrent_trials": 2}, 8, 4),
        ({"learning_rate": (1e-3, 1e-4), "max_concurrent_trials": 4}, 8, 4),
    ],
)
def test_several_trials_divide_the_gpus(settings, found, expected):
    assert gpus_of_trial(config(**{"compare_random": False, **settings}), found) == expected


def test_settings_of_speed_and_unset_ones_leave_the_fingerprint_as_it_was():
    assert identity(config(max_concurrent_trials=3)) == identity(config())
    assert "early_stopping" not in identity(config())
    assert identity(config(early_stopping=2)) != identity(config())
