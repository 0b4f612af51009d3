"""A run's stages as Dagster assets, which one op materializes in order."""

import signal
from collections.abc import Iterator, Sequence

import dagster
from pydantic import Field

from cloze.infra.execution import ActiveRun, ExecutedStage, execute_stage
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.workflow.cluster import job_stages
from cloze.infra.workflow.metadata import stage_metadata
from cloze.infra.workflow.names import asset_key, identifier, op_name
from cloze.pipeline.core.signals import keyboard_interrupt_on


class RunSettings(dagster.Config):
    """The configuration of a run in Dagster's launchpad."""

    force: list[str] = Field(default=[], description="Stages to run again although they are finished.")
    cluster: str | None = Field(
        default=None,
        description="File of the cluster that runs it as a job; empty for this machine. By default schedule.cluster.",
    )
    wait: bool = Field(default=True, description="Wait for another run that works on the same output.")


def stage_assets(config: RunConfig) -> dagster.AssetsDefinition:
    """An asset for each stage of a run, under the run's name. Any of them can be selected; the order is the run's."""
    name, stages = identifier(config.name), list(Run(config).stages.values())

    @dagster.multi_asset(
        name=op_name(config.name),
        specs=[_spec(config.name, stage) for stage in stages],
        can_subset=True,
        required_resource_keys={name},
    )
    def materialize_stages(
        context: dagster.AssetExecutionContext, config: RunSettings
    ) -> Iterator[dagster.MaterializeResult]:
        active: ActiveRun = getattr(context.resources, name)
        run_name = active.run.config.name
        selected = [stage for stage in stages if asset_key(run_name, stage.name) in context.selected_asset_keys]
        for done in _interruptible(_executed(context, active, selected, config)):
            yield dagster.MaterializeResult(
                asset_key=asset_key(run_name, done.planned.stage.name),
                metadata=stage_metadata(done.planned, done.manifest, done.seconds),
                data_version=dagster.DataVersion(done.manifest.fingerprint),
            )

    return materialize_stages


def _spec(run_name: str, stage: Stage) -> dagster.AssetSpec:
    return dagster.AssetSpec(
        asset_key(run_name, stage.name),
        deps=[asset_key(run_name, name) for name in stage.after],
        group_name=identifier(run_name),
        description=stage.description,
        kinds=set(stage.kinds),
        code_version=str(stage.version),
        skippable=True,
    )


def _executed(
    context: dagster.AssetExecutionContext, active: ActiveRun, selected: Sequence[Stage], settings: RunSettings
) -> Iterator[ExecutedStage]:
    """Execute the selected stages here, or as a job on a cluster."""
    config = active.run.config
    cluster = config.schedule.cluster if settings.cluster is None else settings.cluster
    if cluster:
        names = [stage.name for stage in selected]
        yield from job_stages(context, config, cluster, names, settings.force)
        return
    for stage in selected:
        yield execute_stage(active, stage, force=stage.name in settings.force, wait=settings.wait)


def _interruptible(stages: Iterator[ExecutedStage]) -> Iterator[ExecutedStage]:
    """The stages, whose execution SIGINT and SIGTERM end as Ctrl-C does: Dagster would raise its own exception."""
    while True:
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):
            done = next(stages, None)
        if done is None:
            return
        yield done
