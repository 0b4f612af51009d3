"""What Dagster's pages show of a stage's output: numbers, which Dagster plots over the runs, and a sample."""

from collections.abc import Mapping

import dagster

from cloze.infra.display import warnings
from cloze.infra.execution import ExecutedStage
from cloze.infra.planner import Run
from cloze.pipeline.core.artifacts import Artifact, Manifest

Metadata = dict[str, dagster.MetadataValue]


def stage_metadata(run: Run, done: ExecutedStage) -> Metadata:
    """The metadata of a materialization: all there is to show."""
    return {**observation_metadata(run, done), **_sample(done)}


def observation_metadata(run: Run, done: ExecutedStage) -> Metadata:
    """What is known without reading the files of the output: for a stage that was skipped."""
    planned, manifest = done.planned, done.manifest
    assert planned.output
    texts = {"action": planned.action, "reason": planned.reason, "digest": manifest.fingerprint}
    numbers, more_texts = _highlights(done)
    return {
        **{name: dagster.MetadataValue.text(text) for name, text in texts.items()},
        **{name: dagster.MetadataValue.float(number) for name, number in numbers.items()},
        **{name: dagster.MetadataValue.text(text) for name, text in more_texts.items() if text},
        **_counts(manifest),
        **{f"warning {number}": dagster.MetadataValue.text(line) for number, line in enumerate(warnings(manifest), 1)},
        **_times(done),
        "location": dagster.MetadataValue.path(planned.output.location.uri),
        "report": dagster.MetadataValue.path(run.page.uri),
    }


def _highlights(done: ExecutedStage) -> tuple[Mapping[str, float], Mapping[str, str]]:
    highlights = done.planned.stage.highlights
    if highlights is None:
        return {}, {}
    shown = highlights(artifact_of(done))
    return {name: float(f"{number:.6g}") for name, number in shown.numbers.items()}, shown.texts


def _sample(done: ExecutedStage) -> Metadata:
    highlights = done.planned.stage.highlights
    sample = highlights(artifact_of(done)).sample() if highlights else ""
    return {"sample": dagster.MetadataValue.md(sample)} if sample else {}


def artifact_of(done: ExecutedStage) -> Artifact:
    """The output of a stage."""
    assert done.planned.output
    return Artifact(done.planned.output.location, done.manifest.stage, done.manifest.fingerprint)


def _counts(manifest: Manifest) -> Metadata:
    """The counts, and the dropped rows by reason."""
    drops = {f"dropped: {reason}": number for reason, number in manifest.drops.items()}
    return {name: dagster.MetadataValue.int(number) for name, number in {**manifest.counts, **drops}.items()}


def _times(done: ExecutedStage) -> Metadata:
    """The seconds that the stage took in this run, and those that its output took when it was made."""
    seconds = {"seconds": done.seconds, "seconds of the output": done.manifest.seconds}
    if done.manifest.cpu_seconds is not None:
        seconds["CPU seconds of the output"] = done.manifest.cpu_seconds
    return {name: dagster.MetadataValue.float(round(value, 3)) for name, value in seconds.items()}
