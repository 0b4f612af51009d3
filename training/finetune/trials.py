"""The trials of a fine-tuning task: which of them are left to run, and which is the best on dev.

A finished trial is a part of the artifact. The weights of its best epoch are in the folder trials/ as long as it may be
the best trial; the folder is deleted when all variants are finished.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.job_queue import Job
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.tasks.task import EncodedSplit, Task, splits_of
from cloze.training.finetune.tasks.task_config import SPLITS, TaskConfig, Trial

SelectionKey = tuple[float, ...]  # see Task.selection_key


@dataclass(frozen=True)
class FinetuneSetup:
    """The input of every worker."""

    config: TaskConfig
    task: Task
    splits: Mapping[str, EncodedSplit]  # the task's examples as token ids
    encoder: PretrainedEncoder
    out: Output

    @property
    def variants(self) -> tuple[str, ...]:
        """The initial weights of the encoder: "pretrained" and, if the user asks for it, "random"."""
        return ("pretrained", "random") if self.config.compare_random else ("pretrained",)

    def examples(self, split: str) -> list[Any]:
        """The task's examples of a split."""
        return [example for example in self.task.examples if example.split == split]

    @property
    def scored_splits(self) -> list[str]:
        """The task's scored split, then the extra files with labels."""
        extra = splits_of(self.task.examples)[len(SPLITS) :]
        labelled = [split for split in extra if self.examples(split)[0].label is not None]
        return [self.task.scored_split, *labelled]

    def steps(self, trial: Trial) -> int:
        """The number of optimizer steps of a trial."""
        return trial.epochs * math.ceil(len(self.splits["train"].lengths) / trial.batch_size)

    def seed(self, trial: Trial) -> int:
        """The seed of a trial's data order, dropout and initial weights."""
        return self.config.seed if trial.seed is None else trial.seed

    def parts(self, variant: str) -> list[str]:
        """The names of a variant's parts: one for each trial, then the variant's own."""
        return [*(part_name(variant, trial) for trial in self.config.trials), variant]

    @property
    def trials_folder(self) -> Location:
        """The weights of trials that may be the best."""
        return self.out.location / "trials"

    def weights_file(self, variant: str, trial: Trial) -> Location:
        return self.trials_folder / f"{part_name(variant, trial)}.safetensors"


def part_name(variant: str, trial: Trial) -> str:
    return f"{variant}-{trial.name}"


def unfinished_jobs(setup: FinetuneSetup) -> list[Job]:
    """What is left to do for each variant: its trials, then the evaluation of the best one on dev and test.

    A job's argument is (variant, trial), with None as the trial of the evaluation; its work is in steps.
    """
    jobs = list[Job]()
    for variant in setup.variants:
        finished = finished_trials(setup, variant)
        if len(finished) == len(setup.config.trials) and setup.out.finished_part(variant):
            continue
        trials = [
            Job(part_name(variant, trial), (variant, trial), setup.steps(trial))
            for trial in setup.config.trials
            if trial not in finished
        ]
        jobs += [*trials, Job(variant, (variant, None), 0, after=tuple(job.name for job in trials))]
    return jobs


def trial_facts(setup: FinetuneSetup, variant: str) -> dict[Trial, dict[str, Any]]:
    """The facts of each trial whose part is finished, in the order of the configuration."""
    parts = setup.out.finished_parts([part_name(variant, trial) for trial in setup.config.trials])
    names = {trial: part_name(variant, trial) for trial in setup.config.trials}
    return {trial: parts[name].facts for trial, name in names.items() if name in parts}


def finished_trials(setup: FinetuneSetup, variant: str) -> set[Trial]:
    """The trials that need not run: without those that may be the best and whose weights are lost, unless the variant
    is finished.
    """
    keys = selection_keys(trial_facts(setup, variant))
    if setup.out.finished_part(variant):
        return set(keys)
    needed = possible_best(keys, setup.config.trials)
    return {trial for trial in keys if trial not in needed or setup.weights_file(variant, trial).is_file()}


