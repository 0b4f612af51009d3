"""Runs -> Dagster's definitions: for each its assets, a job of all of them, and a schedule and sensors that are off at
first."""

import os
from collections.abc import Iterator

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cloze.infra.execution import ActiveRun, active_run
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.alerts import failure_sensor
from cloze.infra.workflow.assets import stage_assets
from cloze.infra.workflow.names import identifier
from cloze.infra.workflow.partitions import ConfiguredRun, read_run
from cloze.infra.workflow.promotion import promoted_asset
from cloze.infra.workflow.sensors import file_sensor, newest_dumps
from cloze.infra.workflow.sources import observable_sources
from cloze.pipeline.core.errors import UserError


@dagster.definitions
def defs() -> dagster.Definitions:
    """The definitions of `dagster dev -m cloze.infra.workflow`: the runs in CLOZE_CONFIG, separated by spaces."""
    runs = [read_run(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [identifier(run.name) for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a different name")
    return dagster.Definitions.merge(*(definitions(run.config, run.file) for run in runs))


def definitions(config: RunConfig, file: str | None = None) -> dagster.Definitions:
    """The definitions of one run. `file` is the one with the configurations of all partitions, if it has partitions."""
    run = ConfiguredRun(config, file)
    name = identifier(run.name)

    @dagster.resource(description=f"The progress display of {run.name}, and the Ray session that its stages share")
    def resource(context: dagster.InitResourceContext) -> Iterator[ActiveRun]:
        assert context.run
        with active_run(run.of(context.run.tags.get("dagster/partition"))) as active:
            yield active

    assets = stage_assets(run)
    # All stages are one op, in the process of the run: they share a Ray session.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        name,
        selection=[assets],
        executor_def=executor,
        description=f"All stages of {run.name}; those that are finished are skipped.",
        partitions_def=run.partitions,
    )
    sensors = [file_sensor(run, job), failure_sensor(run, job)]
    return dagster.Definitions(
        assets=[assets, *observable_sources(run), *promoted_asset(run)],
        jobs=[job],
        schedules=[_schedule(run, job)],
        sensors=[sensor for sensor in sensors if sensor],
        resources={name: resource},
        executor=executor,
    )


def _schedule(run: ConfiguredRun, job: UnresolvedAssetJobDefinition) -> dagster.ScheduleDefinition:
    def tick(context: dagster.ScheduleEvaluationContext) -> list[dagster.RunRequest] | dagster.SkipReason:
        if run.partitions is None:
            return [dagster.RunRequest()]
        return newest_dumps(run, context.instance)

    cron = run.config.schedule.cron
    try:
        return dagster.ScheduleDefinition(
            name=f"{identifier(run.name)}_schedule",
            job=job,
            cron_schedule=cron,
            execution_fn=tick,
            default_status=dagster.DefaultScheduleStatus.STOPPED,
        )
    except dagster.DagsterInvalidDefinitionError as error:
        raise UserError(
            f"schedule: {cron} is not a cron expression; write five fields such as 0 3 * * 0"
        ) from error
