"""A run -> a Ray job on a cluster: submit it with its code, list jobs, follow a log, stop it.

Submitting the same run while it is running attaches to it.
"""

import asyncio
import hashlib
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cloze.infra.job_record import JOB, JOB_SUBMITTED
from cloze.infra.launch import versions
from cloze.infra.launch.cluster_config import DEFAULT_PYTHON, ENTRYPOINT_KEYS, ClusterConfig
from cloze.infra.launch.job_folder import CONFIG, job_environment, stage_files
from cloze.infra.launch.jobs import (
    LOST_SECONDS,
    JobInfo,
    JobRequest,
    JobState,
    Unreachable,
    attempt_to_submit,
    digest_of,
    last_line,
    now,
    submission_time,
    unknown_job,
)
from cloze.infra.launch.supervisor import arguments
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.software_versions import GIT_COMMIT

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_START_TIMEOUT = 60.0  # seconds until a cluster that has just started accepts jobs
_PROBE_TIMEOUT = 60.0  # seconds until a node has reported its versions
_NO_AGENT = "No available agent"  # not started yet, or its port is another Ray's: each `ray.init` takes 52365
_EXISTS = "already exists"
_NOT_EXECUTABLE = (126, 127)  # a shell's exit status for a command that it may not run, or does not find
_NO_ANSWER = "(Request failed with status code )?50[0234]"  # of a proxy before the cluster, or a head that starts
_RETRY_SECONDS = 1  # until a cluster that has not answered is asked again
_RUN, _ROOT = "cloze_run", "cloze_root"  # keys of a job's metadata in Ray
_FIX = "set python in the cluster's file to the interpreter of an environment with Cloze, or start Ray in one"

Answer = TypeVar("Answer")


