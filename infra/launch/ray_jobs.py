"""A run -> a Ray job on a cluster: submit it with its code, follow its log, return its exit status.

The job's working directory is a folder with the package, the configuration with its overrides applied, and, for a
cluster without access to this machine's disk, the local files that the run reads. Submitting the same run while it is
running attaches to it.
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
from cloze.pipeline.core.ray_cluster import MAX_CPUS
from cloze.pipeline.core.signals import interrupting_signal
from cloze.pipeline.core.software_versions import git_commit
from cloze.pipeline.core.storage import find_files

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_PACKAGE = Path(__file__).absolute().parents[2]  # in a clone a folder of symbolic links, whose targets are copied
_CONFIG = "run.yaml"
_SUBMITTED = "submitted.yaml"  # the same with the user's paths, which the job stores under the root
_MAX_UPLOAD_BYTES = 95_000_000  # Ray accepts working directories up to 100 MiB
_START_TIMEOUT = 60.0  # seconds until a cluster that has just started accepts jobs
_NO_AGENT = "No available agent"  # not started yet, or its port is another Ray's: each `ray.init` takes 52365
_NOT_EXECUTABLE = (126, 127)  # a shell's exit status for a command that it may not run, or does not find
_DEFAULT_PYTHON = "python"  # on the PATH with which Ray was started, or in the environment that `pip` creates
_STOP_SECONDS = 300  # from a job's SIGTERM, at which it saves, to its SIGKILL; Ray's default is 3


class ClusterConfig(Config):
    """A Ray cluster that runs can be submitted to: the YAML file of `cloze submit RUN --cluster YAML`."""

    name: str
    """Name of the cluster, for messages."""
    address: str = Field(pattern=r"^https?://\S+$")
    """Address of the cluster's dashboard, such as http://127.0.0.1:8265."""
    auth: Literal["token", "disabled"] = "token"
    """Authentication: token sends the token in RAY_AUTH_TOKEN or ~/.ray/auth_token; disabled sends none."""
    shared_disk: bool = False
    """Whether the cluster's machines see this machine's files under the same paths. Otherwise `root` must be on S3, and
    local input files are uploaded with the job."""
    overrides: tuple[str, ...] = ()
    """Overrides (key=value) for runs on this cluster; those of the command line have priority."""
    env_vars: dict[str, str] = Field(default={})
    """Environment variables of the job, such as AWS_ENDPOINT_URL."""
    python: str | None = Field(default=None, min_length=1)
    """Python interpreter of the job and its workers: a path or a name that is valid on all machines. By default the one
    that runs cloze if the disk is shared, otherwise `python`."""
    max_cpus: int | None = Field(default=None, gt=0)
    """The number of CPUs that the cluster can scale to, which the data stages then ask for. Unset: those it has."""
    pip: tuple[str, ...] = ()
    """Packages that Ray installs for the job, where the machines do not have them. Not together with `python`."""

    @model_validator(mode="after")
    def _python_can_be_found(self) -> "ClusterConfig":
        if self.python and "/" in self.python and not self.python.startswith("/"):
            raise ValueError(
                f"python {self.python} would be relative to the job's own folder; give an absolute path, or a name"
            )
        if self.python and self.pip:
            raise ValueError("python selects an environment and pip creates another one; remove one of them")
        return self

    @property
    def interpreter(self) -> str:
        """The Python interpreter of the job and its workers: `python`, or this process's where the disk is shared.

        Where it is not, or where `pip` creates an environment, the job runs `python` and the workers run the
        interpreter that Ray was started with.
        """
        if self.python:
            return self.python
        return sys.executable if self.shared_disk and not self.pip else _DEFAULT_PYTHON


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
    config = named_runs.read(run, overrides, root, defaults=cluster.overrides)
    client = _connect(cluster, cluster_path)
    options = [*(["--until", until] if until else []), *(word for stage in force for word in ("--force", stage))]
    entrypoint = shlex.join([cluster.interpreter, "-m", "cloze.infra.cli", "run", _CONFIG, *options])
    with tempfile.TemporaryDirectory(prefix="cloze-") as folder:
        stage_files(Path(folder), config, cluster, until)
        job = _submit(client, config.name, entrypoint, Path(folder), _environment(cluster))
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


