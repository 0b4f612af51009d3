"""A run -> a Ray job on a cluster: submit it with its code, follow its log, return its exit status.

Submitting the same run while it is running attaches to it.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloze.infra import named_runs
from cloze.infra.launch.cluster_config import DEFAULT_PYTHON, ClusterConfig
from cloze.infra.launch.job_folder import CONFIG, job_environment, stage_files
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.signals import interrupting_signal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_START_TIMEOUT = 60.0  # seconds until a cluster that has just started accepts jobs
_NO_AGENT = "No available agent"  # not started yet, or its port is another Ray's: each `ray.init` takes 52365
_NOT_EXECUTABLE = (126, 127)  # a shell's exit status for a command that it may not run, or does not find


def submit(
    run: str,
    overrides: Sequence[str],
    cluster_path: str,
    until: str | None = None,
    force: Sequence[str] = (),
    root: str | None = None,
) -> int:
    """Submit `cloze run` to a cluster, or attach to the job if the same is running; returns its exit status.

    `run`, `overrides` and `root` are those of `named_runs.read`.

    Ctrl-C detaches, leaves the job running and returns 130; SIGTERM does the same and returns 143. Raises UserError
    when the cluster cannot be reached or refuses the token, cannot access the root or a file, or has no such
    interpreter, or one that lacks a package.
    """
    cluster = load(ClusterConfig, cluster_path)
    if not cluster.address:
        raise UserError(f"{cluster_path}: address is missing; add it")
    config = named_runs.read(run, overrides, root, defaults=cluster.overrides)
    client = _connect(cluster, cluster_path)
    options = [*(["--until", until] if until else []), *(word for stage in force for word in ("--force", stage))]
    entrypoint = shlex.join([cluster.interpreter, "-m", "cloze.infra.cli", "run", CONFIG, *options])
    with tempfile.TemporaryDirectory(prefix="cloze-") as folder:
        stage_files(Path(folder), config, cluster, until)
        job = _submit(client, config.name, entrypoint, Path(folder), job_environment(cluster))
    try:
        details = asyncio.run(_follow(client, job))
    except OSError as error:
        raise UserError(
            f"{cluster_path}: lost the cluster at {cluster.address} ({error}); the same command attaches again"
        ) from error
    except KeyboardInterrupt:
        _log(f"\ndetached; {job} continues to run. The same command attaches again; this stops it:")
        ray = shlex.quote(str(Path(sys.executable).with_name("ray")))  # also when another one is on the PATH
        _log(f"  RAY_AUTH_MODE={cluster.auth} {ray} job stop --address {cluster.address} {job}")
        return 128 + interrupting_signal()
    if message := _interpreter_error(cluster, details):
        raise UserError(f"{cluster_path}: {message}")
    return _exit_status(job, details)


def _connect(cluster: ClusterConfig, cluster_path: str) -> "JobSubmissionClient":
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
            f"{cluster_path}: auth: {cluster.auth} is refused by {cluster.address}; give the cluster's token in "
            f"RAY_AUTH_TOKEN or ~/.ray/auth_token and set auth: token, or auth: disabled if it requires none"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, RequestException) as error:
        raise UserError(
            f"{cluster_path}: no Ray cluster answers at {cluster.address}; correct it, or start one: ray start --head"
        ) from error


def _submit(
    client: "JobSubmissionClient", name: str, entrypoint: str, folder: Path, environment: dict[str, Any]
) -> str:
    """Submit the run in the folder, unless the same one is running already. Returns the job's id."""
    digest = hashlib.sha256(json.dumps([entrypoint, environment], sort_keys=True).encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"\n{file.relative_to(folder)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    # Ray accepts an id only once, so a run that has ended gets the next number.
    jobs = {job.submission_id: job for job in client.list_jobs()}
    for attempt in itertools.count(1):
        job = f"{name}-{digest.hexdigest()[:12]}-{attempt}"
        if job not in jobs:
            _submit_job(client, job, entrypoint, {**environment, "working_dir": str(folder)})
            _log(f"submitted as {job}")
            return job
        if not jobs[job].status.is_terminal():
            _log(f"{job} is running already; attached")
            return job
    raise AssertionError("unreachable")


def _submit_job(client: "JobSubmissionClient", job: str, entrypoint: str, environment: dict[str, Any]) -> None:
    """Submit a job; wait for a cluster that has just started, which answers before it can run jobs.

    Raises UserError when the cluster refuses the job.
    """
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
            return
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                message = " ".join(str(error).split())[:300]
                fix = "; start Ray with --dashboard-agent-listen-port=0" if _NO_AGENT in message else ""
                raise UserError(f"{client.get_address()}: the cluster refused the job: {message}{fix}") from error
        time.sleep(2)


async def _follow(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """Print the job's log until it ends, and reconnect when the connection breaks. Raises OSError when that fails."""
    from aiohttp import ClientError

    printed = 0  # characters of the log
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job):
                print(text[max(0, printed - position) :], end="", flush=True)
                position += len(text)
                printed = max(printed, position)
        except (OSError, RuntimeError, ClientError) as error:
            _log(f"lost the connection to the job's log ({error}); reconnecting")
        details = client.get_job_info(job)
        if details.status.is_terminal():
            print(client.get_job_logs(job)[printed:], end="", flush=True)
            return details
        time.sleep(1)


def _interpreter_error(cluster: ClusterConfig, details: "JobDetails") -> str | None:
    """The message if the job failed because of its interpreter, which the last lines of its log show."""
    python, message = cluster.interpreter, details.message or ""
    fix = "set python in the cluster's file to the interpreter of an environment with Cloze, or start Ray in one"
    if details.driver_exit_code in _NOT_EXECUTABLE:
        return f"the cluster {cluster.name} cannot run {python}; {fix}"
    lines = [line for line in message.splitlines() if line and not line.startswith("Running entrypoint")]
    missing = re.match(r"ModuleNotFoundError: No module named '([^']+)'", lines[-1]) if lines else None
    if not missing or not details.driver_exit_code:
        return None
    if python == DEFAULT_PYTHON and "ray.exceptions." in message:  # raised in a worker
        python = "the Python that Ray was started with"
    return f"{python} has no module {missing[1]} on the cluster {cluster.name}; {fix}"


def _exit_status(job: str, details: "JobDetails") -> int:
    from ray.job_submission import JobStatus

    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        _log(f"cloze: {job} was stopped; the same command continues from the finished parts")
        return 130
    if details.driver_exit_code:
        return details.driver_exit_code if details.driver_exit_code > 0 else 1
    _log(f"cloze: {job} did not start: {' '.join((details.message or '').split())}")
    return 1


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
