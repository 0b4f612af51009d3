"""The Ray part of a RayJob for real: `ray start` nodes with the pods' variables, and the submitter's command."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import JobRequest, JobState
from cloze.infra.launch.kubernetes_jobs import KubernetesJobs
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.storage import Location
from tests.conftest import free_port, wait_for_port
from tests.infra.launch.kubernetes_api import ApiServer, api_server, kubeconfig
from tests.paths import QUICKSTART, REPOSITORY

pytestmark = pytest.mark.campaign

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass
class Ray:
    """A Ray cluster that consists of the head and one worker of a RayJob."""

    head_env: dict[str, str]
    dashboard: str

    def shell(self, script: str) -> "subprocess.Popen[str]":
        """A script in the head's container."""
        return subprocess.Popen(
            ["/bin/sh", "-c", script.replace("http://127.0.0.1:8265", self.dashboard)],
            env=self.head_env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server() as server, pytest.MonkeyPatch.context() as patch:
        file = tmp_path_factory.mktemp("kube") / "config"
        file.write_text(kubeconfig(server.url))
        patch.setenv("KUBECONFIG", str(file))
        patch.chdir(REPOSITORY)
        yield server


@pytest.fixture(scope="module")
def jobs(api: ApiServer) -> KubernetesJobs:
    variables = {name: os.environ[name] for name in sorted(os.environ) if name.startswith("AWS_")}
    config = {
        "name": "k",
        "kubernetes": {"image": "cloze:1", "code": "upload", "namespace": "ml"},
        "node_types": [{"name": "cpu", "cpus": 2, "memory_gb": 4, "max_nodes": 1}],
        "env_vars": variables,
    }
    return KubernetesJobs(ClusterConfig.model_validate_json(json.dumps(config)), "c.yaml")


def request(bucket: str, *overrides: str) -> JobRequest:
    config = load(RunConfig, QUICKSTART, [f"root={bucket}/kubernetes", "vocab.size=500", *overrides])
    return JobRequest(config, until="vocab")


@pytest.fixture(scope="module")
def ray(api: ApiServer, jobs: KubernetesJobs, s3_bucket: str) -> Iterator[Ray]:
    name, _ = jobs.submit(request(s3_bucket))
    with ray_cluster(api.get("rayjobs", name)["spec"]["rayClusterSpec"]) as cluster:
        yield cluster


@contextmanager
def ray_cluster(spec: dict[str, Any]) -> Iterator[Ray]:
    port, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="cloze-")  # a short path for Ray's sockets
    head, [worker] = spec["headGroupSpec"], spec["workerGroupSpecs"]
    cpus = worker["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
    environments = [container_env(group["template"], folder) for group in (head, worker)]
    commands = [
        [
            *("--head", f"--port={port}", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={free_port()}", f"--num-cpus={head['rayStartParams']['num-cpus']}"),
        ],
        [f"--address=127.0.0.1:{port}", f"--num-cpus={cpus}"],
    ]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name, command, env in zip(("h", "w"), commands, environments, strict=True):
            # As pods do, nodes have a folder each: one would delete the working directory that the other has unpacked.
            own = [f"--temp-dir={folder}/{name}", f"--dashboard-agent-listen-port={free_port()}"]
            start = [*RAY, "start", *command, *own, "--block", "--num-gpus=0"]
            stack.enter_context(started_node(start, env, Path(folder) / f"{name}.log"))
            wait_for_port(dashboard, 120)
        yield Ray(environments[0], f"http://127.0.0.1:{dashboard}")


@contextmanager
def started_node(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """A node that runs, started again, as KubeRay starts a pod again, if a loaded machine was too slow for Ray."""
    for _ in range(3):
        with log.open("wb") as output:
            node = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            while node.poll() is None and "Ray runtime started" not in log.read_text():
                time.sleep(0.2)
            if node.poll() is None:
                yield
                return
        finally:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    raise AssertionError(log.read_text())


def container_env(template: dict[str, Any], home: str) -> dict[str, str]:
    """The variables of the pod's container, and those that KubeRay and an image add."""
    variables = {one["name"]: one["value"].replace("$$", "$") for one in template["spec"]["containers"][0]["env"]}
    bin_folder = str(Path(sys.executable).parent)
    return variables | {
        "HOME": home,
        "PATH": f"{bin_folder}:{os.defpath}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "secret",
        "RAY_raylet_start_wait_time_s": "120",  # of a loaded machine
    }


def submit_command(job: dict[str, Any]) -> str:
    """The script of the submitter's container, as KubeRay writes it."""
    spec, address = job["spec"], "--address http://127.0.0.1:8265"
    runtime_env = json.dumps(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"])))
    name = spec["jobId"]
    return (
        f"until ray job list {address} >/dev/null 2>&1; do sleep 1; done; "
        f"ray job submit {address} --no-wait --runtime-env-json {runtime_env} --submission-id {name} "
        f"-- {spec['entrypoint']} ; ray job logs {address} --follow {name}"
    )


def test_the_rendered_job_runs_on_ray_and_its_artifacts_are_on_s3(
    api: ApiServer, jobs: KubernetesJobs, ray: Ray, s3_bucket: str
) -> None:
    name, is_new = jobs.submit(request(s3_bucket))
    assert not is_new
    done, log = ray.shell(submit_command(api.get("rayjobs", name))), ""
    api.set_status(name, jobDeploymentStatus="Running", jobStatus="RUNNING")
    api.add_pod("submitter-1", {"job-name": name})
    log = done.communicate(timeout=400)[0]
    api.print("submitter-1", *log.splitlines())
    assert done.returncode == 0, log
    api.end_log("submitter-1")
    api.set_status(name, jobDeploymentStatus="Complete", jobStatus=status(ray, name))
    assert "vocab             done in" in "".join(jobs.logs(name, follow=True))
    assert (jobs.info(name).state, jobs.info(name).exit_status) == (JobState.SUCCEEDED, 0)
    root = Location(f"{s3_bucket}/kubernetes")
    assert [folder for folder in (root / "vocab").folders() if (folder / "vocab.txt").is_file()]
    stored = (root / "runs/quickstart.yaml").read_text()
    assert f"{REPOSITORY}/configs/quickstart/books/*.txt" in stored  # the user's own path


def test_before_the_head_ends_its_hook_stops_the_job_once_and_waits_for_it(
    api: ApiServer, jobs: KubernetesJobs, ray: Ray, s3_bucket: str
) -> None:
    name, _ = jobs.submit(request(s3_bucket, "vocab.size=600"))
    job = api.get("rayjobs", name)
    submitter = ray.shell(submit_command(job))
    end = time.monotonic() + 120
    while status(ray, name) != "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.5)
    time.sleep(3)
    [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    _, _, hook = container["lifecycle"]["preStop"]["exec"]["command"]
    first, second = ray.shell(hook), ray.shell(hook)
    for stopping in (first, second):
        stopping.communicate(timeout=150)
        assert stopping.returncode == 0
    assert status(ray, name) == "STOPPED"
    log = submitter.communicate(timeout=60)[0]
    assert "cloze: stopped" in log, log
    again = ray.shell(hook)
    assert again.communicate(timeout=60) and again.returncode == 0


def status(ray: Ray, name: str) -> str:
    """The status of the Ray job, which KubeRay copies; empty before it is submitted."""
    code = "from ray.job_submission import JobSubmissionClient; "
    code += f"print(JobSubmissionClient('{ray.dashboard}').get_job_status('{name}').value)"
    command = shlex.join([sys.executable, "-c", code])
    return ray.shell(f"{command} 2>/dev/null").communicate(timeout=60)[0].strip()
