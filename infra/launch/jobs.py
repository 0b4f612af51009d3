"""Jobs: runs that a backend executes on this machine, on a Ray cluster, or on a Ray cluster of their own on Kubernetes.

Every backend offers the same operations (`Backend`). Submitting a run that is running already attaches to its job.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from cloze.infra.run_config import RunConfig


class JobState(StrEnum):
    PENDING = "pending"  # waits for machines, or for its cluster
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


@dataclass(frozen=True)
class JobRequest:
    """What a job is to run: `cloze run` with these options."""

    config: RunConfig
    until: str | None = None
    force: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobInfo:
    """A job as its backend sees it. Times are in UTC."""

    id: str  # RUN-DIGEST-ATTEMPT: the run's name, what is submitted, and a number
    run: str
    root: str
    state: JobState
    reason: str = ""  # one line: why it is pending, or has failed
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    exit_status: int | None = None  # of `cloze run`, once it has ended


class Backend(Protocol):
    """Raises UserError when the backend cannot be reached or refuses, and for the id of a job that it does not have."""

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        """Returns the job's id, and whether the run was submitted now; otherwise it was running already."""
        ...

    def jobs(self) -> list[JobInfo]:
        """All jobs that the backend knows, the newest first."""
        ...

    def info(self, job: str) -> JobInfo: ...

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """The text of the log, in chunks; with `follow` until the job ends. Reconnects when the connection breaks."""
        ...

    def stop(self, job: str) -> None:
        """Ask the job to save and end; returns at once. Does nothing for a job that has ended."""
        ...
