"""A run's stages as Dagster assets, with a job and a weekly schedule. What a stage does is decided in planner.py.

`cloze run` materializes the assets in this process; `python -m cloze.infra.workflow` starts Dagster's UI with the same
assets (`defs`). Both keep their history in one DAGSTER_HOME, by default ./.dagster.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster

from cloze.infra import named_runs
from cloze.infra.display import Display, duration, summary, warnings
from cloze.infra.limits import spending_limited
from cloze.infra.planner import PlannedStage, Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.status import results
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.signals import keyboard_interrupt_on

# Tags of a run in Dagster's history.
_COMMAND = "cloze/command"
_FORCE = "cloze/force"  # names of the stages to run again, separated by spaces
_NO_WAIT = "cloze/no-wait"  # set if no stage is to wait for another run
_PROCESS = "cloze/process"  # see _process

_SETTINGS = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the display replaces it
# Dagster would capture stdout and stderr, and the display would not see a terminal.
_NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
_UNFINISHED = [
    dagster.DagsterRunStatus.NOT_STARTED,
    dagster.DagsterRunStatus.STARTING,
    dagster.DagsterRunStatus.STARTED,
    dagster.DagsterRunStatus.CANCELING,
]


@dagster.definitions
def defs() -> dagster.Definitions:
    """The definitions of `dagster dev -m cloze.infra.workflow`: the runs in CLOZE_CONFIG, separated by spaces."""
    configs = [named_runs.read(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [_identifier(config.name) for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a different name")
    return dagster.Definitions.merge(*map(definitions, configs))


def definitions(config: RunConfig) -> dagster.Definitions:
    """An asset for each stage under the run's name, a job of all of them, and its schedule, initially switched off."""
    name = _identifier(config.name)

    @dagster.resource(description=f"The progress display of {config.name}, and the Ray session that its stages share")
    def resource() -> Iterator["_ActiveRun"]:
        with _active_run(config) as active:
            yield active

    stages = Run(config).stages.values()
    # Among the stages that could be next Dagster takes the one with the highest priority, then the first by name.
    assets = [_asset(config.name, stage, priority=-place) for place, stage in enumerate(stages)]
    # All stages in one process: any other executor would start a Ray session for each.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        name,
        selection=assets,
        executor_def=executor,
        description=f"All stages of {config.name}; those that are finished are skipped.",
    )
    try:
        schedule = dagster.ScheduleDefinition(
            name=f"{name}_schedule",
            job=job,
            cron_schedule=config.schedule,
            default_status=dagster.DefaultScheduleStatus.STOPPED,
        )
    except dagster.DagsterInvalidDefinitionError as error:
        raise UserError(
            f"schedule: {config.schedule} is not a cron expression; write five fields such as 0 3 * * 0"
        ) from error
    return dagster.Definitions(
        assets=assets, jobs=[job], schedules=[schedule], resources={name: resource}, executor=executor
    )


def materialize(
    run: Run, command: str, until: str | None = None, force: Sequence[str] = (), *, wait: bool = True
) -> int:
    """Run the stages up to `until` in this process, as one run in Dagster's history.

    Returns 0; raises the exception of the stage that failed. Unless it is to `wait` for another run that works on the
    same output, that is an ArtifactInUse.
    """
    stages = run.until(until)
    run.check_forced(until, force)
    run.check(until, force)
    job = definitions(run.config).resolve_job_def(_identifier(run.config.name))
    no_wait = "" if wait else "yes"
    tags = {_COMMAND: command, _FORCE: " ".join(force), _NO_WAIT: no_wait, _PROCESS: _process(os.getpid())}
    with _history() as instance, spending_limited(run.config, whole_run=until is None):
        _cancel_orphans(instance)
        job.execute_in_process(
            _QUIET,
            instance,
            asset_selection=[_key(run.config.name, stage.name) for stage in stages],
            tags={name: value for name, value in tags.items() if value},
        )
    for line in results(run, stages):
        print(line)
    return 0


@dataclass(frozen=True)
class _ActiveRun:
    """The Dagster resource of the assets."""

    run: Run
    display: Display


@contextmanager
def _active_run(config: RunConfig) -> Iterator[_ActiveRun]:
    display = Display(list(Run(config).stages))
    try:
        named_runs.store(config)
        with reporting_waits(display.wait), Run(config, progress=display) as run:
            yield _ActiveRun(run, display)
    finally:
        display.close()


