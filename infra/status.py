"""A run -> a table that says how far each stage is, what came out and where it lies, and what it scores by now."""

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
from cloze.infra.display import duration, shown, size, summary, warnings
from cloze.infra.planner import Run, Step
from cloze.infra.report.pretraining import latest_row
from cloze.infra.report.reading import read_metrics
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Manifest, read_manifest
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.facts import Accuracy, FinetuneFacts

_CHECKPOINT = re.compile(r"/step-(\d+)-[0-9a-f]+/manifest\.json$")  # training/checkpoints/checkpoint.py: written last


State = Literal["done", "half-done", "not started", "waiting"]


@dataclass(frozen=True)
class Findings:
    """What a person wants of a stage beside its counts. `heldout` is the newest held-out row of its metrics, `scores`
    are its task's beside the baselines', `page` is where the report is."""

    warnings: tuple[str, ...]
    heldout: Mapping[str, Any] | None
    scores: Mapping[str, Any] | None
    accuracies: Mapping[str, Accuracy]
    page: Location | None


@dataclass(frozen=True)
class StageProgress:
    """What is finished of a stage that was stopped: its parts, its newest checkpoint."""

    parts: int
    checkpoint_step: int | None


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is. `location` and `fingerprint` are None while it waits for another; `manifest` is None until
    the stage has ended; `progress` is there for a half-done stage alone."""

    stage: str
    state: State
    reason: str
    location: Location | None
    fingerprint: str | None
    manifest: Manifest | None
    progress: StageProgress | None
    findings: Findings

    @cached_property
    def bytes(self) -> int | None:
        """Of all that lies there."""
        return None if self.location is None else sum(self.location.sizes().values())

    def plain(self) -> dict[str, Any]:
        """The same as JSON has it: always these keys."""
        manifest, found = self.manifest, self.findings
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
            "warnings": list(found.warnings),
            "heldout": found.heldout,
            "scores": found.scores,
            "page": found.page and found.page.uri,
        }


def statuses(run: Run) -> list[StageStatus]:
    """Every stage of a run, in order."""
    return [_status(run, step) for step in run.plan()]


def print_status(run: Run) -> None:
    """One line a stage: done, half-done, not started or waiting for another; then the results there are by now."""
    table = Table("stage", "state", "took", "result", "size", "output", box=None, pad_edge=False, header_style="bold")
    stages = statuses(run)
    for stage in stages:
        table.add_row(*map(Text, _row(stage)))
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print(table)
    for stage in stages:
        for line in _told(run, stage.stage, stage.findings):
            console.print(line, soft_wrap=True, markup=False)


def results(run: Run, stages: Iterable[Stage] | None = None) -> Iterator[str]:
    """What a person wants of finished stages (all by default): warnings, held-out figures and the scores of tasks
    beside their baselines, where the report is."""
    for stage in stages or run.stages.values():
        if artifact := run.artifact(stage.name):
            yield from _told(run, stage.name, _findings(run, stage, artifact.location, artifact.manifest))


def _status(run: Run, step: Step) -> StageStatus:
    output = step.output
    location = output and output.location
    manifest = read_manifest(location) if location else None
    progress = None
    if location is None:
        state: State = "waiting"
    elif step.action == "skip" and manifest:
        state = "done"
    elif step.action == "continue":
        state, progress = "half-done", _progress(location)
    else:
        state = "not started"
    return StageStatus(
        stage=step.stage.name,
        state=state,
        reason=step.reason,
        location=location,
        fingerprint=output and output.fingerprint,
        manifest=manifest,
        progress=progress,
        findings=_findings(run, step.stage, location, manifest),
    )


def _findings(run: Run, stage: Stage, location: Location | None, manifest: Manifest | None) -> Findings:
    """The newest evaluation is of a stage that has one, finished or not; the others are of a finished stage."""
    facts = stage.facts.of(manifest) if manifest else None
    scored = facts if isinstance(facts, FinetuneFacts) else FinetuneFacts()
    return Findings(
        warnings=tuple(warnings(manifest)) if manifest else (),
        heldout=(latest_row(read_metrics(location), "heldout") or None) if location else None,
        scores=scored.plain.get("scores"),
        accuracies=scored.accuracies,
        page=run.page if manifest and "report.html" in manifest.files else None,
    )


def _told(run: Run, name: str, found: Findings) -> Iterator[str]:
    """The same in lines."""
    for warning in found.warnings:
        yield f"warning: {warning}"
    if row := found.heldout:
        for sentence in heldout.describe(row, run.config.examples.objective):
            yield f"{name}, step {row['step']:,}: {sentence}"
    if found.accuracies:
        pretrained, random, majority = (found.accuracies[which] for which in ("pretrained", "random", "majority"))
        yield (
            f"{name}: accuracy {pretrained.value:.3f} ({pretrained.low:.3f} to {pretrained.high:.3f}); "
            f"{random.value:.3f} from random weights, {majority.value:.3f} for the majority class"
        )
    if found.page:
        yield f"{name}: {found.page.local_path or found.page}"


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
            shown(location),
        )
    result = ", ".join(_words(status.progress)) if status.progress else ""
    return name, status.state, "", result or status.reason, "", shown(location)


def _words(progress: StageProgress) -> Iterator[str]:
    if parts := progress.parts:
        yield f"{parts:,} part{'s' if parts > 1 else ''}"
    if progress.checkpoint_step is not None:
        yield f"checkpoint of step {progress.checkpoint_step:,}"


def _progress(location: Location) -> StageProgress:
    saved = (_CHECKPOINT.search(file.uri) for file in (location / "checkpoints").files())
    return StageProgress(
        parts=len((location / "parts").files()),
        checkpoint_step=max((int(match[1]) for match in saved if match), default=None),
    )
