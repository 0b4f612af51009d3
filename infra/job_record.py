"""The job that a run belongs to: CLOZE_JOB in its environment -> <root>/runs/<name>.job.json, which `cloze status`
shows.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from cloze.infra.planner import Run
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.processes import Process, ended_with_boot, this_process
from cloze.pipeline.core.storage import Location

#: Environment variable with the id of the job that this process belongs to.
JOB = "CLOZE_JOB"
#: Environment variable with the name of the cluster that runs it.
JOB_CLUSTER = "CLOZE_JOB_CLUSTER"


class JobRecord(Config):
    """The last job that ran a run. Times are in UTC."""

    id: str
    cluster: str
    started: str
    ended: str | None = None
    exit_status: int | None = None
    process: Process = Process()

    def __str__(self) -> str:
        if self.ended:
            return f"{self.id} on {self.cluster}, ended {self.ended} with exit status {self.exit_status}"
        if ended_with_boot(self.process):
            return f"{self.id} on {self.cluster}, started {self.started}; its process no longer exists"
        return f"{self.id} on {self.cluster}, running since {self.started}"

    def plain(self) -> dict[str, Any]:
        """The record as plain JSON, without its process."""
        return self.model_dump(exclude={"process"})


def is_job() -> bool:
    """Whether this process belongs to a submitted job."""
    return bool(os.environ.get(JOB))


@contextmanager
def recorded_job(run: Run, exit_status: Callable[[BaseException], int]) -> Iterator[None]:
    """Record the job of this process, if it has one, at the begin and the end of the block.

    `exit_status` maps the exception that ends the block to the exit status of the command.
    """
    if not (job := os.environ.get(JOB)):
        yield
        return
    file = _file(run)
    record = JobRecord(id=job, cluster=os.environ.get(JOB_CLUSTER, ""), started=_now(), process=this_process())
    file.write_text(record.model_dump_json())
    status = 0
    try:
        yield
    except BaseException as error:
        status = exit_status(error)
        raise
    finally:
        with suppress(OSError, UserError):  # the end of the run is more important than its record
            if (last := read_job(run)) is None or last.id == job:  # no other job of this run has started since
                file.write_text(record.model_copy(update={"ended": _now(), "exit_status": status}).model_dump_json())


def read_job(run: Run) -> JobRecord | None:
    """The record of the last job of a run; None if there was none."""
    with suppress(FileNotFoundError, NotADirectoryError, ValidationError):
        return JobRecord.model_validate_json(_file(run).read_bytes())
    return None


def _file(run: Run) -> Location:
    return run.root / "runs" / f"{run.config.name}.job.json"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