class RayJobs:
    """The jobs of a Ray cluster. Implements `Backend`.

    Raises Unreachable when the cluster does not answer, and UserError when it refuses the token, cannot access the root
    or a file, or has no such interpreter, or one with other versions of Ray or Python.
    """

    def __init__(self, cluster: ClusterConfig, path: str):
        self._cluster, self._path = cluster, path
        self._client = _connect(cluster, path)

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        cluster, config = self._cluster, request.config
        command = [cluster.interpreter, "-m", "cloze.infra.cli", "run", CONFIG, *request.options]
        if cluster.deadline_seconds or cluster.retries:
            supervisor = arguments(None, cluster.deadline_seconds, cluster.retries)
            command = [cluster.interpreter, *supervisor, *command]
        with self._connected(), tempfile.TemporaryDirectory(prefix="cloze-") as folder:
            stage_files(Path(folder), config, cluster, request.until)
            root = config.root if config.root.startswith("s3://") else str(Path(config.root).absolute())
            options = {
                "entrypoint": shlex.join(command),
                "metadata": {_RUN: config.name, _ROOT: root},
                **{key: value for key in ENTRYPOINT_KEYS if (value := getattr(cluster, key))},
            }
            return self._submit(config.name, Path(folder), job_environment(cluster), options)

    def jobs(self) -> list[JobInfo]:
        with self._connected():
            self._remove_expired()
            infos = self._all_jobs()
        kept = [info for info in infos if not info.is_expired(self._cluster.ttl_seconds)]
        return sorted(kept, key=lambda info: (info.submitted or now(), info.id), reverse=True)

    def info(self, job: str) -> JobInfo:
        return self._info(self._details(job))

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        details = self._details(job)
        position = 0  # in characters
        while follow and not details.status.is_terminal():
            for text in self._tail(job, position):
                position += len(text)
                yield text
            details = self._patiently(self._details, job)
        yield self._patiently(self._client.get_job_logs, job)[position:]

    def stop(self, job: str) -> None:
        if not self._details(job).status.is_terminal():
            with self._connected():
                self._client.stop_job(job)

    def _submit(
        self, name: str, folder: Path, environment: dict[str, Any], options: dict[str, Any]
    ) -> tuple[str, bool]:
        """Submit the run in the folder, unless the same one is running already."""
        self._remove_expired()
        files = {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }
        variables = environment["env_vars"]
        # Without the commit, which also changes with a file that is not sent.
        sent = {**environment, "env_vars": {name: variables[name] for name in variables if name != GIT_COMMIT}}
        digest = digest_of([sent, options, files])
        is_checked = False
        while True:  # again if another process submits the same at this moment: it is at work, or has ended already
            # Ray accepts an id only once, so a run that has ended gets the next number.
            ended = {job.submission_id or "": job.status.is_terminal() for job in self._client.list_jobs()}
            job, is_new = attempt_to_submit(name, digest, ended, ended.__getitem__)
            if not is_new:
                return job, False
            if not is_checked:
                self._check_versions(environment)
                is_checked = True
            of_job = {**variables, JOB: job, JOB_SUBMITTED: submission_time()}
            runtime = {**environment, "env_vars": of_job, "working_dir": str(folder)}
            if _submit_job(self._client, job, runtime_env=runtime, **options):
                return job, True

    def _check_versions(self, environment: dict[str, Any]) -> None:
        """Compare the versions of a node with those of this machine, before anything is uploaded.

        Raises UserError when a job cannot run there; prints other differences.
        """
        ray_version = versions.installed_versions()["ray"]
        on_cluster = {**versions.installed_versions(), "ray": self._client._server_ray_version or ray_version}
        self._report(versions.differences(on_cluster))
        if self._cluster.environment_key is None:
            self._report(versions.differences(self._probe(environment)))

    def _report(self, found: list[versions.Difference]) -> None:
        place = f"on the cluster {self._cluster.name}"
        for difference in found:
            if difference.is_error:
                fix = "install the versions of constraints.txt in both places"
                raise UserError(f"{self._path}: {place} {difference}; {fix if difference.there else _FIX}")
        for difference in found:
            _log(f"cloze: warning: {place} {difference}; the results may differ")

    def _probe(self, environment: dict[str, Any]) -> dict[str, str]:
        """The versions of the interpreter that the job will run, as a small job without the code reports them."""
        python, job = self._cluster.interpreter, f"cloze-versions-{time.time_ns()}"
        entrypoint = shlex.join([python, "-c", versions.probe()])
        _submit_job(self._client, job, entrypoint, runtime_env={"env_vars": environment["env_vars"]})
        deadline = time.monotonic() + _PROBE_TIMEOUT
        while not (details := self._client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                self._client.stop_job(job)
                _log(f"cloze: warning: the cluster {self._cluster.name} has not reported its versions in time")
                return versions.installed_versions()
            time.sleep(0.2)
        printed = versions.printed_versions(self._client.get_job_logs(job))
        with suppress(RuntimeError):
            self._client.delete_job(job)
        if printed is None:
            line = last_line(details.message or "")
            cannot_run = f"the cluster {self._cluster.name} cannot run {python} ({line}); {_FIX}"
            raise UserError(f"{self._path}: {self._interpreter_error(details) or cannot_run}")
        return printed

    def _details(self, job: str) -> "JobDetails":
        with self._connected():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if "404" not in str(error):
                    raise
                known = [info.id for info in self.jobs()]
                raise unknown_job(job, known, f"the cluster {self._cluster.name}") from error

    def _info(self, details: "JobDetails") -> JobInfo:
        metadata = details.metadata or {}
        state = JobState(details.status.value.lower())
        reason, status = "", details.driver_exit_code
        if status is not None and status < 0:  # killed by a signal
            status = 1
        if state is JobState.PENDING:
            reason = last_line(details.message or "")
        elif state is JobState.SUCCEEDED:
            status = 0
        elif state is JobState.FAILED:
            reason = last_line(details.message or "")
            if error := self._interpreter_error(details):
                reason, status = f"{self._path}: {error}", 2
        return JobInfo(
            details.submission_id or "",
            metadata.get(_RUN, ""),
            metadata.get(_ROOT, ""),
            state,
            reason,
            submitted=_time(details.start_time),
            started=None if state is JobState.PENDING else _time(details.start_time),
            ended=_time(details.end_time),
            exit_status=status,
        )

    def _tail(self, job: str, position: int) -> Iterator[str]:
        """The log from that character on, until the job ends or the connection breaks."""
        from aiohttp import ClientError

        with asyncio.Runner() as runner:
            texts = self._client.tail_job_logs(job)
            try:
                while (text := runner.run(_next(texts))) is not None:
                    if new := text[max(0, position) :]:
                        yield new
                    position -= len(text)
            except (OSError, RuntimeError, ClientError):
                time.sleep(_RETRY_SECONDS)  # what is missing follows when the connection is back

    def _all_jobs(self) -> list[JobInfo]:
        """The jobs that run Cloze."""
        return [self._info(details) for details in self._client.list_jobs() if _RUN in (details.metadata or {})]

    def _remove_expired(self) -> None:
        """Delete expired jobs from Ray, except the last attempt of each: Ray must not see its id again."""
        jobs = self._all_jobs()
        last: dict[str, int] = {}
        for info in jobs:
            base, _, attempt = info.id.rpartition("-")
            last[base] = max(last.get(base, 0), int(attempt))
        for info in jobs:
            base, _, attempt = info.id.rpartition("-")
            if info.is_expired(self._cluster.ttl_seconds) and int(attempt) < last[base]:
                with suppress(RuntimeError):  # another process has deleted it
                    self._client.delete_job(info.id)

    def _interpreter_error(self, details: "JobDetails") -> str | None:
        """The message if the job failed because of its interpreter, which the last lines of its log show."""
        python, message = self._cluster.interpreter, details.message or ""
        if details.driver_exit_code in _NOT_EXECUTABLE:
            return f"the cluster {self._cluster.name} cannot run {python}; {_FIX}"
        lines = [line for line in message.splitlines() if line and not line.startswith("Running entrypoint")]
        missing = re.match(r"ModuleNotFoundError: No module named '([^']+)'", lines[-1]) if lines else None
        if not missing or not details.driver_exit_code:
            return None
        if python == DEFAULT_PYTHON and "ray.exceptions." in message:  # raised in a worker
            python = "the Python that Ray was started with"
        return f"{python} has no module {missing[1]} on the cluster {self._cluster.name}; {_FIX}"

    def _patiently(self, read: Callable[[str], Answer], job: str) -> Answer:
        """What the cluster says about a job. Raises Unreachable after two minutes without an answer."""
        deadline = time.monotonic() + LOST_SECONDS
        while True:
            try:
                with self._connected():
                    return read(job)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Turn the loss of the cluster into an Unreachable."""
        from requests import RequestException

        try:
            yield
        except (RequestException, ConnectionError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.match(_NO_ANSWER, str(error)):
                raise
            raise Unreachable(
                f"{self._path}: lost the cluster at {self._cluster.address} ({_cause(error)}); the same command "
                "continues when it is back"
            ) from error


def _connect(cluster: ClusterConfig, path: str) -> "JobSubmissionClient":
    os.environ["RAY_AUTH_MODE"] = cluster.auth  # read when Ray is imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests import RequestException

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its client logs every upload and connection
    try:
        return JobSubmissionClient(cluster.address)
    except AuthenticationError as error:
        raise UserError(
            f"{path}: auth: {cluster.auth} is refused by {cluster.address}; give the cluster's token in "
            f"RAY_AUTH_TOKEN or ~/.ray/auth_token and set auth: token, or auth: disabled if it requires none"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, RequestException) as error:
        raise (Unreachable if _may_pass(error) else UserError)(
            f"{path}: no Ray cluster answers at {cluster.address}; correct it, or start one: ray start --head"
        ) from error


def _may_pass(error: Exception) -> bool:
    """Whether nothing has answered, or a proxy without the cluster behind it; False for what is no Ray cluster."""
    from requests import HTTPError

    if isinstance(error, HTTPError):
        return bool(re.match(_NO_ANSWER, str(error)))
    return isinstance(error, OSError) and not isinstance(error, ValueError)  # a ValueError: no JSON, or no URL


def _submit_job(client: "JobSubmissionClient", job: str, entrypoint: str, **options: Any) -> bool:
    """Submit a job; wait for a cluster that has just started, which answers before it can run jobs.

    Returns False if there is a job with this id already. Raises UserError when the cluster refuses the job.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, **options)
            return True
        except RuntimeError as error:
            if _EXISTS in str(error):
                return False
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                message = " ".join(str(error).split())[:300]
                fix = "; start Ray with --dashboard-agent-listen-port=0" if _NO_AGENT in message else ""
                raise UserError(f"{client.get_address()}: the cluster refused the job: {message}{fix}") from error
        time.sleep(2)


async def _next(texts: AsyncIterator[str]) -> str | None:
    return await anext(texts, None)


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds // 1000, UTC) if milliseconds else None


def _cause(error: BaseException) -> str:
    """The last part of an error's message, such as Connection refused, or of a traceback in it."""
    return last_line(str(error)).rpartition("] ")[2].rstrip("'\")> ") or type(error).__name__


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
