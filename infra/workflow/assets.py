"""A run's stages as Dagster assets, which one op materializes in order."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import dagster
from pydantic import Field

from cloze.infra import named_runs
from cloze.infra.checks.results import ChecksFailed, require_passed
from cloze.infra.display import Display, duration, summary, warnings
from cloze.infra.live_report import render_run
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.workflow.metadata import stage_metadata
from cloze.infra.workflow.names import asset_key, identifier, op_name
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.signals import keyboard_interrupt_on


class RunSettings(dagster.Config):
    """The configuration of a run in Dagster's launchpad."""

    force: list[str] = Field(default=[], description="Stages to run again although they are finished.")
    wait: bool = Field(default=True, description="Wait for another run that works on the same output.")


@dataclass(frozen=True)
class ActiveRun:
    """The Dagster resource of the assets."""

    run: Run
    display: Display


@contextmanager
def active_run(config: RunConfig) -> Iterator[ActiveRun]:
    """A run that is stored under its root, with its display. Ends the Ray session that it may start."""
    display = Display([stage.name for stage in Run(config).unresolved_stages])
    try:
        named_runs.store(config)
        with reporting_waits(display.wait), Run(config, progress=display) as run:
            yield ActiveRun(run, display)
    finally:
        display.close()


def stage_assets(config: RunConfig) -> dagster.AssetsDefinition:
    """An asset for each stage of a run, under the run's name. Any of them can be selected; the order is the run's."""
    name, stages = identifier(config.name), Run(config).unresolved_stages

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
        for stage in stages:
            key = asset_key(active.run.config.name, stage.name)
            if key not in context.selected_asset_keys:
                continue
            with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):  # Dagster would raise its own exception
                planned, manifest, seconds = _execute(active, stage, stage.name in config.force, config.wait)
            yield dagster.MaterializeResult(
                asset_key=key,
                metadata=stage_metadata(planned, manifest, seconds),
                data_version=dagster.DataVersion(manifest.fingerprint),
            )
            _require_passed(active.run, stage)
        active.run.remember_passed()

    return materialize_stages


def _require_passed(run: Run, stage: Stage) -> None:
    """Raises ChecksFailed when a check of a finished stage failed, after it has written the report, which shows it."""
    try:
        require_passed(run.check_results(stage.name))
    except ChecksFailed:
        render_run(run)
        raise


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


def _execute(active: ActiveRun, stage: Stage, force: bool, wait: bool) -> tuple[PlannedStage, Manifest, float]:
    """Execute a stage and display its progress. Returns also the seconds it took."""
    started = time.monotonic()

    def show_start(planned: PlannedStage) -> None:
        active.display.start(stage.name, planned.action, planned.reason)

    show_wait = partial(active.display.show_owner, stage.name) if wait else None
    planned, manifest = active.run.execute(stage.name, force, on_start=show_start, on_wait=show_wait)
    seconds = time.monotonic() - started
    if planned.action == "skip":
        active.display.finish(stage.name, f"skip: {planned.reason}")
    else:
        active.display.finish(stage.name, f"done in {duration(seconds)}: {summary(manifest)}", warnings(manifest))
    return planned, manifest, seconds
