"""A run on a cluster, as one job -> its stages, each when its output has appeared under the root.

The job is followed from outside: by its state, its log and the manifests that it writes. Whoever follows may be killed,
and follow the same job again.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cloze.infra.execution import ExecutedStage
from cloze.infra.launch.jobs import LOST_SECONDS, Backend, JobInfo, JobRequest, JobState, last_line
from cloze.infra.launch.supervisor import STOP_SECONDS
from cloze.infra.planner import PlannedStage, Run
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.errors import UserError

_POLL = 2.0  # seconds
_LOG_SECONDS = 10.0  # from the end of the job to that of its log
_TAIL_CHARACTERS = 4000


class JobFailed(Exception):
    """The job has ended without the run's outputs, or cannot be reached; to submit it again may help."""


@dataclass(frozen=True)
class _Before:
    """What the run would have done with a stage before it was submitted."""

    planned: PlannedStage
    finished: str  # when the output that it will write again was finished; "" for none
    force: bool


class FollowedJob:
    """The job of a run: submitted, or attached to if the same is running."""

    def __init__(self, backend: Backend, request: JobRequest):
        self._backend, self._run = backend, Run(request.config)
        self._before = {name: _before(self._run, name, name in request.force) for name in self._run.stages}
        self.job, self.is_new = backend.submit(request)
        self._submitted = time.monotonic()
        self._info = backend.info(self.job)
        self._log = _Log(backend, self.job)

    def stages(self, names: Sequence[str]) -> Iterator[ExecutedStage]:
        """These stages in the run's order, each when its output is finished.

        Raises UserError when the job has ended with an error that only the user can fix, or was stopped, otherwise
        JobFailed.
        """
        for name in names:
            while (done := self._done(name)) is None and not self._info.state.is_terminal:
                self._wait()
            done = done or self._done(name)  # written between the two looks
            if done is None:
                raise self._failure(name)
            while name == names[-1] and not self._info.state.is_terminal:  # it has results to print, and to end
                self._wait()
            yield done
        if self._info.state is not JobState.SUCCEEDED:
            raise self._failure(names[-1])

    def _done(self, name: str) -> ExecutedStage | None:
        """A stage that is finished; None if it is not."""
        artifact, before = self._run.artifact(name), self._before[name]
        if artifact is None or (planned := self._run.plan_stage(self._run.stage(name))).action != "skip":
            return None
        manifest = artifact.manifest
        if before.force and manifest.finished == before.finished and not self._info.state.is_terminal:
            return None
        if self._was_finished(before, manifest):
            return ExecutedStage(planned, manifest, 0.0)
        why = f"{before.planned.reason}; " if before.planned.output else ""
        action = "continue" if before.planned.action == "continue" else "run"
        return ExecutedStage(replace(planned, action=action, reason=f"{why}job {self.job}"), manifest, manifest.seconds)

    def _was_finished(self, before: _Before, manifest: Manifest) -> bool:
        """Whether the stage was finished before the job. Where its output was not known then, by the clocks."""
        if before.planned.output is None and self._info.submitted:
            return manifest.finished < f"{self._info.submitted:%Y-%m-%dT%H:%M:%S}"
        return manifest.finished == before.finished

    def _wait(self) -> None:
        time.sleep(_POLL)
        self._info = self._reached()

    def _reached(self) -> JobInfo:
        """The job's state. Raises JobFailed after two minutes without an answer."""
        deadline = time.monotonic() + LOST_SECONDS
        while True:
            try:
                return self._backend.info(self.job)
            except UserError as error:
                if time.monotonic() > deadline:
                    raise JobFailed(f"{self.job}: {error}") from error
            time.sleep(_POLL)

    def _failure(self, name: str) -> Exception:
        """Why the job has ended without this stage."""
        info = self._info
        if info.state is JobState.STOPPED:
            if not self.is_new and time.monotonic() - self._submitted < STOP_SECONDS:  # it may have been saving then
                return JobFailed(f"{self.job}: was being stopped when this run attached to it")
            return UserError(f"{self.job}: was stopped; the same command continues from the finished parts")
        if info.state is JobState.SUCCEEDED:
            return JobFailed(
                f"{self.job}: has succeeded, but {name} is not finished for the present files under {self._run.root}"
            )
        reasons = dict.fromkeys(filter(None, (info.reason, last_line(self._log.tail()))))
        message = f"{self.job}: {'; '.join(reasons) or 'has failed'}"
        return (UserError if info.exit_status == 2 else JobFailed)(message)


def _before(run: Run, name: str, force: bool) -> _Before:
    artifact = run.artifact(name)
    return _Before(run.plan_stage(run.stage(name), force), artifact.manifest.finished if artifact else "", force)


class _Log:
    """Copies a job's log to standard error while it grows, in a thread."""

    def __init__(self, backend: Backend, job: str):
        self._backend, self._job, self._tail = backend, job, ""
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The end of the log, once the job has ended."""
        self._thread.join(_LOG_SECONDS)
        return self._tail

    def _copy(self) -> None:
        with suppress(UserError, OSError):  # the job's state says whether it is lost
            for text in self._backend.logs(self._job, follow=True):
                self._tail = (self._tail + text)[-_TAIL_CHARACTERS:]
                print(text, end="", file=sys.stderr, flush=True)
