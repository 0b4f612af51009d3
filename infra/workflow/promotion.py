"""A run that nobody watches and whose stages have all passed their checks -> its promotion, if its schedule says so."""

import dagster

from cloze.infra.planner import Run
from cloze.infra.promote import HeldBack, promote
from cloze.infra.workflow.alerts import report_held_back
from cloze.infra.workflow.launched_run import StartedStages
from cloze.infra.workflow.names import asset_key, identifier
from cloze.infra.workflow.partitions import ConfiguredRun, partition_of

PROMOTED = "promoted"  # the name of the asset, beside those of the stages
_STARTED_BY = ("dagster/schedule_name", "dagster/sensor_name")  # tags of runs that a schedule or a sensor has started


def to_be_promoted(context: dagster.AssetExecutionContext, started: StartedStages) -> bool:
    """Whether the schedule promotes: a schedule or a sensor has started the run, with all its stages."""
    run = started.run
    is_whole = len(started.stages) == len(run.stages)
    return run.config.schedule.promote and is_whole and any(tag in context.run.tags for tag in _STARTED_BY)


def promoted_asset(configured: ConfiguredRun) -> list[dagster.AssetSpec]:
    """The asset that shows the promotions of a run whose schedule promotes; its pages do not create it."""
    if not configured.config.schedule.promote:
        return []
    stages = Run(configured.config).unresolved_stages
    return [
        dagster.AssetSpec(
            asset_key(configured.name, PROMOTED),
            deps=[asset_key(configured.name, stage.name) for stage in stages],
            group_name=identifier(configured.name),
            description="The model that the schedule has promoted: see `cloze promote`",
            partitions_def=configured.partitions,
        )
    ]


def promote_run(context: dagster.AssetExecutionContext, run_name: str, run: Run) -> None:
    """Promote the model of a finished run, and tell Dagster, also if it is held back: that is reported as well, as its
    run is a success. Raises UserError."""
    key = asset_key(run_name, PROMOTED)
    try:
        event = promote(run, why=f"Dagster run {context.run.run_id}: all checks passed", automatic=True)
    except HeldBack as reason:
        context.log.warning(str(reason))
        report_held_back(context, run_name, run.config.schedule, str(reason))
        context.log_event(
            dagster.AssetObservation(key, metadata={"held back": str(reason)}, partition=partition_of(context))
        )
        return
    context.log_event(
        dagster.AssetMaterialization(
            key,
            metadata={
                "digest": event.digest,
                "run": event.run,
                "by": event.by,
                "why": event.why,
                "number": event.number,
            },
            partition=partition_of(context),
        )
    )
