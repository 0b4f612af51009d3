"""A run -> a Ray Job on a cluster: sent with the code it needs, its log followed, its exit status handed on.

What is sent is a folder of its own: the three packages, the configuration with its overrides applied, and, for a
cluster that does not see this machine's disk, the local files that the run reads. Sending the same while it runs
attaches to it.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cloze.infra import named_runs
from cloze.infra.planner import Run
from cloze.infra.ray_session import WORKERS_PYTHON
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import Config, MarkedPath, input_paths, load, with_paths
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.provenance import git_commit
from cloze.pipeline.core.storage import find_files

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_PACKAGE = Path(__file__).absolute().parents[2]  # in a clone a folder of links, whose targets are copied
_CONFIG = "run.yaml"
_STARTED_AS = "started-as.yaml"  # the same with the user's paths, which the job leaves under the root
_MOST_BYTES = 95_000_000  # Ray takes working directories up to 100 MiB
_STARTING_SECONDS = 60.0
_NO_AGENT = "No available agent"  # it has not started, or its port was another Ray's: each `ray.init` takes 52365
_NOT_RUN = (126, 127)  # a shell's exit status for a command that it may not run, or does not find
_ANY_PYTHON = "python"  # the one on the PATH with which Ray was started, or of the environment that `pip` makes
_STOP_SECONDS = 300  # between a job's SIGTERM, at which it saves, and its SIGKILL, which Ray would send after 3


class ClusterConfig(Config):
    """A Ray cluster: where its dashboard listens, and what differs when a run goes there."""

    name: str
    address: str = Field(pattern=r"^https?://\S+$")
    auth: Literal["token", "disabled"] = "token"  # the token is RAY_AUTH_TOKEN's or ~/.ray/auth_token's
    shared_disk: bool = False  # the cluster sees this machine's files under the same paths
    overrides: tuple[str, ...] = ()  # key=value, before those of the command line
    env_vars: dict[str, str] = Field(default={})
    python: str | None = Field(default=None, min_length=1)  # a path or a name on all its machines; see interpreter
    pip: tuple[str, ...] = ()  # what the cluster's machines have not installed

    @model_validator(mode="after")
    def _python_can_be_found(self) -> "ClusterConfig":
        if self.python and "/" in self.python and not self.python.startswith("/"):
            raise ValueError(
                f"python {self.python} would be looked for in the job's own folder; give an absolute path, or a name"
            )
        if self.python and self.pip:
            raise ValueError("python names an environment and pip makes one of its own; keep one of them")
        return self

    @property
    def interpreter(self) -> str:
        """The job's and its workers': the one that `python` names; else this process's, where the cluster sees it.

        Where it does not, or `pip` has Ray make an environment, the job has what is called python there, and the
        workers have Ray's own.
        """
        if self.python:
            return self.python
        return sys.executable if self.shared_disk and not self.pip else _ANY_PYTHON


def submit(
    run: str,
    overrides: Sequence[str],
    cluster_path: str,
    until: str | None = None,
    force: Sequence[str] = (),
    root: str | None = None,
) -> int:
    """Send `cloze run` to a cluster, or attach to it if the same is running there; returns its exit status.

    `run`, `overrides` and `root` are those of `named_runs.read`.

    Ctrl-C leaves the job running and returns 130. Raises UserError: cluster not reachable, token refused, a root or a
    file that the cluster cannot see, an interpreter that is not there or lacks a package.
    """
    cluster = load(ClusterConfig, cluster_path)
    config = named_runs.read(run, overrides, root, defaults=cluster.overrides)
    client = _connect(cluster, cluster_path)
    options = [*(["--until", until] if until else []), *(word for stage in force for word in ("--force", stage))]
    entrypoint = shlex.join([cluster.interpreter, "-m", "cloze.infra.cli", "run", _CONFIG, *options])
    with tempfile.TemporaryDirectory(prefix="cloze-") as folder:
        stage_files(Path(folder), config, cluster, until)
        job = _send(client, config.name, entrypoint, Path(folder), _environment(cluster))
    try:
        details = asyncio.run(_follow(client, job))
    except OSError as error:
        raise UserError(
            f"{cluster_path}: the cluster at {cluster.address} is gone ({error}); the same command attaches again"
        ) from error
    except KeyboardInterrupt:
        _say(f"\ndetached; {job} goes on. The same command attaches again; this stops it:")
        ray = shlex.quote(str(Path(sys.executable).with_name("ray")))  # whatever is on the PATH
        _say(f"  RAY_AUTH_MODE={cluster.auth} {ray} job stop --address {cluster.address} {job}")
        return 130
    if message := _unfit(cluster, details):
        raise UserError(f"{cluster_path}: {message}")
    return _exit_status(job, details)


def stage_files(folder: Path, config: RunConfig, cluster: ClusterConfig, until: str | None = None) -> None:
    """Put into `folder` what the job needs: the code, the configuration as run.yaml and, unless the disk is shared,
    the local files that the stages up to `until` read. Raises UserError for what the cluster could not see.
    """
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    root = _root(config, cluster)
    uploads = None if cluster.shared_disk else _Uploads(folder)
    read = {
        pattern
        for stage in Run(config).until(until)
        for path in input_paths(stage.config)
        for pattern in path.patterns
        if not pattern.startswith("s3://") and not path.mark.is_name(pattern)
    }

    def place(path: MarkedPath, pattern: str) -> list[str]:
        return _placed(path, pattern, uploads) if pattern in read else [pattern]

    data = {**with_paths(config, place), "root": root}
    # JSON is YAML, and quotes every text.
    (folder / _CONFIG).write_text(json.dumps(data, indent=1, ensure_ascii=False))
    started_as = named_runs.started_as(config.model_copy(update={"root": data["root"]}))
    (folder / _STARTED_AS).write_text(started_as, encoding="utf-8")


def _root(config: RunConfig, cluster: ClusterConfig) -> str:
    if config.root.startswith("s3://"):
        return config.root
    if not cluster.shared_disk:
        raise UserError(
            f"root: {config.root} is a folder of this machine, which the cluster {cluster.name} does not see; "
            f"set root=s3://bucket/prefix, or shared_disk: true in the cluster's file if it does"
        )
    return str(Path(config.root).absolute())


def _placed(path: MarkedPath, pattern: str, uploads: "_Uploads | None") -> list[str]:
    """What the job is to read in place of one of this machine's paths."""
    if uploads and path.mark.file_in:
        key = ".".join(map(str, path.keys))
        raise UserError(f"{key}: {pattern} is a folder of this machine; put it on S3, and name it there")
    if uploads:
        return uploads(pattern)
    if not path.mark.file_in:
        find_files(pattern)  # raises MissingFile
    return [named_runs.absolute(pattern)]


