"""Dagster's history: where it is stored, and runs in it whose process no longer exists."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import dagster

from cloze.pipeline.core.errors import UserError

#: A tag of a run in the history: see `process_tag`.
PROCESS = "cloze/process"

_SETTINGS = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"
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
def open_history() -> Iterator[dagster.DagsterInstance]:
    """Dagster's history in `home()`. One process at a time opens it: two that create its databases damage them."""
    with ExitStack() as resources, (home() / "opening.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = resources.enter_context(dagster.DagsterInstance.local_temp(str(home()), overrides=_NO_CAPTURE))
        instance.get_runs(limit=1)
        instance.get_asset_keys(limit=1)
        fcntl.flock(lock, fcntl.LOCK_UN)
        yield instance


def cancel_orphans(instance: dagster.DagsterInstance) -> None:
    """Mark runs of this machine as canceled whose process no longer exists: after kill -9 or a power failure Dagster
    still counts them as running."""
    for run in instance.get_runs(dagster.RunsFilter(statuses=_UNFINISHED)):
        host, pid, _ = [*run.tags.get(PROCESS, "").split(), "", "", ""][:3]
        if host == socket.gethostname() and run.tags[PROCESS] != process_tag(int(pid)):
            instance.report_run_canceled(run, message="Its process ended without reporting it.")


def process_tag(pid: int) -> str:
    """Host, process id and start time of a process, in ticks since the boot, as ids are reused; - when it does not
    exist."""
    start = "-"
    with suppress(OSError):
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {pid} {start}"
