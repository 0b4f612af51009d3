"""Runs -> Dagster's definitions: for each its assets, a job of all of them, and a schedule that is off at first."""

import os
from collections.abc import Iterator

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cloze.infra import named_runs
from cloze.infra.ray_session import LazyRaySession
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.assets import Begin, stage_assets
from cloze.infra.workflow.launched_run import launched_run
from cloze.infra.workflow.names import identifier
from cloze.infra.workflow.queue import root_tag, run_tags, unfinished_run
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


def definitions_of_runs() -> dagster.Definitions:
    """The definitions of the runs in CLOZE_CONFIG, separated by spaces."""
    configs = [named_runs.read(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [identifier(config.name) for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a different name")
    return dagster.Definitions.merge(*map(definitions, configs))


@dagster.resource(description="The Ray session that the stages of a run share: it starts when the first needs it")
def _ray() -> Iterator[LazyRaySession]:
    session = LazyRaySession()
    try:
        yield session
    finally:
        session.close()


def definitions(config: RunConfig, begin: Begin = launched_run) -> dagster.Definitions:
    """The definitions of one run. `begin` begins a run of its job: one that Dagster has started, or another."""
    name, assets = identifier(config.name), stage_assets(config, begin)
    # All stages are one op, in the process of the run: they share a Ray session.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        name,
        selection=[assets],
        executor_def=executor,
        description=f"All stages of {config.name}; those that are finished are skipped.",
        run_tags=run_tags(config) if begin is launched_run else root_tag(config),
    )
    return dagster.Definitions(
        assets=[assets], jobs=[job], schedules=[_schedule(config, job)], resources={"ray": _ray}, executor=executor
    )


def _schedule(config: RunConfig, job: UnresolvedAssetJobDefinition) -> dagster.ScheduleDefinition:
    def tick(context: dagster.ScheduleEvaluationContext) -> dagster.RunRequest | dagster.SkipReason:
        if run := unfinished_run(context.instance, config):
            return dagster.SkipReason(f"Run {run.run_id} of {Location(config.root).absolute()} is not finished.")
        return dagster.RunRequest()

    try:
        return dagster.ScheduleDefinition(
            name=f"{identifier(config.name)}_schedule",
            job=job,
            cron_schedule=config.schedule.cron,
            execution_fn=tick,
            default_status=dagster.DefaultScheduleStatus.STOPPED,
        )
    except dagster.DagsterInvalidDefinitionError as error:
        raise UserError(
            f"schedule: {config.schedule.cron} is not a cron expression; write five fields such as 0 3 * * 0"
        ) from error