class _Uploads:
    """Puts local files beside the code, each once, until they are too much for Ray."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._bytes = 0

    def __call__(self, pattern: str) -> list[str]:
        return [self._add(Path(file.path)) for file in find_files(pattern)]

    def _add(self, file: Path) -> str:
        place = Path("sources", hashlib.sha256(str(file).encode()).hexdigest()[:8], file.name)
        if not (self._folder / place).exists():
            self._bytes += file.stat().st_size
            if self._bytes > _MOST_BYTES:
                raise UserError(
                    f"{file}: is too much to send with the job (all files together at most {_MOST_BYTES // 10**6} MB); "
                    f"put it on S3, or set shared_disk: true in the cluster's file if the cluster sees it"
                )
            (self._folder / place).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / place).symlink_to(file)
        return str(place)


def _environment(cluster: ClusterConfig) -> dict[str, Any]:
    """The job's runtime environment, without its working directory."""
    env_vars = {
        "CLOZE_GIT_COMMIT": git_commit(),
        named_runs.STARTED_AS: _STARTED_AS,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
    }
    if cluster.interpreter != _ANY_PYTHON:
        # Not py_executable: a job whose own worker cannot start waits for ever, and this one's command says so.
        env_vars[WORKERS_PYTHON] = cluster.interpreter
    if cluster.shared_disk:
        from cloze.infra.workflow import home

        env_vars["DAGSTER_HOME"] = str(home())  # so that the history is the one of this machine's runs
    return {"env_vars": env_vars | cluster.env_vars} | ({"pip": list(cluster.pip)} if cluster.pip else {})


