"""A run -> the working directory of its job: the code, the configuration and, for a cluster without access to this
machine's disk, the local files that the run reads.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloze.infra import named_runs
from cloze.infra.job_record import JOB_CLUSTER
from cloze.infra.launch.cluster_config import DEFAULT_PYTHON, ClusterConfig
from cloze.infra.launch.prices import head_price, load_prices, priced_node_types
from cloze.infra.launch.supervisor import STOP_SECONDS
from cloze.infra.planner import Run
from cloze.infra.ray_session import WORKERS_PYTHON
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import MarkedPath, input_paths, with_paths
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import HEAD_PRICE, MAX_CPUS, MAX_GPUS, NODE_TYPES
from cloze.pipeline.core.software_versions import GIT_COMMIT, git_commit
from cloze.pipeline.core.storage import find_files

CONFIG = "run.yaml"  # the job's configuration in its working directory
_SUBMITTED = "submitted.yaml"  # the same with the user's paths, which the job stores under the root
_PACKAGE = Path(__file__).absolute().parents[2]  # in a clone a folder of symbolic links, whose targets are copied
_MAX_UPLOAD_BYTES = 95_000_000  # Ray accepts working directories up to 100 MiB
_MAX_CODE_BYTES = 2_000_000  # of one file; the largest one of the package has 20 kB


def stage_files(folder: Path, config: RunConfig, cluster: ClusterConfig, until: str | None = None) -> None:
    """Fill the job's working directory: the code, unless the cluster's image has it, the configuration as run.yaml and,
    unless the disk is shared, the local files that the stages up to `until` read. Raises UserError for a path that the
    cluster cannot access.
    """
    if not (cluster.kubernetes and cluster.kubernetes.code == "image"):
        copy_package(folder)
    root = _root(config, cluster)
    uploads = None if cluster.shared_disk else _Uploads(folder, _or_shared_disk(cluster))
    local_patterns = {pattern for _, pattern in _local_paths(config, until)}

    def job_paths(path: MarkedPath, pattern: str) -> list[str]:
        return _job_paths(path, pattern, uploads) if pattern in local_patterns else [pattern]

    data = {**with_paths(config, job_paths), "root": root}
    # JSON is YAML with every string quoted.
    (folder / CONFIG).write_text(json.dumps(data, indent=1, ensure_ascii=False))
    submitted = named_runs.as_yaml(config.model_copy(update={"root": root}))
    (folder / _SUBMITTED).write_text(submitted, encoding="utf-8")


def check_input_files(config: RunConfig, until: str | None = None) -> None:
    """Raises UserError if a local file that the stages up to `until` read does not exist."""
    for path, pattern in _local_paths(config, until):
        if not path.mark.files_in:
            find_files(pattern)


def _local_paths(config: RunConfig, until: str | None) -> Iterator[tuple[MarkedPath, str]]:
    """The local paths and patterns of the stages up to `until`."""
    for stage in Run(config).until(until):
        for path in input_paths(stage.config):
            for pattern in path.patterns:
                if not pattern.startswith("s3://") and not path.mark.is_name(pattern):
                    yield path, pattern


def copy_package(folder: Path) -> None:
    """Copy the code into a job's folder. Raises UserError for a file that is too large to be code."""
    target = folder / _PACKAGE.name
    shutil.copytree(_PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in target.rglob("*"):
        if file.is_file() and file.stat().st_size > _MAX_CODE_BYTES:
            raise UserError(
                f"{_PACKAGE / file.relative_to(target)}: has {file.stat().st_size / 1e6:.0f} MB, but this folder is "
                "sent to the cluster as Cloze's code; move it to another folder"
            )


def _root(config: RunConfig, cluster: ClusterConfig) -> str:
    if config.root.startswith("s3://"):
        return config.root
    if not cluster.shared_disk:
        raise UserError(
            f"root: {config.root} is a folder of this machine, which the cluster {cluster.name} cannot access; "
            f"set root=s3://bucket/prefix{_or_shared_disk(cluster)}"
        )
    return str(Path(config.root).absolute())


def _or_shared_disk(cluster: ClusterConfig) -> str:
    """The second part of a fix; pods never see this machine's disk."""
    return "" if cluster.kubernetes else ", or set shared_disk: true in the cluster's file if it can access this disk"


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

    def __init__(self, folder: Path, or_shared_disk: str):
        self._folder, self._or_shared_disk = folder, or_shared_disk
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
                    f"{_MAX_UPLOAD_BYTES // 10**6} MB); copy it to S3{self._or_shared_disk}"
                )
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).symlink_to(file)
        return str(path)


def job_environment(cluster: ClusterConfig) -> dict[str, Any]:
    """The job's runtime environment, without its working directory. Raises UserError for one that Ray refuses."""
    env_vars = {
        GIT_COMMIT: git_commit(),
        named_runs.SUBMITTED_CONFIG: _SUBMITTED,
        JOB_CLUSTER: cluster.name,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),  # Ray's default is 3
    }
    if cluster.interpreter != DEFAULT_PYTHON:
        # Not py_executable: a job whose driver cannot start would wait indefinitely; a command fails with a message.
        env_vars[WORKERS_PYTHON] = cluster.interpreter
    for variable, limit in ((MAX_CPUS, cluster.cpu_limit), (MAX_GPUS, cluster.gpu_limit)):
        if limit is not None:
            env_vars[variable] = str(limit)
    if cluster.node_types:
        prices = load_prices(None)
        env_vars[NODE_TYPES] = json.dumps([kind._asdict() for kind in priced_node_types(cluster, prices)])
        if (of_head := head_price(cluster, prices)) is not None:
            env_vars[HEAD_PRICE] = str(of_head)
    env_vars |= cluster.runtime_env.get("env_vars", {}) | cluster.env_vars
    pip = {"pip": list(cluster.pip)} if cluster.pip else {}
    environment = {**cluster.runtime_env, "env_vars": env_vars, **pip}
    if cluster.runtime_env:
        _check(environment)
    return environment


def _check(environment: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    try:
        RuntimeEnv(**environment)
    except (TypeError, ValueError, OSError) as error:
        raise UserError(
            f"runtime_env: {' '.join(str(error).split())[:300]}; correct runtime_env in the cluster's file"
        ) from error
