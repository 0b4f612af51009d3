"""a run -> one HTML page that tells it from the input files to the scores."""

from collections.abc import Mapping

from cloze.infra.report.page import render
from cloze.infra.report.reading import Known, read
from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.storage import Location

VERSION = 1


class ReportConfig(Config):
    """`name` is the run's: it heads the page and names its file."""

    name: str
    """Name of the run: the title of the report and the name of its file."""


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
