"""A run's stages as Dagster assets, with a job and a weekly schedule. Thin: what is done, and when, is planner.py's.

`cloze run` materializes the assets in this process; `python -m cloze.infra.workflow` opens Dagster's pages over the
same ones (`defs`). One DAGSTER_HOME, by default ./.dagster, keeps the history of both.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster

from cloze.infra import named_runs
from cloze.infra.display import Display, duration, summary, warnings
from cloze.infra.planner import Run, Step
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.status import results
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.signals import keyboard_interrupt_on

# Tags of a run in Dagster's history.
_COMMAND = "cloze/command"
_FORCE = "cloze/force"  # the stages to run again, spaces between
_PROCESS = "cloze/process"  # host, process id and its start

_SETTINGS = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the display is what a person reads
# Dagster's capture of stdout and stderr would take the terminal away from the display.
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
    """What `dagster dev -m cloze.infra.workflow` shows: the runs that CLOZE_CONFIG names, with spaces between."""
    configs = [named_runs.read(run) for run in os.environ.get("CLOZE_CONFIG", "configs/quickstart.yaml").split()]
    names = [_identifier(config.name) for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"CLOZE_CONFIG has two runs named {twice[0]}; give each configuration a name of its own")
    return dagster.Definitions.merge(*map(definitions, configs))


def definitions(config: RunConfig) -> dagster.Definitions:
    """One asset a stage under the run's name, a job of them all, and its schedule, which is off until switched on."""
    name = _identifier(config.name)

    @dagster.resource(description=f"{config.name} at work: its display, and the Ray that its stages share")
    def resource() -> Iterator["_Work"]:
        with _at_work(config) as work:
            yield work

    stages = Run(config).stages.values()
    # Where several could be next, Dagster takes the highest priority, then the alphabet.
    assets = [_asset(config.name, stage, priority=-place) for place, stage in enumerate(stages)]
    # All stages in one process: any other executor would start a Ray for each.
    executor = dagster.in_process_executor
    job = dagster.define_asset_job(
        name, selection=assets, executor_def=executor, description=f"Every stage of {config.name} that is not done yet."
    )
    try:
        schedule = dagster.ScheduleDefinition(
            name=f"{name}_schedule",
            job=job,
            cron_schedule=config.schedule,
            default_status=dagster.DefaultScheduleStatus.STOPPED,
        )
    except dagster.DagsterInvalidDefinitionError as error:
        raise UserError(f"schedule: {config.schedule} is no cron line; write five fields such as 0 3 * * 0") from error
    return dagster.Definitions(
        assets=assets, jobs=[job], schedules=[schedule], resources={name: resource}, executor=executor
    )


def materialize(run: Run, command: str, until: str | None = None, force: Sequence[str] = ()) -> int:
    """Bring about a run's outputs up to `until`, in this process and as one run of Dagster's history.

    Returns 0; raises what the stage raised that failed.
    """
    stages = run.until(until)
    run.check_forced(until, force)
    run.check(until, force)
    job = definitions(run.config).resolve_job_def(_identifier(run.config.name))
    tags = {_COMMAND: command, _FORCE: " ".join(force), _PROCESS: _process(os.getpid())}
    with dagster.DagsterInstance.local_temp(str(home()), overrides=_NO_CAPTURE) as instance:
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
class _Work:
    run: Run
    display: Display


@contextmanager
def _at_work(config: RunConfig) -> Iterator[_Work]:
    display = Display(list(Run(config).stages))
    try:
        named_runs.keep(config)
        with Run(config, progress=display) as run:
            yield _Work(run, display)
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
    def bring_about(context: dagster.AssetExecutionContext) -> dagster.MaterializeResult:
        work: _Work = getattr(context.resources, resource)
        force = stage.name in context.run.tags.get(_FORCE, "").split()
        with keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM):  # Dagster would raise an exception of its own
            step, manifest, seconds = _execute(work, stage, force)
        assert step.output
        return dagster.MaterializeResult(
            metadata=_metadata(step, manifest, seconds), data_version=dagster.DataVersion(step.output.fingerprint)
        )

    return bring_about


def _execute(work: _Work, stage: Stage, force: bool) -> tuple[Step, Manifest, float]:
    began = time.monotonic()
    step = work.run.step(stage, force)
    if step.action != "skip":
        work.display.start(stage.name, step.action, step.reason)
    step, manifest = work.run.execute(stage.name, force)
    seconds = time.monotonic() - began
    if step.action == "skip":
        work.display.finish(stage.name, f"skip: {step.reason}")
    else:
        work.display.finish(stage.name, f"done in {duration(seconds)}: {summary(manifest)}", warnings(manifest))
    return step, manifest, seconds


def _metadata(step: Step, manifest: Manifest, seconds: float) -> dict[str, dagster.MetadataValue]:
    assert step.output
    numbers = {**manifest.counts, **{f"dropped: {reason}": number for reason, number in manifest.drops.items()}}
    return {
        "action": dagster.MetadataValue.text(step.action),
        "reason": dagster.MetadataValue.text(step.reason),
        "location": dagster.MetadataValue.path(step.output.location.uri),
        "seconds": dagster.MetadataValue.float(round(seconds, 3)),
        **{name: dagster.MetadataValue.int(number) for name, number in numbers.items()},
        **{f"warning {place}": dagster.MetadataValue.text(line) for place, line in enumerate(warnings(manifest), 1)},
    }


def home() -> Path:
    """Dagster's folder for its history: DAGSTER_HOME, or .dagster here; made, with telemetry off, when missing."""
    folder = Path(os.environ.get("DAGSTER_HOME") or ".dagster").absolute()
    settings = folder / "dagster.yaml"
    if not settings.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            settings.write_text(_SETTINGS)
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; set DAGSTER_HOME to a folder that can be written") from error
    return folder


def _cancel_orphans(instance: dagster.DagsterInstance) -> None:
    """Runs of this machine whose process is gone (kill -9, a power cut) still count as going on: say they ended."""
    for run in instance.get_runs(dagster.RunsFilter(statuses=_UNFINISHED)):
        host, pid, _ = [*run.tags.get(_PROCESS, "").split(), "", "", ""][:3]
        if host == socket.gethostname() and run.tags[_PROCESS] != _process(int(pid)):
            instance.report_run_canceled(run, message="Its process ended before it could say so.")


def _process(pid: int) -> str:
    """Host, process id and when it started (in ticks since the boot, as ids are used again; - when there is none)."""
    start = "-"
    with suppress(OSError):
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {pid} {start}"


def _key(run_name: str, stage_name: str) -> dagster.AssetKey:
    return dagster.AssetKey([run_name, stage_name])


def _identifier(name: str) -> str:
    """Dagster's jobs, groups and resources have names without dashes."""
    return name.replace("-", "_")


def _open_pages() -> None:
    """Become Dagster's web server and scheduler over `defs` and the history of this home; options go through."""
    os.environ |= {"DAGSTER_HOME": str(home()), "DAGSTER_DISABLE_TELEMETRY": "yes", "RAY_USAGE_STATS_ENABLED": "0"}
    # The newer command that Dagster's warning recommends wants its own project layout.
    quiet = ["-W", "ignore:Function `dev_command`"]
    os.execv(
        sys.executable, [sys.executable, *quiet, "-m", "dagster", "dev", "-m", "cloze.infra.workflow", *sys.argv[1:]]
    )


if __name__ == "__main__":
    _open_pages()
