"""A run -> a table that says how far each stage is, what came out and where it lies, and what it scores by now."""

import re
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from infra import heldout
from infra.progress import duration, shown, size, summary, warnings
from infra.report.pretraining import newest
from infra.report.reading import metrics
from infra.run import Run, Stage, Step
from pipeline.artifacts import read_manifest
from pipeline.storage import Location
from training.facts import FinetuneFacts

_CHECKPOINT = re.compile(r"/step-(\d+)-[0-9a-f]+/manifest\.json$")  # training/checkpoint.py: written last


def print_status(run: Run) -> None:
    """One line a stage: done, half-done, not started or waiting for another; then the results there are by now."""
    table = Table("stage", "state", "took", "result", "size", "output", box=None, pad_edge=False, header_style="bold")
    steps = run.plan()
    for step in steps:
        table.add_row(*_row(step))
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print(table)
    for line in results(run):
        console.print(line, soft_wrap=True)
    for step in steps:
        if step.output and read_manifest(step.output.location) is None:
            for line in _heldout(run, step.stage.name, step.output.location):
                console.print(line, soft_wrap=True)


def results(run: Run, stages: Iterable[Stage] | None = None) -> Iterator[str]:
    """What a person wants of finished stages (all by default): warnings, held-out figures and the scores of tasks
    beside their baselines, where the report is."""
    for stage in stages or run.stages.values():
        name = stage.name
        if not (artifact := run.artifact(name)):
            continue
        for warning in warnings(artifact.manifest):
            yield f"warning: {warning}"
        yield from _heldout(run, name, artifact.location)
        if scores := FinetuneFacts.of(artifact.manifest).accuracies:
            pretrained, random, majority = (scores[name] for name in ("pretrained", "random", "majority"))
            yield (
                f"{name}: accuracy {pretrained.value:.3f} ({pretrained.low:.3f} to {pretrained.high:.3f}); "
                f"{random.value:.3f} from random weights, {majority.value:.3f} for the majority class"
            )
        if artifact.files("report.html"):
            yield f"{name}: {run.page.local_path or run.page}"


def _heldout(run: Run, name: str, location: Location) -> Iterator[str]:
    """The newest evaluation of a stage that has one, finished or not."""
    if row := newest(metrics(location), "heldout"):
        for sentence in heldout.verdict(row, run.config.examples.objective):
            yield f"{name}, step {row['step']:,}: {sentence}"


def _row(step: Step) -> tuple[str, str, str, str, str, str]:
    name = step.stage.name
    if step.output is None:
        return name, "waiting", "", step.reason, "", ""
    location = step.output.location
    manifest = read_manifest(location)
    if step.action == "skip" and manifest:
        bytes_there = size(sum(location.sizes().values()))
        return name, "done", duration(manifest.seconds), summary(manifest), bytes_there, shown(location)
    if step.action == "continue":
        return name, "half-done", "", ", ".join(_progress(location)) or step.reason, "", shown(location)
    return name, "not started", "", step.reason, "", shown(location)


def _progress(location: Location) -> Iterator[str]:
    """What is finished of a stage that was stopped: its parts, its newest checkpoint."""
    if parts := len((location / "parts").files()):
        yield f"{parts:,} part{'s' if parts > 1 else ''}"
    saved = (_CHECKPOINT.search(file.uri) for file in (location / "checkpoints").files())
    if steps := [int(match[1]) for match in saved if match]:
        yield f"checkpoint of step {max(steps):,}"
