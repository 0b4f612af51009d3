"""A run's stages as Dagster assets, which one op materializes in order."""

import signal
from collections.abc import Iterator

import dagster
from pydantic import Field

from cloze.infra.checks.results import ChecksFailed
from cloze.infra.checks.stage_checks import check_stage
from cloze.infra.execution import ActiveRun, execute_stage, finished_stage
from cloze.infra.planner import Run
from cloze.infra.stages import Stage
from cloze.infra.workflow.events import Event, check_specs, source_observations, stage_events
from cloze.infra.workflow.metadata import artifact_of
from cloze.infra.workflow.names import FAILED_STAGE, asset_key, identifier, op_name
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.promotion import is_unattended, promote_run
from cloze.infra.workflow.sources import Sources, read_by, sources_of
from cloze.pipeline.core.signals import keyboard_interrupt_on


class RunSettings(dagster.Config):
    """The configuration of a run in Dagster's launchpad."""

    force: list[str] = Field(default=[], description="Stages to run again although they are finished.")
    wait: bool = Field(default=True, description="Wait for another run that works on the same output.")


def stage_assets(configured: ConfiguredRun) -> dagster.AssetsDefinition:
    """An asset for each stage of a run, under the run's name. Any of them can be selected; the order is the run's."""
    name, stages = configured.name, list(Run(configured.config).stages.values())
    sources = sources_of(name, stages)

    @dagster.multi_asset(
        name=op_name(name),
        specs=[_spec(name, stage, sources) for stage in stages],
        check_specs=check_specs(name, stages),
        partitions_def=configured.partitions,
        can_subset=True,
        required_resource_keys={identifier(name)},
    )
    def materialize_stages(context: dagster.AssetExecutionContext, config: RunSettings) -> Iterator[Event]:
        active: ActiveRun = getattr(context.resources, identifier(name))
        selected = [stage for stage in stages if asset_key(name, stage.name) in context.selected_asset_keys]
        for stage in selected:
            yield from _execute(context, configured, active, stage, force=stage.name in config.force, wait=config.wait)
        if len(selected) == len(stages) and configured.config.schedule.promote and is_unattended(context.run):
            promote_run(context, name, active.run)

    return materialize_stages


def _execute(
    context: dagster.AssetExecutionContext, configured: ConfiguredRun, active: ActiveRun, stage: Stage, **how: bool
) -> Iterator[Event]:
    """Execute a stage; yields what Dagster is told of it and of the user's files that it read."""
    run, failed = active.run, None
    # of this partition, where `stage` has the same name
    stage = run.stage(stage.name)
    try:
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):  # Dagster would raise its own exception
            done = execute_stage(active, stage, **how)
    except BaseException as error:
        context.instance.add_run_tags(context.run_id, {FAILED_STAGE: stage.name})
        if not isinstance(error, ChecksFailed):
            raise
        failed, done = error, finished_stage(run, stage)
    sources = sources_of(configured.name, list(run.stages.values()))
    yield from source_observations(context, sources, run, stage)
    checks = failed.results if failed else check_stage(run, stage.name, artifact_of(done))
    yield from stage_events(context, configured.name, run, done, checks)
    if failed:
        raise failed


def _spec(run_name: str, stage: Stage, sources: Sources) -> dagster.AssetSpec:
    return dagster.AssetSpec(
        asset_key(run_name, stage.name),
        deps=[*(asset_key(run_name, name) for name in stage.after), *read_by(sources, stage)],
        group_name=identifier(run_name),
        description=stage.description,
        kinds=set(stage.kinds),
        code_version=str(stage.version),
        skippable=True,
    )
