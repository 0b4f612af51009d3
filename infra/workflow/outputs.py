"""Outputs under the root that a job or another history has made -> materializations in this history."""

import hashlib
import json

import dagster

from cloze.infra.execution import ExecutedStage
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.stage_history import StageHistory
from cloze.infra.stages import Stage
from cloze.infra.workflow.metadata import stage_metadata
from cloze.infra.workflow.names import DATA_VERSION, asset_key, identifier
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.queue import unfinished_run
from cloze.pipeline.core.artifacts import Artifact, read_manifest
from cloze.pipeline.core.output import Output

_SECONDS = 60  # between two looks
_ELSEWHERE = "finished by a run that this history does not have"


def outputs_sensor(configured: ConfiguredRun) -> list[dagster.SensorDefinition]:
    """The sensor NAME_outputs, which is on from the start. It reads what the last runs of this name have finished, and
    no file of the user's. A run with partitions has none: its runs of other histories do not say of which date they
    are."""
    config = configured.config
    if configured.partitions:
        return []

    def look(context: dagster.SensorEvaluationContext) -> dagster.SkipReason:
        run = Run(config)
        stages = {stage.name: stage for stage in run.unresolved_stages}
        found = StageHistory(run.root, config.name).outputs(stages.values())
        cursor = hashlib.sha256(json.dumps([str(artifact) for artifact in found.values()]).encode()).hexdigest()
        if context.cursor == cursor:
            return dagster.SkipReason("Nothing has been finished since the last look.")
        if working := unfinished_run(context.instance, config):
            return dagster.SkipReason(f"Run {working.run_id} is at work, and reports its outputs itself.")
        reported = [name for name, artifact in found.items() if _report(context.instance, run, stages[name], artifact)]
        if all((artifact.location / "manifest.json").is_file() for artifact in found.values()):
            context.update_cursor(cursor)  # else one is being written again
        return dagster.SkipReason(f"Reported: {', '.join(reported)}." if reported else "All outputs are known.")

    sensor = dagster.SensorDefinition(
        name=f"{identifier(config.name)}_outputs",
        evaluation_fn=look,
        minimum_interval_seconds=_SECONDS,
        default_status=dagster.DefaultSensorStatus.RUNNING,
        description="Reports what `cloze submit` and other machines have finished under the root; starts no run.",
    )
    return [sensor]


def _report(instance: dagster.DagsterInstance, run: Run, stage: Stage, artifact: Artifact) -> bool:
    """Report an output, unless the history knows it or it is being written again. Returns whether it was reported."""
    key, manifest = asset_key(run.config.name, stage.name), read_manifest(artifact.location)
    if manifest is None or is_known(instance, key, artifact.fingerprint):
        return False
    output = Output(artifact.location, artifact.stage, manifest.version, artifact.fingerprint)
    done = ExecutedStage(PlannedStage(stage, "run", _ELSEWHERE, output), manifest, manifest.seconds)
    instance.report_runless_asset_event(
        dagster.AssetMaterialization(
            key,
            metadata=stage_metadata(run, done),
            tags={DATA_VERSION: artifact.fingerprint},
        )
    )
    return True


def is_known(instance: dagster.DagsterInstance, key: dagster.AssetKey, fingerprint: str) -> bool:
    """Whether the history has this output of a stage."""
    cursor, has_more = None, True
    while has_more:
        result = instance.fetch_materializations(key, limit=100, cursor=cursor)
        for record in result.records:
            event = record.asset_materialization
            if event and (event.tags or {}).get(DATA_VERSION) == fingerprint:
                return True
        cursor, has_more = result.cursor, result.has_more
    return False