def selection_keys(facts: Mapping[Trial, Mapping[str, Any]]) -> dict[Trial, SelectionKey | None]:
    """The selection key of each trial's best epoch; None for a trial that has diverged."""
    return {
        trial: None
        if "diverged_step" in found
        else tuple(-math.inf if value is None else value for value in found["merit"])  # JSON has no infinity
        for trial, found in facts.items()
    }


def by_hyperparameters(trials: Iterable[Trial]) -> dict[Trial, list[Trial]]:
    """Each combination of hyperparameters -> its trials, which differ in their seed."""
    groups = dict[Trial, list[Trial]]()
    for trial in trials:
        groups.setdefault(trial.hyperparameters, []).append(trial)
    return groups


def best_trial(keys: Mapping[Trial, SelectionKey | None]) -> Trial | None:
    """The best trial on dev of the best hyperparameters; the first of equals. None if all trials have diverged.

    The best hyperparameters are those with the fewest diverged trials, and of these with the best mean over the seeds.
    """
    ranks = dict[Trial, tuple[int, SelectionKey]]()
    for hyperparameters, trials in by_hyperparameters(keys).items():
        if found := [key for trial in trials if (key := keys[trial]) is not None]:
            ranks[hyperparameters] = (len(found) - len(trials), tuple(map(fmean, zip(*found, strict=True))))
    if not ranks:
        return None
    best = max(ranks, key=ranks.__getitem__)
    candidates = {trial: key for trial, key in keys.items() if key is not None and trial.hyperparameters == best}
    return max(candidates, key=candidates.__getitem__)


def possible_best(keys: Mapping[Trial, SelectionKey | None], trials: Sequence[Trial]) -> set[Trial]:
    """The finished trials, which have keys, that may still be the best of all `trials`.

    These are the best one of the hyperparameters of which all trials are finished, and the best ones of the others. A
    trial that is not among them never will be, so that the order in which trials finish does not matter.
    """
    complete = dict[Trial, SelectionKey | None]()
    found = set[Trial | None]()
    for of_hyperparameters in by_hyperparameters(trials).values():
        finished = {trial: keys[trial] for trial in of_hyperparameters if trial in keys}
        if len(finished) == len(of_hyperparameters):
            complete |= finished
        else:
            found.add(best_trial(finished))
    return {trial for trial in found | {best_trial(complete)} if trial}


def over_seeds(trials: Mapping[Trial, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The facts of trials -> the mean and the standard deviation of the dev metrics over the seeds, for each
    combination of hyperparameters. Empty for a task without `seeds`.
    """
    rows = list[dict[str, Any]]()
    for hyperparameters, of_seeds in by_hyperparameters(trial for trial in trials if trial.seed is not None).items():
        diverged = [trial.seed for trial in of_seeds if "diverged_step" in trials[trial]]
        metrics = [_best_epoch(trials[trial]) for trial in of_seeds if trial.seed not in diverged]
        columns = {name: [one[name] for one in metrics] for name in (metrics[0] if metrics else ())}
        values = {name: column for name, column in columns.items() if None not in column}  # JSON has no NaN
        rows.append(
            {
                "trial": hyperparameters.facts(),
                "seeds": [trial.seed for trial in of_seeds if trial.seed not in diverged],
                **({"diverged": diverged} if diverged else {}),
                "mean": {name: fmean(values[name]) for name in values},
                "standard_deviation": {name: stdev(values[name]) for name in values if len(metrics) > 1},
            }
        )
    return rows


def _best_epoch(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics on dev of a trial's best epoch, by name."""
    curves = {name.removeprefix("dev_"): curve for name, curve in facts.items() if name.startswith("dev_")}
    return {name: curve[facts["best_epoch"] - 1] for name, curve in curves.items()}
