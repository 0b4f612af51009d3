"""Dagster's history: where it is stored, and how a process opens it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dagster

from cloze.infra.explain import explain
from cloze.infra.workflow.dagster_yaml import write_settings
from cloze.pipeline.core.errors import UserError

# Dagster would capture stdout and stderr, and the display would not see a terminal.
_NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}


def home() -> Path:
    """Dagster's home: DAGSTER_HOME, or ./.dagster. It is created, with settings, when it does not exist."""
    folder = Path(os.environ.get("DAGSTER_HOME") or ".dagster").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(settings_file(folder))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; set DAGSTER_HOME to a folder that can be written") from error
    return folder


def settings_file(folder: Path) -> Path:
    return folder / "dagster.yaml"


@contextmanager
def open_history() -> Iterator[dagster.DagsterInstance]:
    """Dagster's history in `home()`. One process at a time opens it: two that create its databases damage them.

    Raises UserError when the database that dagster.yaml names cannot be used.
    """
    with ExitStack() as resources, (home() / "opening.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            instance = resources.enter_context(dagster.DagsterInstance.local_temp(str(home()), overrides=_NO_CAPTURE))
            instance.get_runs(limit=1)
            instance.get_asset_keys(limit=1)
        except Exception as error:
            if explain(error) is not None:  # of the disk
                raise
            raise UserError(
                f"{settings_file(home())}: the history cannot be opened ({_reason(error)}); correct storage in this "
                "file, or start the database that it names; Postgres needs pip install 'cloze[postgres]'"
            ) from error
        fcntl.flock(lock, fcntl.LOCK_UN)
        yield instance


def _reason(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(str(error).split())[:200]
