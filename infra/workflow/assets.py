"""A run's stages as Dagster assets, which one op materializes in order."""

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager

import dagster

from cloze.infra.execution import ExecutedStage
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.workflow.launched_run import StartedStages, launched_run
from cloze.infra.workflow.metadata import stage_metadata
from cloze.infra.workflow.names import asset_key, identifier, op_name
from cloze.infra.workflow.run_settings import RunSettings
from cloze.pipeline.core.signals import keyboard_interrupt_on

#: Begins a run: the context of the op, the run's configuration, the settings, and the names of the selected stages.
Begin = Callable[
    [dagster.AssetExecutionContext, RunConfig, RunSettings, Collection[str]], AbstractContextManager[StartedStages]
]


def stage_assets(run_config: RunConfig, begin: Begin = launched_run) -> dagster.AssetsDefinition:
    """An asset for each stage of a run, under the run's name. Any of them can be selected; the order is the run's."""

    @dagster.multi_asset(
        name=op_name(run_config.name),
        specs=[_spec(run_config.name, stage) for stage in Run(run_config).stages.values()],
        can_subset=True,
        required_resource_keys={"ray"},
    )
    def materialize_stages(
        context: dagster.AssetExecutionContext, config: RunSettings
    ) -> Iterator[dagster.MaterializeResult]:
        selected = {key.path[-1] for key in context.selected_asset_keys}
        with begin(context, run_config, config, selected) as started:
            for done in _interruptible(started.executed):
                yield dagster.MaterializeResult(
                    asset_key=asset_key(run_config.name, done.planned.stage.name),
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


def _interruptible(stages: Iterator[ExecutedStage]) -> Iterator[ExecutedStage]:
    """The stages, whose execution SIGINT and SIGTERM end as Ctrl-C does: Dagster would raise its own exception."""
    while True:
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):
            done = next(stages, None)
        if done is None:
            return
        yield done
