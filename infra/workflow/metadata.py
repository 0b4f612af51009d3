"""What Dagster's pages show of a stage's output."""

import dagster

from cloze.infra.display import warnings
from cloze.infra.planner import PlannedStage
from cloze.pipeline.core.artifacts import Manifest


def stage_metadata(planned: PlannedStage, manifest: Manifest, seconds: float) -> dict[str, dagster.MetadataValue]:
    """The metadata of a stage that took `seconds` in this run."""
    assert planned.output
    numbers = {**manifest.counts, **{f"dropped: {reason}": number for reason, number in manifest.drops.items()}}
    return {
        "action": dagster.MetadataValue.text(planned.action),
        "reason": dagster.MetadataValue.text(planned.reason),
        "location": dagster.MetadataValue.path(planned.output.location.uri),
        "seconds": dagster.MetadataValue.float(round(seconds, 3)),
        **{name: dagster.MetadataValue.int(number) for name, number in numbers.items()},
        **{f"warning {number}": dagster.MetadataValue.text(line) for number, line in enumerate(warnings(manifest), 1)},
    }
