"""A run -> a process of this machine that outlives the terminal, with a folder: $CLOZE_HOME/jobs/ID.

The folder has run.yaml (the configuration), job.json (what was submitted), the log, and what the supervisor writes:
process.json at its start and end.json at its end. The code is not copied: the job uses that of the `cloze` command.
"""

import codecs
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from cloze.infra import named_runs
from cloze.infra.job_record import JOB, JOB_CLUSTER, JOB_SUBMITTED
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import CONFIG, check_input_files
from cloze.infra.launch.jobs import (
    JobInfo,
    JobRequest,
    JobState,
    attempt_to_submit,
    digest_of,
    last_line,
    now,
    submission_time,
    unknown_job,
)
from cloze.infra.launch.supervisor import END_FILE, PROCESS_FILE, STOP_SECONDS, arguments
from cloze.infra.ray_session import PACKAGE_ROOT
from cloze.infra.user_folder import user_folder
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.processes import Process, ended_with_boot, this_process
from cloze.pipeline.core.storage import Location

_JOB_FILE, _LOG = "job.json", "log"
_START_SECONDS = 60  # until the supervisor has started, on a loaded machine
_POLL = 0.3
_TAIL_BYTES = 4000

Record = TypeVar("Record", bound=Config)


class _Submitted(Config):
    """job.json"""

    run: str
    root: str
    command: tuple[str, ...]
    folder: str
    """The working directory."""
    submitted: datetime


class _Attempt(Config):
    started: datetime
    ended: datetime
    exit_status: int


class _End(Config):
    """end.json, which the supervisor writes."""

    exit_status: int
    stopped: bool
    attempts: tuple[_Attempt, ...]


def jobs_folder() -> Path:
    """$CLOZE_HOME/jobs, by default ~/.cloze/jobs."""
    return user_folder().absolute() / "jobs"


