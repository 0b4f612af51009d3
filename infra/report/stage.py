"""A run -> one HTML page that shows it from the input files to the scores."""

from collections.abc import Mapping

from cloze.infra.checks.records import read_results
from cloze.infra.report.page import render
from cloze.infra.report.read_run import KnownStage, read_stages
from cloze.infra.run_estimate import read_estimates
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location

VERSION = 5  # 4: the estimate next to what the run took; 5: the results of the checks


class ReportConfig(Config):
    """Identifies the page."""

    name: str
    """Name of the run: the title of the report and the name of its file."""


def run(config: ReportConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """Writes report.html. `inputs` has the artifacts of all stages of the run, in order."""
    known = [KnownStage(name, "done", artifact.location, artifact.fingerprint) for name, artifact in inputs.items()]
    stages = read_stages(known, out.root, read_estimates(out.root, config.name), read_results(out.root, config.name))
    page = render(config.name, stages).encode()
    part = out.commit("report", {"report.html": page}, {"bytes": len(page)})
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    return out.finish([part], config.model_dump(mode="json"), fingerprints)


def publish(artifact: Location, target: Location) -> None:
    """Copies an artifact's page to `target`, unless `target` is already the same page."""
    page = (artifact / "report.html").read_bytes()
    if not target.exists() or target.read_bytes() != page:
        target.write_bytes(page)