def stage_files(folder: Path, config: RunConfig, cluster: ClusterConfig, until: str | None = None) -> None:
    """Fill the job's working directory: the code, the configuration as run.yaml and, unless the disk is shared, the
    local files that the stages up to `until` read. Raises UserError for a path that the cluster cannot access.
    """
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    root = _root(config, cluster)
    uploads = None if cluster.shared_disk else _Uploads(folder)
    local_patterns = {
        pattern
        for stage in Run(config).until(until)
        for path in input_paths(stage.config)
        for pattern in path.patterns
        if not pattern.startswith("s3://") and not path.mark.is_name(pattern)
    }

    def job_paths(path: MarkedPath, pattern: str) -> list[str]:
        return _job_paths(path, pattern, uploads) if pattern in local_patterns else [pattern]

    data = {**with_paths(config, job_paths), "root": root}
    # JSON is YAML with every string quoted.
    (folder / _CONFIG).write_text(json.dumps(data, indent=1, ensure_ascii=False))
    submitted = named_runs.as_yaml(config.model_copy(update={"root": root}))
    (folder / _SUBMITTED).write_text(submitted, encoding="utf-8")


def _root(config: RunConfig, cluster: ClusterConfig) -> str:
    if config.root.startswith("s3://"):
        return config.root
    if not cluster.shared_disk:
        raise UserError(
            f"root: {config.root} is a folder of this machine, which the cluster {cluster.name} cannot access; "
            f"set root=s3://bucket/prefix, or shared_disk: true in the cluster's file if it can"
        )
    return str(Path(config.root).absolute())


def _job_paths(path: MarkedPath, pattern: str, uploads: "_Uploads | None") -> list[str]:
    """The paths that the job reads in place of a local path or pattern."""
    if uploads and path.mark.files_in:
        key = ".".join(map(str, path.keys))
        raise UserError(f"{key}: {pattern} is a folder of this machine; copy it to S3, and give its s3:// path")
    if uploads:
        return uploads(pattern)
    if not path.mark.files_in:
        find_files(pattern)  # raises MissingFile
    return [named_runs.absolute(pattern)]


class _Uploads:
    """Adds local files to the job's working directory, each once, up to the size that Ray accepts."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._bytes = 0

    def __call__(self, pattern: str) -> list[str]:
        return [self._add(Path(file.path)) for file in find_files(pattern)]

    def _add(self, file: Path) -> str:
        path = Path("sources", hashlib.sha256(str(file).encode()).hexdigest()[:8], file.name)
        if not (self._folder / path).exists():
            self._bytes += file.stat().st_size
            if self._bytes > _MAX_UPLOAD_BYTES:
                raise UserError(
                    f"{file}: is too large to upload with the job (all files together at most "
                    f"{_MAX_UPLOAD_BYTES // 10**6} MB); copy it to S3, or set shared_disk: true in the cluster's file "
                    "if the cluster can access it"
                )
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).symlink_to(file)
        return str(path)


def _environment(cluster: ClusterConfig) -> dict[str, Any]:
    """The job's runtime environment, without its working directory."""
    env_vars = {
        "CLOZE_GIT_COMMIT": git_commit(),
        named_runs.SUBMITTED_CONFIG: _SUBMITTED,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
    }
    if cluster.interpreter != _DEFAULT_PYTHON:
        # Not py_executable: a job whose driver cannot start would wait indefinitely; a command fails with a message.
        env_vars[WORKERS_PYTHON] = cluster.interpreter
    if cluster.max_cpus:
        env_vars[MAX_CPUS] = str(cluster.max_cpus)
    if cluster.shared_disk:
        from cloze.infra.workflow import home

        env_vars["DAGSTER_HOME"] = str(home())  # one history with the runs of this machine
    return {"env_vars": env_vars | cluster.env_vars} | ({"pip": list(cluster.pip)} if cluster.pip else {})


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
    if python == _DEFAULT_PYTHON and "ray.exceptions." in message:  # raised in a worker
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
