"""The job that a run belongs to: CLOZE_JOB in its environment -> <root>/runs/<name>.job.json, which `cloze status`
shows, and <root>/jobs/<id>.json, by which a later attempt of the job knows of the first, and others know how it ended.
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
#: Environment variable with the time of the job's submission, the same in all its attempts.
JOB_SUBMITTED = "CLOZE_JOB_SUBMITTED"


class JobRecord(Config):
    """The last job that ran a run. Times are in UTC."""

    id: str
    cluster: str
    started: str
    ended: str | None = None
    exit_status: int | None = None
    process: Process = Process()
    submitted: str = ""
    """JOB_SUBMITTED: tells the job from an earlier one of the same id, which its backend has forgotten."""
    first_started: str = ""
    """When its first attempt started, by the clock of its machine, as times are in manifests."""

    def __str__(self) -> str:
        if self.ended:
            return f"{self.id} on {self.cluster}, ended {self.ended} with exit status {self.exit_status}"
        if ended_with_boot(self.process):
            return f"{self.id} on {self.cluster}, started {self.started}; its process no longer exists"
        return f"{self.id} on {self.cluster}, running since {self.started}"

    def plain(self) -> dict[str, Any]:
        """The record of the last attempt as plain JSON, without its process."""
        return self.model_dump(exclude={"process", "submitted", "first_started"})


def is_job() -> bool:
    """Whether this process belongs to a submitted job."""
    return bool(os.environ.get(JOB))


@contextmanager
def recorded_job(run: Run, exit_status: Callable[[BaseException], int]) -> Iterator[str | None]:
    """Record the job of this process, if it has one, at the begin and the end of the block.

    `exit_status` maps the exception that ends the block to the exit status of the command. Yields the time at which the
    job's first attempt started, as times are in manifests, if this is a later one.
    """
    if not (job := os.environ.get(JOB)):
        yield None
        return
    of_run, of_job = _file(run), job_file(run.root, job)
    before = _earlier_attempt(of_job)
    record = _new_record(job, before)
    for file in (of_job, of_run):
        file.write_text(record.model_dump_json())
    status = 0
    try:
        yield before.first_started if before else None
    except BaseException as error:
        status = exit_status(error)
        raise
    finally:
        with suppress(OSError, UserError):  # the end of the run is more important than its record
            ended = _ended(record, status).model_dump_json()
            of_job.write_text(ended)
            if (last := read_job(run)) is None or last.id == job:  # no other job of this run has started since
                of_run.write_text(ended)


def record_end(root: str, exit_status: int) -> bool:
    """Record how the job of this process has ended. Returns False if the store does not take it."""
    job = os.environ[JOB]
    file = job_file(Location(root), job)
    try:
        file.write_text(_ended(_earlier_attempt(file) or _new_record(job, None), exit_status).model_dump_json())
    except (OSError, UserError):
        return False
    return True


def _earlier_attempt(file: Location) -> JobRecord | None:
    """What the attempts of this process's job have recorded so far; None if that is of another job of the same id."""
    record, submitted = read_record(file), os.environ.get(JOB_SUBMITTED)
    return record if record and submitted and record.submitted == submitted else None


def _new_record(job: str, before: JobRecord | None) -> JobRecord:
    """The record of an attempt that starts now, after the attempt `before`."""
    return JobRecord(
        id=job,
        cluster=os.environ.get(JOB_CLUSTER, ""),
        started=_now(),
        process=this_process(),
        submitted=os.environ.get(JOB_SUBMITTED, ""),
        first_started=before.first_started if before else datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _ended(record: JobRecord, exit_status: int) -> JobRecord:
    return record.model_copy(update={"ended": _now(), "exit_status": exit_status})


def read_job(run: Run) -> JobRecord | None:
    """The record of the last job of a run; None if there was none."""
    return read_record(_file(run))


def job_file(root: Location, job: str) -> Location:
    """The record of a job: of its last attempt."""
    return root / "jobs" / f"{job}.json"


def read_record(file: Location) -> JobRecord | None:
    """A record; None if there is none, or it cannot be understood."""
    with suppress(FileNotFoundError, NotADirectoryError, ValidationError):
        return JobRecord.model_validate_json(file.read_bytes())
    return None


def _file(run: Run) -> Location:
    return run.root / "runs" / f"{run.config.name}.job.json"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
