"""A run's stages as Dagster assets, which one op materializes in order."""

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager

import dagster

from cloze.infra.execution import require_passed_checks
from cloze.infra.planner import Run
from cloze.infra.stages import Stage
from cloze.infra.workflow.events import Event, check_specs, source_observations, stage_events
from cloze.infra.workflow.launched_run import StartedStages, launched_run
from cloze.infra.workflow.names import FAILED_STAGE, asset_key, identifier, op_name
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.promotion import promote_run, to_be_promoted
from cloze.infra.workflow.run_settings import RunSettings
from cloze.infra.workflow.sources import Sources, read_by, sources_of
from cloze.pipeline.core.signals import keyboard_interrupt_on

#: Begins a run: the context of the op, the run, the settings, and the names of the selected stages.
Begin = Callable[
    [dagster.AssetExecutionContext, ConfiguredRun, RunSettings, Collection[str]], AbstractContextManager[StartedStages]
]


def stage_assets(configured: ConfiguredRun, begin: Begin = launched_run) -> dagster.AssetsDefinition:
    """An asset for each stage of a run, under the run's name. Any of them can be selected; the order is the run's."""
    name, stages = configured.name, Run(configured.config).unresolved_stages
    sources = sources_of(name, stages)

    @dagster.multi_asset(
        name=op_name(name),
        specs=[_spec(name, stage, sources) for stage in stages],
        check_specs=check_specs(name, stages),
        partitions_def=configured.partitions,
        can_subset=True,
        required_resource_keys={"ray"},
    )
    def materialize_stages(context: dagster.AssetExecutionContext, config: RunSettings) -> Iterator[Event]:
        selected = {key.path[-1] for key in context.selected_asset_keys}
        with begin(context, configured, config, selected) as started:
            for stage in started.stages:
                yield from _executed(context, name, started, stage)
            started.run.remember_passed()
            if to_be_promoted(context, started):
                promote_run(context, name, started.run)

    return materialize_stages


def _executed(
    context: dagster.AssetExecutionContext, run_name: str, started: StartedStages, stage: Stage
) -> Iterator[Event]:
    """Execute the next stage; yields what Dagster is told of it and of the user's files that it has read.

    Raises ChecksFailed after the events of a stage that has failed a check.
    """
    run = started.run
    try:
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):  # Dagster would raise its own exception
            done = next(started.executed)
        yield from source_observations(context, run_name, run, stage)
        yield from stage_events(context, run_name, run, done)
        require_passed_checks(run, stage)
    except BaseException:
        context.instance.add_run_tags(context.run.run_id, {FAILED_STAGE: stage.name})
        raise


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
