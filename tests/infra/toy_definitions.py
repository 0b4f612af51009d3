"""Dagster's definitions of the toy run under TOY_FOLDER, for tests with a real `dagster dev`.

A part waits while the file `hold` exists there, kills its process if the file `kill` exists, which it deletes, and
raises the UserError in the file `error`.
"""

import os
import signal
import time
from pathlib import Path

import dagster
import pytest

from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.errors import UserError
from tests.infra import toy_run

_FOLDER = Path(os.environ["TOY_FOLDER"])


def _before_part(stage: str, letter: str) -> None:
    if (kill := _FOLDER / "kill").exists():
        kill.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (error := _FOLDER / "error").exists():
        raise UserError(error.read_text())
    while (_FOLDER / "hold").exists():
        (_FOLDER / f"holding-{stage}-{letter}").write_text("")
        time.sleep(0.05)


@dagster.definitions
def defs() -> dagster.Definitions:
    toy_run.before_part = _before_part
    run = toy_run.toy_run(pytest.MonkeyPatch(), _FOLDER / "root", _FOLDER / "source.txt")
    minutely = ScheduleConfig(cron="* * * * *", max_runtime_hours=float(os.environ.get("TOY_HOURS", "1")))
    return definitions(ConfiguredRun(run.config.model_copy(update={"schedule": minutely})))