def _asset(run_name: str, stage: Stage, priority: int) -> dagster.AssetsDefinition:
    resource = _identifier(run_name)

    @dagster.asset(
        key=_key(run_name, stage.name),
        deps=[_key(run_name, name) for name in stage.after],
        group_name=resource,
        description=stage.description,
        kinds=set(stage.kinds),
        code_version=str(stage.version),
        op_tags={"dagster/priority": str(priority)},
        required_resource_keys={resource},
    )
    def materialize_stage(context: dagster.AssetExecutionContext) -> dagster.MaterializeResult:
        active: _ActiveRun = getattr(context.resources, resource)
        force = stage.name in context.run.tags.get(_FORCE, "").split()
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):  # Dagster would raise its own exception
            planned, manifest, seconds = _execute(active, stage, force, wait=_NO_WAIT not in context.run.tags)
        return dagster.MaterializeResult(
            metadata=_metadata(planned, manifest, seconds), data_version=dagster.DataVersion(manifest.fingerprint)
        )

    return materialize_stage


def _execute(active: _ActiveRun, stage: Stage, force: bool, wait: bool) -> tuple[PlannedStage, Manifest, float]:
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


def _metadata(planned: PlannedStage, manifest: Manifest, seconds: float) -> dict[str, dagster.MetadataValue]:
    """What Dagster's UI shows of a materialized stage."""
    assert planned.output
    numbers = {**manifest.counts, **{f"dropped: {reason}": number for reason, number in manifest.drops.items()}}
    return {
        "action": dagster.MetadataValue.text(planned.action),
        "reason": dagster.MetadataValue.text(planned.reason),
        "location": dagster.MetadataValue.path(planned.output.location.uri),
        "seconds": dagster.MetadataValue.float(round(seconds, 3)),
        **{name: dagster.MetadataValue.int(number) for name, number in numbers.items()},
        **{f"warning {number}": dagster.MetadataValue.text(line) for number, line in enumerate(warnings(manifest), 1)},
    }


def home() -> Path:
    """Dagster's home: DAGSTER_HOME, or ./.dagster. Created, with telemetry switched off, when it does not exist."""
    folder = Path(os.environ.get("DAGSTER_HOME") or ".dagster").absolute()
    settings = folder / "dagster.yaml"
    if not settings.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            settings.write_text(_SETTINGS)
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; set DAGSTER_HOME to a folder that can be written") from error
    return folder


@contextmanager
def _history() -> Iterator[dagster.DagsterInstance]:
    """Dagster's history in `home()`. One process at a time opens it: two that create its databases damage them."""
    with ExitStack() as resources, (home() / "opening.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = resources.enter_context(dagster.DagsterInstance.local_temp(str(home()), overrides=_NO_CAPTURE))
        instance.get_runs(limit=1)
        instance.get_asset_keys(limit=1)
        fcntl.flock(lock, fcntl.LOCK_UN)
        yield instance


def _cancel_orphans(instance: dagster.DagsterInstance) -> None:
    """Mark runs of this machine as canceled whose process no longer exists: after kill -9 or a power failure Dagster
    still counts them as running."""
    for run in instance.get_runs(dagster.RunsFilter(statuses=_UNFINISHED)):
        host, pid, _ = [*run.tags.get(_PROCESS, "").split(), "", "", ""][:3]
        if host == socket.gethostname() and run.tags[_PROCESS] != _process(int(pid)):
            instance.report_run_canceled(run, message="Its process ended without reporting it.")


def _process(pid: int) -> str:
    """Host, process id and start time of a process, in ticks since the boot, as ids are reused; - when it does not
    exist."""
    start = "-"
    with suppress(OSError):
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {pid} {start}"


def _key(run_name: str, stage_name: str) -> dagster.AssetKey:
    return dagster.AssetKey([run_name, stage_name])


def _identifier(name: str) -> str:
    """A name for Dagster's jobs, groups and resources, which may not contain dashes."""
    return name.replace("-", "_")


def _start_ui() -> None:
    """Replace this process by `dagster dev` with `defs` and the history of `home()`; passes on the arguments."""
    os.environ |= {"DAGSTER_HOME": str(home()), "DAGSTER_DISABLE_TELEMETRY": "yes", "RAY_USAGE_STATS_ENABLED": "0"}
    # The newer command that Dagster's warning recommends requires its own project layout.
    quiet = ["-W", "ignore:Function `dev_command`"]
    os.execv(
        sys.executable, [sys.executable, *quiet, "-m", "dagster", "dev", "-m", "cloze.infra.workflow", *sys.argv[1:]]
    )


if __name__ == "__main__":
    _start_ui()
