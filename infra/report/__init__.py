"""a run -> one HTML page that tells it from the input files to the scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.report.page import render
from infra.report.reading import Known, read
from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.config import Config
from pipeline.storage import Location

if TYPE_CHECKING:
    from infra.planner import Run

VERSION = 1

_STATES = {"run": "not started", "wait": "waiting", "continue": "half-done", "skip": "done"}


class ReportConfig(Config):
    """`name` is the run's: it heads the page and names its file."""

    name: str


def run(config: ReportConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """inputs: every stage of the run, in order. Writes report.html."""
    known = [Known(name, "done", artifact.location, artifact.fingerprint) for name, artifact in inputs.items()]
    page = render(config.name, read(known, out.root)).encode()
    page_part = out.commit("report", {"report.html": page}, {"bytes": len(page)})
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    return out.finish([page_part], config.model_dump(mode="json"), fingerprints)


def publish(artifact: Location, target: Location) -> None:
    """Put an artifact's page where a person looks for it, unless it is there."""
    page = (artifact / "report.html").read_bytes()
    if not target.exists() or target.read_bytes() != page:
        target.write_bytes(page)


def render_run(run: "Run") -> str:
    """Write the page about what is finished of a run by now to <root>/<name>.html; where that is."""
    known = [
        Known(
            step.stage.name,
            _STATES[step.action],
            step.output.location if step.output else None,
            step.output.fingerprint if step.output else None,
            step.stage.after,
        )
        for step in run.plan()
        if step.stage.publish is None  # every stage but the page's own
    ]
    run.page.write_text(render(run.config.name, read(known, run.root)))
    return run.page.uri
