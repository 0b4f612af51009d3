"""Jobs: runs that a backend executes on this machine, on a Ray cluster, or on a Ray cluster of their own on Kubernetes.

Every backend offers the same operations (`Backend`). Submitting a run that is running already attaches to its job.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.errors import UserError

LOST_SECONDS = 120.0  # without an answer of the backend, until waiting for a job ends with an error


class Unreachable(UserError):
    """The backend does not answer, or cannot do so now."""


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

    @property
    def options(self) -> list[str]:
        """The options of `cloze run`."""
        until = ["--until", self.until] if self.until else []
        return [*until, *(word for stage in self.force for word in ("--force", stage))]


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

    def plain(self) -> dict[str, Any]:
        """The job as plain JSON: always these keys."""
        times = {name: time and f"{time:%Y-%m-%dT%H:%M:%SZ}" for name, time in self._times.items()}
        return {
            "id": self.id,
            "run": self.run,
            "root": self.root,
            "state": self.state.value,
            "reason": self.reason,
            **times,
            "exit_status": self.exit_status,
        }

    @property
    def _times(self) -> dict[str, datetime | None]:
        return {"submitted": self.submitted, "started": self.started, "ended": self.ended}

    def is_expired(self, ttl_seconds: int | None) -> bool:
        """Whether it has ended more than so many seconds ago; None keeps it indefinitely."""
        if ttl_seconds is None or self.ended is None or not self.state.is_terminal:
            return False
        return now() - self.ended > timedelta(seconds=ttl_seconds)


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


def now() -> datetime:
    """The time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def submission_time() -> str:
    """The time in UTC as the JOB_SUBMITTED of a job, which no other submission of the run has."""
    return datetime.now(UTC).isoformat()


def job_id(run: str, digest: str, attempt: int) -> str:
    return f"{run}-{digest[:12]}-{attempt}"


def attempt_to_submit(
    run: str, digest: str, jobs: Iterable[str], is_terminal: Callable[[str], bool]
) -> tuple[str, bool]:
    """The id of the attempt that has not ended and False; without one, the id after the highest known and True.

    Attempts whose time has expired are no longer among `jobs`, so that the numbers of the known may have gaps.
    """
    base = job_id(run, digest, 0)[:-1]
    ends = [job.removeprefix(base) for job in jobs if job.startswith(base)]
    attempts = sorted((int(end) for end in ends if end.isdigit()), reverse=True)
    for attempt in attempts:
        if not is_terminal(job := job_id(run, digest, attempt)):
            return job, False
    return job_id(run, digest, max(attempts, default=0) + 1), True


def digest_of(parts: Iterable[Any]) -> str:
    """The digest in the id of a job that is submitted with these parts, which are plain JSON."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()


def unknown_job(job: str, known: Iterable[str], place: str) -> UserError:
    """The error for an id that the backend `place` does not have; it names the closest one."""
    close = difflib.get_close_matches(job, list(known), n=3, cutoff=0.4)
    fix = f"did you mean {' or '.join(close)}?" if close else "`cloze job list` shows its jobs"
    return UserError(f"{job}: is not a job of {place}; {fix}")


def last_line(log: str) -> str:
    """The last line of a log that is not empty, which says why a run has failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].removeprefix("cloze: ")[:300] if lines else ""