class LocalJobs:
    """The jobs of this machine. Implements `Backend`."""

    def __init__(self, cluster: ClusterConfig):
        self._cluster = cluster
        self._folder = jobs_folder()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._folder}: {error.strerror}; set CLOZE_HOME to a folder that can be written"
            ) from error

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        check_input_files(request.config, request.until)
        config = named_runs.as_yaml(request.config)
        cluster = self._cluster
        limits = [cluster.deadline_seconds, cluster.retries]
        digest = digest_of([config, request.options, cluster.interpreter, cluster.env_vars, limits])
        with self._lock():
            self._remove_expired()
            # A submission that was killed may have left a folder without this file: the next one uses it.
            known = [file.parent.name for file in self._folder.glob(f"*/{_JOB_FILE}")]
            job, is_new = attempt_to_submit(
                request.config.name, digest, known, lambda job: self.info(job).state.is_terminal
            )
            if is_new:
                self._start(job, request, config)
            return job, is_new

    def jobs(self) -> list[JobInfo]:
        with self._lock():
            self._remove_expired()
        return self._jobs()

    def info(self, job: str) -> JobInfo:
        folder = self._folder / job
        submitted = self._submitted(job)
        end, process = _read(folder / END_FILE, _End), _read(folder / PROCESS_FILE, Process)
        if end is None and process and ended_with_boot(process):
            end = _read(folder / END_FILE, _End)  # written since
        times = {"submitted": submitted.submitted, "started": _modified(folder / PROCESS_FILE)}
        state, reason, status = JobState.RUNNING, "", None
        if end:
            times["ended"], status = end.attempts[-1].ended, end.exit_status
            state = JobState.SUCCEEDED if status == 0 else JobState.STOPPED if end.stopped else JobState.FAILED
            if state is JobState.FAILED:
                reason = last_line(_tail(folder / _LOG))
        elif process is None and (now() - submitted.submitted).total_seconds() < _START_SECONDS:
            state, reason = JobState.PENDING, "its process has not started yet"
        elif process is None or ended_with_boot(process):
            state, reason = JobState.FAILED, "its process no longer exists; the same command continues"
            times["ended"] = _modified(folder / _LOG)
        return JobInfo(job, submitted.run, submitted.root, state, reason, exit_status=status, **times)

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        self._submitted(job)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with (self._folder / job / _LOG).open("rb") as log:
            while True:
                has_ended = not follow or self.info(job).state.is_terminal
                while data := log.read(1 << 20):
                    yield decoder.decode(data)
                if has_ended:
                    return
                time.sleep(_POLL)

    def stop(self, job: str) -> None:
        if self.info(job).state.is_terminal:
            return
        process = _read(self._folder / job / PROCESS_FILE, Process)
        if process is None:
            raise UserError(f"{job}: its process has not started yet; repeat the command in some seconds")
        if process.machine != this_process().machine:
            raise UserError(f"{job}: is {process}; stop it there, with the same command")
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(process.pid, signal.SIGTERM)

    def _start(self, job: str, request: JobRequest, config: str) -> None:
        """Start the job's supervisor in a session of its own, and wait until it has registered itself."""
        folder, cluster = self._folder / job, self._cluster
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).write_text(config, encoding="utf-8")
        run = [cluster.interpreter, "-m", "cloze.infra.cli", "run", str(folder / CONFIG), *request.options]
        supervisor = arguments(folder, cluster.deadline_seconds, cluster.retries)
        command = [cluster.interpreter, *supervisor, *run]
        submitted = _Submitted(
            run=request.config.name,
            root=Location(request.config.root).absolute().uri,
            command=tuple(command),
            folder=str(Path.cwd()),
            submitted=now(),
        )
        Location(str(folder / _JOB_FILE)).write_text(submitted.model_dump_json())
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",  # the log shows a line when it is written
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
            JOB: job,
            JOB_SUBMITTED: submission_time(),
            JOB_CLUSTER: cluster.name,
            **cluster.env_vars,
        }
        with (folder / _LOG).open("ab") as log:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
                )
            except OSError as error:
                shutil.rmtree(folder)
                raise UserError(
                    f"python: {cluster.interpreter} cannot be run ({error.strerror}); correct it in the cluster's file"
                ) from error
        deadline = time.monotonic() + _START_SECONDS
        while not (folder / PROCESS_FILE).exists() and not process.poll() and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll():
            reason = last_line(_tail(folder / _LOG))
            shutil.rmtree(folder)
            raise UserError(f"{cluster.interpreter}: cannot run Cloze ({reason}); correct python in the cluster's file")

    def _jobs(self) -> list[JobInfo]:
        infos = []
        for folder in self._folder.iterdir():
            with suppress(UserError):  # removed at this moment
                infos.append(self.info(folder.name))
        return sorted(infos, key=lambda info: (info.submitted or now(), info.id), reverse=True)

    def _remove_expired(self) -> None:
        if self._cluster.ttl_seconds is not None:
            for info in self._jobs():
                if info.is_expired(self._cluster.ttl_seconds):
                    shutil.rmtree(self._folder / info.id)

    def _submitted(self, job: str) -> _Submitted:
        file = self._folder / job / _JOB_FILE
        if "/" not in job and (submitted := _read(file, _Submitted)):
            return submitted
        known = sorted(file.parent.name for file in self._folder.glob(f"*/{_JOB_FILE}"))
        raise unknown_job(job, known, "this machine")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time submits: of two that submit the same run, the second attaches."""
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(file: Path, model: type[Record]) -> Record | None:
    """A record of the folder; None if it does not exist or is damaged."""
    with suppress(OSError, ValidationError):
        return model.model_validate_json(file.read_bytes())
    return None


def _modified(file: Path) -> datetime | None:
    with suppress(FileNotFoundError):
        return datetime.fromtimestamp(int(file.stat().st_mtime), UTC)
    return None


def _tail(file: Path) -> str:
    with suppress(OSError), file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")
    return ""
