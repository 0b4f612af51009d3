"""An executed stage -> what Dagster is told: a materialization, or, where the stage was skipped, an observation that
leaves the last materialization in its place; and the results of its checks.
"""

import math
from collections.abc import Iterator, Sequence

import dagster

from cloze.infra.checks.results import CheckResult
from cloze.infra.execution import ExecutedStage
from cloze.infra.planner import Run
from cloze.infra.stages import Stage
from cloze.infra.workflow.metadata import observation_metadata, stage_metadata
from cloze.infra.workflow.names import DATA_VERSION, asset_key, check_name
from cloze.infra.workflow.partitions import partition_of
from cloze.infra.workflow.sources import observe, read_by, sources_of

Event = dagster.MaterializeResult | dagster.AssetObservation | dagster.AssetCheckResult


def stage_events(
    context: dagster.AssetExecutionContext, run_name: str, run: Run, done: ExecutedStage
) -> Iterator[Event]:
    """The events of a stage whose output is finished, and of its checks.

    A skipped stage is an observation if the history knows its output: otherwise it was made by a run that has another
    history, and is materialized here once.
    """
    key, partition = asset_key(run_name, done.planned.stage.name), partition_of(context)
    version = done.manifest.fingerprint
    if done.planned.action == "skip" and version == _known_version(context.instance, key, partition):
        yield dagster.AssetObservation(key, metadata=observation_metadata(run, done), partition=partition)
    else:
        yield dagster.MaterializeResult(
            asset_key=key, metadata=stage_metadata(run, done), data_version=dagster.DataVersion(version)
        )
    for check in run.check_results(done.planned.stage.name):
        if dagster.AssetCheckKey(key, check_name(check.name)) in context.selected_asset_check_keys:
            yield _check_event(key, check)


def check_specs(run_name: str, stages: Sequence[Stage]) -> list[dagster.AssetCheckSpec]:
    """The checks of all stages. A stage whose check fails is the last one of its run."""
    return [
        dagster.AssetCheckSpec(
            check_name(check.name),
            asset=asset_key(run_name, stage.name),
            description=f"Limited by {', '.join(f'checks.{key}' for key in check.keys)} of the run's configuration.",
            blocking=True,
        )
        for stage in stages
        for check in stage.checks
    ]


def source_observations(
    context: dagster.AssetExecutionContext, run_name: str, run: Run, stage: Stage
) -> Iterator[dagster.AssetObservation]:
    """The user's files as a stage has read them."""
    sources = sources_of(run_name, list(run.stages.values()))
    for key in read_by(sources, stage):
        version, metadata = observe(run, sources[key])
        yield dagster.AssetObservation(
            key, metadata=metadata, partition=partition_of(context), tags={DATA_VERSION: version}
        )
        # Dagster looked when the op began: the pages would show the stage as made from other files than these.
        context.get_step_execution_context().wipe_input_asset_version_info(key)


def _check_event(key: dagster.AssetKey, check: CheckResult) -> dagster.AssetCheckResult:
    numbers = {"value": check.value, "reference": check.reference, "limit": check.limit}
    return dagster.AssetCheckResult(
        asset_key=key,
        check_name=check_name(check.name),
        passed=check.passed,
        severity=dagster.AssetCheckSeverity.ERROR,
        description=check.message,
        metadata={
            name: float(number) for name, number in numbers.items() if number is not None and math.isfinite(number)
        },
    )


def _known_version(instance: dagster.DagsterInstance, key: dagster.AssetKey, partition: str | None) -> str | None:
    """The fingerprint of the last materialization in the history."""
    records = dagster.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
    found = instance.fetch_materializations(records, limit=1).records
    materialization = found[0].asset_materialization if found else None
    return (materialization.tags or {}).get(DATA_VERSION) if materialization else None
