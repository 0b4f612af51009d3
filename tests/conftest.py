"""Fixtures for all tests: a HOME of their own, one Ray session, one S3 server."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.s3_proxy import Proxy, s3_proxy

#: Tests that start Ray, or processes that do. They run one after the other: each has more processes than cores.
_ON_RAY = {
    *("examples", "finetune", "finetune_run", "flink", "heartbeat", "imports", "interrupts", "job_queue"),
    *("jobs_on_ray", "limits", "main_job", "overlap", "pretrain", "ray_data", "ray_session", "ray_train", "tokens"),
    *("trials", "vocab"),
}

#: The longest of the other files: one must not start last.
_LONGEST = ["terraform", "against_transformers", "two_runs", "workflow", "trainer", "dedup", "engine"]


class _Scheduling(LoadScopeScheduling):
    """The units that a worker takes: the tests on Ray together, and each other file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "on Ray" if _name(Path(file)) in _ON_RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    return _Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = dict.fromkeys(_ON_RAY, 0) | {name: place for place, name in enumerate(_LONGEST, start=1)}
        items.sort(key=lambda item: places.get(_name(item.path), len(places)))


def _name(file: Path) -> str:
    return file.stem.removeprefix("test_")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary HOME, as Ray and Dagster write into it. No test can reach Amazon or a cluster."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "120")  # of a loaded machine
        # At 15, Ray's default, its workers would wait for whatever the tests beside them compute.
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "yes")
        # Set before Ray starts, whose workers inherit it; `s3_bucket` starts a server there.
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        patch.setenv("AWS_REGION", "eu-central-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield home


@pytest.fixture(scope="session")
def ray_session(own_home: Path) -> Iterator[None]:
    """A local Ray of two CPUs, started once."""
    from cloze.infra.ray_session import ray_session as start

    with start(num_cpus=2):
        yield
        assert os.environ["HOME"] == str(own_home)


@pytest.fixture(scope="session")
def single_process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group with this process only, for training without Ray. It stays, as DeepSpeed keeps a reference."""
    import torch.distributed as dist

    from cloze.training.model.hardware import cpu_threads

    if not dist.is_initialized():
        store = tmp_path_factory.mktemp("alone") / "store"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with cpu_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        yield


@pytest.fixture(scope="session")
def s3_bucket(own_home: Path) -> Iterator[str]:
    """The s3:// address of an empty bucket on a local S3 server (moto's, over HTTP, in a process of its own)."""
    port = os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with (own_home / "moto.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for_port(int(port))
            import boto3

            where = {"LocationConstraint": os.environ["AWS_REGION"]}
            boto3.client("s3").create_bucket(Bucket="cloze-tests", CreateBucketConfiguration=where)
            yield "s3://cloze-tests"
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def running_proxy(s3_bucket: str) -> Iterator[Proxy]:
    """A proxy in front of the S3 server. It counts requests, and fails where it has faults."""
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The S3 server of this test is the proxy, without a fault yet."""
    from cloze.pipeline.core import s3

    monkeypatch.setenv("AWS_ENDPOINT_URL", running_proxy.url)
    monkeypatch.setattr(s3, "_client", s3._Client())
    running_proxy.faults.clear()
    return running_proxy


@pytest.fixture
def short_s3_waits(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests fail early, and are repeated early and for a short time."""
    from cloze.pipeline.core import retries, s3

    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "5")
    monkeypatch.setattr(s3, "_READ_TIMEOUT", 0.5)
    monkeypatch.setattr(retries, "_FIRST_DELAY", 0.05)


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder: on the local disk, and again on S3."""
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}-{time.monotonic_ns()}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    """Return when a server listens on the port; raises TimeoutError when none does in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as client:
            client.settimeout(1.0)
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")
