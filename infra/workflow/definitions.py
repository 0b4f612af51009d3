"""Runs -> Dagster's definitions: for each its assets, a job of all of them, a schedule and sensors.

The schedule and the sensors that start runs are off at first.
"""

import os
from collections.abc import Iterator

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cloze.infra.ray_session import LazyRaySession
from cloze.infra.workflow.alerts import failure_sensor
from cloze.infra.workflow.assets import Begin, stage_assets
from cloze.infra.workflow.launched_run import launched_run
from cloze.infra.workflow.names import identifier
from cloze.infra.workflow.outputs import outputs_sensor
from cloze.infra.workflow.partitions import ConfiguredRun, read_run
from cloze.infra.workflow.promotion import promoted_asset
from cloze.infra.workflow.queue import root_tag, run_tags, unfinished_run
from cloze.infra.workflow.run_process import process_of
from cloze.infra.workflow.sensors import file_sensor, newest_dumps, whole_files
from cloze.infra.workflow.sources import observable_sources
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


def definitions_of_runs() -> dagster.Definitions:
    """The definitions of the runs in CLOZE_CONFIG, separated by spaces."""
    runs = [read_run(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [identifier(run.name) for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a different name")
    return dagster.Definitions.merge(*map(definitions, runs))


@dagster.resource(description="The Ray session that the stages of a run share: it starts when the first needs it")
def _ray() -> Iterator[LazyRaySession]:
    session = LazyRaySession()
    try:
        yield session
    finally:
        session.close()


def definitions(run: ConfiguredRun, begin: Begin = launched_run) -> dagster.Definitions:
    """The definitions of one run. `begin` begins a run of its job: one that Dagster has started, or another."""
    assets = stage_assets(run, begin)
    # All stages are one op, in the process of the run: they share a Ray session.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        identifier(run.name),
        selection=[assets],
        executor_def=executor,
        description=f"All stages of {run.name}; those that are finished are skipped.",
        run_tags=run_tags(run.config) if begin is launched_run else root_tag(run.config),
    )
    return dagster.Definitions(
        assets=[assets, *observable_sources(run), *promoted_asset(run)],
        jobs=[job],
        schedules=[_schedule(run, job)],
        sensors=[outputs_sensor(run), file_sensor(run, job), *failure_sensor(run, job)],
        resources={"ray": _ray},
        executor=executor,
    )


def _schedule(run: ConfiguredRun, job: UnresolvedAssetJobDefinition) -> dagster.ScheduleDefinition:
    def tick(context: dagster.ScheduleEvaluationContext) -> Iterator[dagster.RunRequest | dagster.SkipReason]:
        if unfinished := unfinished_run(context.instance, run.config):
            root = Location(run.config.root).absolute()
            process = process_of(unfinished)
            where = f": {process}" if process else ""
            yield dagster.SkipReason(f"Run {unfinished.run_id} of {root} is not finished{where}.")
        elif run.partitions:
            yield from newest_dumps(run, context.instance)
        else:
            yield from whole_files(run)

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
        raise UserError(f"schedule: {cron} is not a cron expression; write five fields such as 0 3 * * 0") from error
