"""The trials of a fine-tuning task -> a table with a row for each combination of hyperparameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from cloze.infra.report.charts import PERCENT, Axis, format_number
from cloze.training.finetune.manifest_facts import CurvesFact, FinetuneFacts, TrialFact


@dataclass(frozen=True)
class TrialScore:
    """The score of one variant on dev, of one trial or of several seeds."""

    text: str
    is_best: bool  # the hyperparameters of the model that is evaluated


@dataclass(frozen=True)
class TrialRow:
    """A combination of hyperparameters, with the score of each variant on dev."""

    learning_rate: str
    batch_size: int
    epochs: int
    scores: list[TrialScore]
    notes: str  # trials that ended before their last epoch


@dataclass(frozen=True)
class TrialsTable:
    """The trials of all variants; `score_names` are the titles of the columns of scores."""

    score_names: list[str]
    rows: list[TrialRow]
    explanation: str


def trials_table(facts: FinetuneFacts, metric: str, axis: Axis, labels: dict[str, str]) -> TrialsTable | None:
    """Returns the table of a task with several trials. `metric` is the name to show, `labels` are those of variants."""
    by_variant = {variant: _of_variant(facts, variant) for variant in facts.variants}
    combinations = next(iter(by_variant.values()), {})  # the same for all variants
    if sum(map(len, combinations.values())) < 2:
        return None
    rows = [_row(facts, hyperparameters, by_variant, axis, labels) for hyperparameters in combinations]
    names = [labels[variant] for variant in by_variant] if len(by_variant) > 1 else [f"Dev {metric}"]
    return TrialsTable(names, rows, _explanation(metric, max(map(len, combinations.values()))))


def _of_variant(facts: FinetuneFacts, variant: str) -> dict[TrialFact, list[CurvesFact]]:
    """Returns the combinations of hyperparameters with their trials, in ascending order, those of a seed together."""
    found = dict[TrialFact, list[CurvesFact]]()
    for name, curves in facts.trials.items():
        if curves.trial and name.startswith(f"{variant}-"):
            found.setdefault(_hyperparameters(curves.trial), []).append(curves)
    keys = sorted(found, key=lambda trial: (trial.learning_rate, trial.batch_size, trial.epochs))
    return {key: found[key] for key in keys}


def _hyperparameters(trial: TrialFact) -> TrialFact:
    return trial.model_copy(update={"seed": None})


def _row(
    facts: FinetuneFacts,
    hyperparameters: TrialFact,
    by_variant: dict[str, dict[TrialFact, list[CurvesFact]]],
    axis: Axis,
    labels: dict[str, str],
) -> TrialRow:
    scores, notes = list[TrialScore](), list[str]()
    for variant, trials in by_variant.items():
        chosen, of_seeds = facts.variants[variant].trial, trials.get(hyperparameters, [])
        is_best = chosen is not None and _hyperparameters(chosen) == hyperparameters
        scores.append(TrialScore(_score(of_seeds, facts.metric, axis), is_best))
        prefix = f"{labels[variant]}: " if len(by_variant) > 1 else ""
        notes += [prefix + note for note in (_note(curves) for curves in of_seeds) if note]
    learning_rate = format_number(hyperparameters.learning_rate)
    return TrialRow(learning_rate, hyperparameters.batch_size, hyperparameters.epochs, scores, "; ".join(notes))


def _score(trials: Sequence[CurvesFact], metric: str, axis: Axis) -> str:
    """Returns the mean of the trials' best epochs, with the standard deviation of several: "81.2 ± 1.3 %"."""
    curves = [(trial.dev(metric), trial.best_epoch) for trial in trials if trial.diverged_step is None]
    values = [value for curve, epoch in curves if curve and (value := curve[epoch - 1]) is not None]
    if not values:
        return "–"
    mean = axis.format_value(fmean(values))
    return mean if len(values) < 2 else f"{mean.removesuffix(PERCENT)} ± {axis.format_value(stdev(values))}"


def _note(curves: CurvesFact) -> str:
    """Returns why a trial ended before its last epoch; empty if it did not."""
    seed = "" if curves.trial is None or curves.trial.seed is None else f"seed {curves.trial.seed} "
    if curves.diverged_step is not None:
        return f"{seed}diverged at step {curves.diverged_step}"
    return f"{seed}stopped after epoch {curves.stopped_epoch}" if curves.stopped_epoch is not None else ""


def _explanation(metric: str, seeds: int) -> str:
    if seeds < 2:
        return f"Dev {metric} of each trial, at its best epoch. The best trial, in bold, is evaluated."
    return (
        f"Dev {metric}, each trial at its best epoch: mean ± standard deviation over {seeds} seeds. Of the best "
        "combination, in bold, the best trial is evaluated."
    )
