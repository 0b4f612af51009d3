"""Runs -> Dagster's definitions: for each its assets, a job of all of them, and a schedule that is off at first."""

import os
from collections.abc import Iterator

import dagster

from cloze.infra.execution import ActiveRun, active_run
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.assets import stage_assets
from cloze.infra.workflow.cluster import read_run
from cloze.infra.workflow.names import identifier
from cloze.pipeline.core.errors import UserError


@dagster.definitions
def defs() -> dagster.Definitions:
    """The definitions of `dagster dev -m cloze.infra.workflow`: the runs in CLOZE_CONFIG, separated by spaces."""
    configs = [read_run(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [identifier(config.name) for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a different name")
    return dagster.Definitions.merge(*map(definitions, configs))


def definitions(config: RunConfig) -> dagster.Definitions:
    """The definitions of one run."""
    name = identifier(config.name)

    @dagster.resource(description=f"The progress display of {config.name}, and the Ray session that its stages share")
    def resource() -> Iterator[ActiveRun]:
        with active_run(config) as active:
            yield active

    assets = stage_assets(config)
    # All stages are one op, in the process of the run: they share a Ray session.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        name,
        selection=[assets],
        executor_def=executor,
        description=f"All stages of {config.name}; those that are finished are skipped.",
    )
    try:
        schedule = dagster.ScheduleDefinition(
            name=f"{name}_schedule",
            job=job,
            cron_schedule=config.schedule.cron,
            default_status=dagster.DefaultScheduleStatus.STOPPED,
        )
    except dagster.DagsterInvalidDefinitionError as error:
        raise UserError(
            f"schedule: {config.schedule.cron} is not a cron expression; write five fields such as 0 3 * * 0"
        ) from error
    return dagster.Definitions(
        assets=[assets], jobs=[job], schedules=[schedule], resources={name: resource}, executor=executor
    )
