"""A run -> the state of each stage, its counts, size and location, and the results there are so far."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloze.infra import heldout
from cloze.infra.checks.results import CheckResult
from cloze.infra.display import duration, relative_path, size, summary, warnings
from cloze.infra.job_record import read_job
from cloze.infra.overlap import describe_overlap, score_without_overlap
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.report.pretraining import latest_row
from cloze.infra.report.read_run import read_metrics
from cloze.infra.score_names import baseline_name, metric_name
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Manifest, read_manifest
from cloze.pipeline.core.lease_files import Owner
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.metrics.estimates import Estimate
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts

_CHECKPOINT = re.compile(r"/step-(\d+)-[0-9a-f]+/manifest\.json$")  # training/checkpoints/checkpoint.py

State = Literal["done", "half-done", "not started", "waiting"]


@dataclass(frozen=True)
class StageResults:
    """The results of a stage, without its counts: `heldout` is the newest held-out row of its metrics, `task` has the
    scores of a finished fine-tuning task and of its baselines, `overlap` its overlap with the pretraining documents,
    `page` is the location of the report."""

    warnings: tuple[str, ...]
    heldout: Mapping[str, Any] | None
    task: FinetuneFacts | None
    overlap: OverlapFacts | None
    page: Location | None


@dataclass(frozen=True)
class StageProgress:
    """What an interrupted stage has finished: the number of its parts, and the step of its newest checkpoint."""

    parts: int
    checkpoint_step: int | None


@dataclass(frozen=True)
class StageStatus:
    """The state of one stage. `location` and `fingerprint` are None while it waits for another; `manifest` is None
    until it is finished; `progress` is set for a half-done stage only, `owner` while a run works on it."""

    stage: str
    state: State
    reason: str
    location: Location | None
    fingerprint: str | None
    manifest: Manifest | None
    checks: tuple[CheckResult, ...]  # of a finished stage
    progress: StageProgress | None
    owner: Owner | None
    results: StageResults

    @cached_property
    def bytes(self) -> int | None:
        """The size of the output folder, finished or not."""
        return None if self.location is None else sum(self.location.sizes().values())

    def plain(self) -> dict[str, Any]:
        """The status as plain JSON: always these keys."""
        manifest, results = self.manifest, self.results
        return {
            "stage": self.stage,
            "state": self.state,
            "reason": self.reason,
            "location": self.location and self.location.uri,
            "fingerprint": self.fingerprint,
            "bytes": self.bytes,
            "seconds": manifest and manifest.seconds,
            "counts": manifest and manifest.counts,
            "drops": manifest and manifest.drops,
            "progress": self.progress and asdict(self.progress),
            "owner": self.owner and _plain_owner(self.owner),
            "warnings": list(results.warnings),
            "heldout": results.heldout,
            "scores": results.task and results.task.plain["scores"],
            "metric": results.task and results.task.metric,
            "scored_split": results.task and results.task.scored_split,
            "overlap": results.overlap and results.overlap.plain,
            "page": results.page and results.page.uri,
            "checks": [check.plain for check in self.checks],
        }


def statuses(run: Run) -> list[StageStatus]:
    """The status of every stage of a run, in order."""
    return [_status(run, planned) for planned in run.plan()]


def print_status(run: Run) -> None:
    """Print one line per stage: done, half-done, not started or waiting for another; then the run's job, the failed
    checks and the results so far."""
    table = Table("stage", "state", "took", "result", "size", "output", box=None, pad_edge=False, header_style="bold")
    stages = statuses(run)
    for stage in stages:
        table.add_row(*map(Text, _row(stage)))
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print(table)
    if job := read_job(run):
        console.print(f"job: {job}", soft_wrap=True, markup=False)
    for failed in (check for stage in stages for check in stage.checks if not check.passed):
        console.print(f"check failed: {failed.stage}: {failed.message}", soft_wrap=True, markup=False)
    for stage in stages:
        for line in _result_lines(run, stage.stage, stage.results):
            console.print(line, soft_wrap=True, markup=False)


def results(run: Run, stages: Iterable[Stage] | None = None) -> Iterator[str]:
    """Lines with the results of finished stages (by default of all): warnings, held-out metrics and the scores of tasks
    with their baselines, and the location of the report."""
    for stage in stages or run.stages.values():
        if artifact := run.artifact(stage.name):
            yield from _result_lines(run, stage.name, _results(run, stage, artifact.location, artifact.manifest))


def _status(run: Run, planned: PlannedStage) -> StageStatus:
    output = planned.output
    location = output and output.location
    manifest = read_manifest(location) if location else None
    progress = None
    if location is None:
        state: State = "waiting"
    elif planned.action == "skip" and manifest:
        state = "done"
    elif planned.action == "continue" or planned.owner:
        state, progress = "half-done", _progress(location)
    else:
        state = "not started"
    return StageStatus(
        stage=planned.stage.name,
        state=state,
        reason=planned.reason,
        location=location,
        fingerprint=output and output.fingerprint,
        manifest=manifest,
        checks=tuple(run.check_results(planned.stage.name)) if state == "done" else (),
        progress=progress,
        owner=planned.owner,
        results=_results(run, planned.stage, location, manifest),
    )


def _plain_owner(owner: Owner) -> dict[str, Any]:
    done = owner.progress
    process = {"host": owner.process.host, "pid": owner.process.pid, "since": owner.since}
    return {**process, "done": done.done, "total": done.total, "unit": done.unit}


def _results(run: Run, stage: Stage, location: Location | None, manifest: Manifest | None) -> StageResults:
    """The held-out metrics are also those of a stage that is not finished; the other results require a manifest."""
    facts = stage.facts.of(manifest) if manifest else None
    return StageResults(
        warnings=tuple(warnings(manifest)) if manifest else (),
        heldout=(latest_row(read_metrics(location), "heldout") or None) if location else None,
        task=facts if isinstance(facts, FinetuneFacts) and facts.scores else None,
        overlap=facts if isinstance(facts, OverlapFacts) else None,
        page=run.page if manifest and "report.html" in manifest.files else None,
    )


def _result_lines(run: Run, name: str, results: StageResults) -> Iterator[str]:
    for warning in results.warnings:
        yield f"warning: {warning}"
    if row := results.heldout:
        for sentence in heldout.describe(row, run.config.examples and run.config.examples.objective):
            yield f"{name}, step {row['step']:,}: {sentence}"
    if (task := results.task) and task.metric_scores:
        for split, scores in {task.scored_split: task.metric_scores, **task.extra_metric_scores}.items():
            yield f"{name}: {metric_name(task.metric, split)} {_scores_in_words(scores)}"
        if (chance := task.chance.get(task.metric)) is not None:
            yield f"{name}: in random order {metric_name(task.metric, task.scored_split)} is {chance:.3f}"
    if results.overlap:
        yield f"{name}: {_overlap_in_words(results.overlap)}"
    if results.page:
        yield f"{name}: {results.page.local_path or results.page}"


def _overlap_in_words(facts: OverlapFacts) -> str:
    """The score with and without the examples that overlap, or what else is known of them."""
    if without := score_without_overlap(facts, "{:.3f}".format):
        score = facts.scores["all"].value(facts.metric)
        return f"{metric_name(facts.metric, facts.scored_split)} {score:.3f} ({without})"
    return describe_overlap(facts, "{:.3f}".format)


def _scores_in_words(scores: Mapping[str, Estimate]) -> str:
    """The score of the pretrained model with its interval, then those of the other variants and of the baselines."""
    pretrained = scores["pretrained"]
    text = f"{pretrained.value:.3f} ({pretrained.low:.3f} to {pretrained.high:.3f})"
    others = [
        f"{score.value:.3f} {'from random weights' if name == 'random' else f'for {baseline_name(name)}'}"
        for name, score in scores.items()
        if name != "pretrained"
    ]
    return f"{text}; {', '.join(others)}" if others else text


def _row(status: StageStatus) -> tuple[str, str, str, str, str, str]:
    name, location, manifest = status.stage, status.location, status.manifest
    if location is None:
        return name, status.state, "", status.reason, "", ""
    if status.state == "done" and manifest:
        return (
            name,
            status.state,
            duration(manifest.seconds),
            summary(manifest),
            size(status.bytes or 0),
            relative_path(location),
        )
    if status.owner:
        return name, status.state, "", f"at work: {status.owner}", "", relative_path(location)
    result = ", ".join(_progress_words(status.progress)) if status.progress else ""
    return name, status.state, "", result or status.reason, "", relative_path(location)


def _progress_words(progress: StageProgress) -> Iterator[str]:
    if parts := progress.parts:
        yield f"{parts:,} part{'s' if parts > 1 else ''}"
    if progress.checkpoint_step is not None:
        yield f"checkpoint of step {progress.checkpoint_step:,}"


def _progress(location: Location) -> StageProgress:
    checkpoints = (_CHECKPOINT.search(file.uri) for file in (location / "checkpoints").files())
    return StageProgress(
        parts=len((location / "parts").files()),
        checkpoint_step=max((int(match[1]) for match in checkpoints if match), default=None),
    )