def _connect(cluster: ClusterConfig, cluster_path: str) -> "JobSubmissionClient":
    os.environ["RAY_AUTH_MODE"] = cluster.auth  # read when Ray is imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests import RequestException

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its client tells of every upload and connection
    try:
        return JobSubmissionClient(cluster.address)
    except AuthenticationError as error:
        raise UserError(
            f"{cluster_path}: auth: {cluster.auth} does not open {cluster.address}; give the cluster's token in "
            f"RAY_AUTH_TOKEN or ~/.ray/auth_token and auth: token, or auth: disabled if it wants none"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, RequestException) as error:
        raise UserError(
            f"{cluster_path}: no Ray cluster answers at {cluster.address}; correct it, or start one: ray start --head"
        ) from error


def _send(client: "JobSubmissionClient", name: str, entrypoint: str, folder: Path, environment: dict[str, Any]) -> str:
    """Submit the folder's run and give its id; the id of the same run where one is going on."""
    digest = hashlib.sha256(json.dumps([entrypoint, environment], sort_keys=True).encode())
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"\n{file.relative_to(folder)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    # Ray refuses an id a second time, so a run that has ended gets the next number.
    known = {job.submission_id: job for job in client.list_jobs()}
    for attempt in itertools.count(1):
        job = f"{name}-{digest.hexdigest()[:12]}-{attempt}"
        if job not in known:
            _submit(client, job, entrypoint, {**environment, "working_dir": str(folder)})
            _say(f"sent as {job}")
            return job
        if not known[job].status.is_terminal():
            _say(f"{job} is running already; attached")
            return job
    raise AssertionError("unreachable")


def _submit(client: "JobSubmissionClient", job: str, entrypoint: str, environment: dict[str, Any]) -> None:
    """A cluster that has just started answers before it can run jobs: wait for it. Raises UserError when it refuses."""
    deadline = time.monotonic() + _STARTING_SECONDS
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
            return
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                said = " ".join(str(error).split())[:300]
                mend = "; start Ray with --dashboard-agent-listen-port=0" if _NO_AGENT in said else ""
                raise UserError(f"{client.get_address()}: the cluster did not take the job: {said}{mend}") from error
        time.sleep(2)


async def _follow(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """Print the job's log until it ends; a connection that breaks is made again. Raises OSError when it cannot be."""
    from aiohttp import ClientError

    shown = 0
    while True:
        position = 0
        try:
            async for text in client.tail_job_logs(job):
                print(text[max(0, shown - position) :], end="", flush=True)
                position += len(text)
                shown = max(shown, position)
        except (OSError, RuntimeError, ClientError) as error:
            _say(f"the log's connection broke ({error}); connecting again")
        details = client.get_job_info(job)
        if details.status.is_terminal():
            print(client.get_job_logs(job)[shown:], end="", flush=True)
            return details
        time.sleep(1)


def _unfit(cluster: ClusterConfig, details: "JobDetails") -> str | None:
    """What is wrong with the interpreter, if that is why the job has failed; the last lines of its log say so."""
    python, message = cluster.interpreter, details.message or ""
    mend = "give python: there the interpreter of an environment with Cloze's packages, or start Ray in one"
    if details.driver_exit_code in _NOT_RUN:
        return f"the cluster {cluster.name} cannot run {python}; {mend}"
    lines = [line for line in message.splitlines() if line and not line.startswith("Running entrypoint")]
    missing = re.match(r"ModuleNotFoundError: No module named '([^']+)'", lines[-1]) if lines else None
    if not missing or not details.driver_exit_code:
        return None
    if python == _ANY_PYTHON and "ray.exceptions." in message:  # raised in a worker
        python = "the Python with which Ray was started"
    return f"{python} has no module {missing[1]} on the cluster {cluster.name}; {mend}"


def _exit_status(job: str, details: "JobDetails") -> int:
    from ray.job_submission import JobStatus

    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        _say(f"cloze: {job} was stopped; the same command goes on from what is finished")
        return 130
    if details.driver_exit_code:
        return details.driver_exit_code if details.driver_exit_code > 0 else 1
    _say(f"cloze: {job} did not come to run: {' '.join((details.message or '').split())}")
    return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
