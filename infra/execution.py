"""A run's stages, one after the other in this process, with the display of their progress.

A submitted job uses `run_stages` and needs no Dagster. `cloze run` on the command line goes through Dagster
(workflow/command.py), which executes the same stages with the same functions.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cloze.infra import named_runs
from cloze.infra.checks.results import ChecksFailed, require_passed
from cloze.infra.display import Display, duration, summary, warnings
from cloze.infra.limits import spending_limited
from cloze.infra.live_report import render_run
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.ray_session import LazyRaySession
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.status import results
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.retries import reporting_waits


@dataclass(frozen=True)
class ActiveRun:
    """A run that is being executed, and its display."""

    run: Run
    display: Display


@dataclass(frozen=True)
class ExecutedStage:
    """What was planned for a stage, its output's manifest, and the seconds that it took now."""

    planned: PlannedStage
    manifest: Manifest
    seconds: float


@contextmanager
def active_run(
    config: RunConfig, ray: LazyRaySession | None = None, stages: Sequence[str] | None = None
) -> Iterator[ActiveRun]:
    """A run that is stored under its root, with its display, which counts `stages` (by default all of them).

    Ends the Ray session that it may start.
    """
    display = Display([*stages] if stages else [stage.name for stage in Run(config).unresolved_stages])
    try:
        named_runs.store(config)
        with reporting_waits(display.wait), Run(config, progress=display, ray=ray) as run:
            yield ActiveRun(run, display)
    finally:
        display.close()


def execute_stage(active: ActiveRun, stage: Stage, *, force: bool, wait: bool) -> ExecutedStage:
    """Execute a stage and display its progress. Without `wait`, another run at work on it is an ArtifactInUse."""
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
    return ExecutedStage(planned, manifest, seconds)


def require_passed_checks(run: Run, stage: Stage) -> None:
    """Raises ChecksFailed when a check of a finished stage failed, after it has written the report, which shows it."""
    try:
        require_passed(run.check_results(stage.name))
    except ChecksFailed:
        render_run(run)
        raise


def still_forced(run: Run, force: Sequence[str], first_attempt: str | None) -> list[str]:
    """Those of the stages to force that no earlier attempt has begun to run again.

    `first_attempt` is when the first of several attempts started (UTC, as in manifests). What it has cleared and not
    finished is continued.
    """
    if first_attempt is None:
        return list(force)
    finished = {name: artifact.manifest.finished for name in force if (artifact := run.artifact(name))}
    return [name for name in force if name in finished and finished[name] < first_attempt]


@contextmanager
def started_run(run: Run, until: str | None, force: Sequence[str]) -> Iterator[list[Stage]]:
    """The stages to execute inside the block, of a run that can start; prints its results after it.

    Raises UserError when the options or the user's files are wrong, or a limit of the run is already spent.
    """
    stages = run.until(until)
    run.check_forced(until, force)
    run.check(until, force)
    with spending_limited(run.config, whole_run=until is None):
        yield stages
    for line in results(run, stages):
        print(line)


def run_stages(
    run: Run,
    until: str | None = None,
    force: Sequence[str] = (),
    *,
    wait: bool = True,
    first_attempt: str | None = None,
) -> int:
    """Run the stages up to `until`. Returns 0; raises the exception of the stage that failed.

    A job that starts again names the time of its `first_attempt`: see `still_forced`.
    """
    with started_run(run, until, force) as stages, active_run(run.config) as active:
        for stage in stages:
            forced = [name for name in force if name == stage.name]  # looked up when its inputs are finished
            execute_stage(active, stage, force=bool(still_forced(active.run, forced, first_attempt)), wait=wait)
            require_passed_checks(active.run, stage)
        active.run.remember_passed()
    return 0
