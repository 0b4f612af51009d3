"""Outputs under the root that a job or another history has made -> materializations in this history."""

import hashlib
import json
from typing import NamedTuple

import dagster

from cloze.infra.execution import ExecutedStage
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.stage_history import Finished, StageHistory
from cloze.infra.stages import Stage
from cloze.infra.workflow.metadata import stage_metadata
from cloze.infra.workflow.names import DATA_VERSION, asset_key, identifier
from cloze.infra.workflow.partitions import ConfiguredRun, key_of
from cloze.infra.workflow.queue import unfinished_run
from cloze.pipeline.core.artifacts import read_manifest
from cloze.pipeline.core.output import Output

_SECONDS = 60  # between two looks
_ELSEWHERE = "finished by a run that this history does not have"


def outputs_sensor(configured: ConfiguredRun) -> dagster.SensorDefinition:
    """The sensor NAME_outputs, which is on from the start. It reads what the last runs of this name, and with
    partitions of each language, have finished, and no file of the user's."""

    def look(context: dagster.SensorEvaluationContext) -> dagster.SkipReason:
        runs = [Run(config) for config in configured.of_languages]
        found = [output for run in runs for output in _outputs(run)]
        cursor = hashlib.sha256(json.dumps([str(output.finished) for output in found]).encode()).hexdigest()
        if context.cursor == cursor:
            return dagster.SkipReason("Nothing has been finished since the last look.")
        if working := next(filter(None, (unfinished_run(context.instance, run.config) for run in runs)), None):
            return dagster.SkipReason(f"Run {working.run_id} is at work, and reports its outputs itself.")
        reported = [output.stage.name for output in found if _report(context.instance, configured, output)]
        if all((output.finished.artifact.location / "manifest.json").is_file() for output in found):
            context.update_cursor(cursor)  # else one is being written again
        return dagster.SkipReason(f"Reported: {', '.join(reported)}." if reported else "All outputs are known.")

    return dagster.SensorDefinition(
        name=f"{identifier(configured.name)}_outputs",
        evaluation_fn=look,
        minimum_interval_seconds=_SECONDS,
        default_status=dagster.DefaultSensorStatus.RUNNING,
        description="Reports what `cloze submit` and other machines have finished under the root; starts no run.",
    )


class _Output(NamedTuple):
    run: Run
    stage: Stage
    finished: Finished


def _outputs(run: Run) -> list[_Output]:
    """What the run of a name has last finished. With partitions a stage that an earlier version of Cloze has finished
    is left out, as its date is not known."""
    stages = {stage.name: stage for stage in run.unresolved_stages}
    found = StageHistory(run.root, run.config.name).outputs(stages.values())
    has_partitions = run.config.schedule.partitions is not None
    return [
        _Output(run, stages[name], finished)
        for name, finished in found.items()
        if has_partitions == (finished.partition is not None)
    ]


def _report(instance: dagster.DagsterInstance, configured: ConfiguredRun, output: _Output) -> bool:
    """Report an output, unless the history knows it or it is being written again. Returns whether it was reported."""
    run, stage, (artifact, of) = output
    key, partition = asset_key(configured.name, stage.name), of and key_of(of.language, of.date)
    manifest = read_manifest(artifact.location)
    if manifest is None or is_known(instance, key, artifact.fingerprint, partition):
        return False
    written = Output(artifact.location, artifact.stage, manifest.version, artifact.fingerprint)
    done = ExecutedStage(PlannedStage(stage, "run", _ELSEWHERE, written), manifest, manifest.seconds)
    if of:
        configured.add_dates(instance, [of.date])
    instance.report_runless_asset_event(
        dagster.AssetMaterialization(
            key,
            metadata=stage_metadata(run, done),
            tags={DATA_VERSION: artifact.fingerprint},
            partition=partition,
        )
    )
    return True


def is_known(
    instance: dagster.DagsterInstance, key: dagster.AssetKey, fingerprint: str, partition: str | None = None
) -> bool:
    """Whether the history has this output of a stage."""
    records = dagster.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
    cursor, has_more = None, True
    while has_more:
        result = instance.fetch_materializations(records, limit=100, cursor=cursor)
        for record in result.records:
            event = record.asset_materialization
            if event and (event.tags or {}).get(DATA_VERSION) == fingerprint:
                return True
        cursor, has_more = result.cursor, result.has_more
    return False
