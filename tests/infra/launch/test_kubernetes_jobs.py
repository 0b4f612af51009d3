import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.infra.cli import main
from cloze.infra.launch import commands, kubernetes_jobs
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.following import FollowedJob, JobFailed
from cloze.infra.launch.jobs import JobInfo, JobRequest, JobState, Unreachable
from cloze.infra.launch.kubernetes_jobs import KubernetesJobs
from cloze.infra.launch.pod_problems import pod_problem
from cloze.infra.launch.rayjob import Submission
from cloze.infra.launch.supervisor import arguments, supervise
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from tests.conftest import free_port
from tests.infra.launch.kuberay import SCHEMA
from tests.infra.launch.kubernetes_api import ApiServer, Refused, api_server, kubeconfig
from tests.paths import QUICKSTART, REPOSITORY

EXAMPLE = REPOSITORY / "configs/clusters/kubernetes.yaml"
JOB = "quickstart-0123456789ab-1"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server without jobs, which the kubeconfig names."""
    monkeypatch.chdir(REPOSITORY)
    with api_server() as server:
        use(monkeypatch, tmp_path, server.url)
        yield server


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, **options: str) -> None:
    (folder / "kubeconfig").write_text(kubeconfig(url, **options))
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))


def backend(*overrides: str) -> KubernetesJobs:
    return KubernetesJobs(cluster(*overrides), "c.yaml")


def cluster(*overrides: str) -> ClusterConfig:
    return load(ClusterConfig, EXAMPLE, ["kubernetes.namespace=ml", *overrides])


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobRequest:
    """A run whose archive is on this machine's disk: these tests need no S3."""
    submission = Submission(
        run="quickstart",
        root=f"{tmp_path}/runs",
        digest="0123456789ab",
        entrypoint="python -m cloze.infra.cli run run.yaml",
        env_vars={},
        runtime_env={"working_dir": str(tmp_path / "job.zip")},
    )
    monkeypatch.setattr(kubernetes_jobs, "prepare", lambda *_: (submission, b"zip"))
    return JobRequest(load(RunConfig, QUICKSTART))


def test_a_submitted_run_is_a_rayjob_and_its_archive_is_stored_first(
    api: ApiServer, prepared: JobRequest, tmp_path: Path
) -> None:
    jobs = backend()
    assert jobs.submit(prepared) == (JOB, True)
    assert (tmp_path / "job.zip").read_bytes() == b"zip"
    [info] = jobs.jobs()
    assert (info.id, info.run, info.root, info.state) == (JOB, "quickstart", f"{tmp_path}/runs", JobState.PENDING)
    assert info.submitted and info.submitted.utcoffset() is not None
    assert jobs.info(JOB).reason == "KubeRay has not started it yet; its operator must be running"


def test_submitted_again_it_attaches_until_the_job_has_ended_or_is_being_stopped(
    api: ApiServer, prepared: JobRequest
) -> None:
    jobs = backend()
    assert jobs.submit(prepared) == (JOB, True)
    assert jobs.submit(prepared) == (JOB, False)
    api.set_status(JOB, jobDeploymentStatus="Running", jobStatus="RUNNING")
    assert jobs.submit(prepared) == (JOB, False)
    jobs.stop(JOB)
    assert jobs.submit(prepared) == (f"{JOB[:-1]}2", True)
    api.set_status(f"{JOB[:-1]}2", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert jobs.submit(prepared) == (f"{JOB[:-1]}3", True)


def test_the_pods_of_all_attempts_know_when_the_job_was_submitted(api: ApiServer, prepared: JobRequest) -> None:
    def submitted(job: str) -> str:
        cluster = api.get("rayjobs", job)["spec"]["rayClusterSpec"]
        [container] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
        return {one["name"]: one["value"] for one in container["env"]}["CLOZE_JOB_SUBMITTED"]

    jobs = backend()
    first, _ = jobs.submit(prepared)
    time_of_first = submitted(first)
    jobs.stop(first)
    second, _ = jobs.submit(prepared)
    assert time_of_first and submitted(second) > time_of_first


def test_of_two_submissions_at_the_same_moment_one_attaches(api: ApiServer, prepared: JobRequest) -> None:
    first, second = backend(), backend()
    lists, both = [], threading.Barrier(2)

    def listed_together(list_rayjobs: Callable[[str], Any]) -> Callable[[str], Any]:
        def rayjobs(labels: str) -> Any:
            lists.append(found := list_rayjobs(labels))
            both.wait(10)
            return found

        return rayjobs

    results: list[tuple[str, bool]] = []
    threads = []
    for jobs in (first, second):
        jobs._api.rayjobs = listed_together(jobs._api.rayjobs)  # type: ignore[method-assign]
        threads.append(threading.Thread(target=lambda jobs=jobs: results.append(jobs.submit(prepared))))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
    assert lists == [[], []]
    assert sorted(results) == [(JOB, False), (JOB, True)]


STATES = [
    ({}, JobState.PENDING, "KubeRay has not started it yet", None),
    ({"jobDeploymentStatus": "Initializing"}, JobState.PENDING, "waits until its Ray cluster is ready", None),
    ({"jobDeploymentStatus": "Running"}, JobState.PENDING, "waits until its Ray cluster is ready", None),
    ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, JobState.PENDING, "waits", None),
    ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, JobState.RUNNING, "", None),
    ({"jobDeploymentStatus": "Retrying", "failed": 1}, JobState.PENDING, "attempt 1 of 4 has failed; a new", None),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, JobState.SUCCEEDED, "", 0),
    (
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        JobState.FAILED,
        "was stopped inside its cluster, as its head does before it ends; the same command continues",
        None,
    ),
    (
        {
            "jobDeploymentStatus": "Failed",
            "jobStatus": "FAILED",
            "reason": "AppFailed",
            "message": "Job entrypoint command failed with exit code 2, last available logs:\ncloze: no.xml: ...",
        },
        JobState.FAILED,
        "cloze run ended with status 2; its log says why",
        2,
    ),
    (
        {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "Job entrypoint failed with exit code -9"},
        JobState.FAILED,
        "cloze run ended with status -9",
        1,
    ),
    (
        {"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded", "message": "m"},
        JobState.FAILED,
        "has taken longer than deadline_seconds (172800)",
        None,
    ),
    (
        {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "m"},
        JobState.FAILED,
        "its Ray cluster was not ready within kubernetes.pending_deadline_seconds (1800)",
        None,
    ),
    (
        {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "Job submission has failed."},
        JobState.FAILED,
        "SubmissionFailed: Job submission has failed.",
        None,
    ),
]


@pytest.mark.parametrize(("status", "state", "reason", "exit_status"), STATES)
def test_a_jobs_state_is_kuberays(
    api: ApiServer, prepared: JobRequest, status: dict[str, Any], state: JobState, reason: str, exit_status: int | None
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    api.set_status(JOB, **status, endTime="2026-11-01T10:00:00Z")
    info = jobs.info(JOB)
    assert (info.state, info.exit_status) == (state, exit_status)
    assert info.reason.startswith(reason) and bool(info.reason) == bool(reason)
    assert (info.ended is not None) == state.is_terminal


def test_a_job_in_a_queue_says_so(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend("kubernetes.queue=team", "node_types.cpu.min_nodes=8", "node_types.gpu.min_nodes=2")
    jobs.submit(prepared)
    job = api.get("rayjobs", JOB)
    api.update("rayjobs", {**job, "spec": {**job["spec"], "suspend": True}})  # as Kueue's webhook does
    assert jobs.info(JOB).reason == "waits until the queue team admits it"


@pytest.mark.parametrize("ttl", [60, None])
def test_an_ended_job_is_deleted_by_the_next_submission_after_its_own_time(
    api: ApiServer, prepared: JobRequest, ttl: int | None
) -> None:
    backend(f"ttl_seconds={ttl or 'null'}").submit(prepared)
    jobs = backend("ttl_seconds=0")
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="STOPPED", endTime="2026-11-01T10:00:00Z")
    assert [info.id for info in jobs.jobs()] == ([] if ttl else [JOB])
    jobs.submit(prepared)
    assert ("deletionTimestamp" in api.get("rayjobs", JOB)["metadata"]) == bool(ttl)


# Why a job is pending


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


PODS = [
    (unschedulable("0/3 nodes are\navailable"), "pod p has no machine: Unschedulable: 0/3 nodes are available"),
    (
        waiting("ImagePullBackOff", "Back-off pulling image"),
        "pod p cannot pull its image: ImagePullBackOff: Back-off pulling image; correct kubernetes.image",
    ),
    (
        waiting("CreateContainerConfigError", 'secret "aws" not found'),
        'pod p cannot start: CreateContainerConfigError: secret "aws" not found',
    ),
    (waiting("ContainerCreating", ""), ""),
    (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        "pod p was lost: Evicted: The node was low on resource: memory.",
    ),
    (
        {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]},
        "pod p used more than its memory (OOMKilled); raise memory_gb of its node type",
    ),
    ({"phase": "Running"}, ""),
]


@pytest.mark.parametrize(("status", "problem"), PODS)
def test_a_pod_that_does_not_run_says_why(status: dict[str, Any], problem: str) -> None:
    assert pod_problem({"metadata": {"name": "p"}, "status": status}) == problem


def test_a_pending_job_names_the_problem_of_its_pods_or_the_last_warning(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    api.set_status(JOB, jobDeploymentStatus="Initializing", rayClusterName="ray-1")
    quota = 'FailedToCreateHeadPod: pods "ray-1-head" is forbidden: exceeded quota: team, requested: cpu=4'
    api.add_event("ray-1", quota)
    assert jobs.info(JOB).reason == quota
    api.add_pod("ray-1-head", {"ray.io/cluster": "ray-1"})
    api.add_pod("ray-1-gpu", {"ray.io/cluster": "ray-1"}, **unschedulable("0/3 nodes are available"))
    assert jobs.info(JOB).reason == "pod ray-1-gpu has no machine: Unschedulable: 0/3 nodes are available"


def test_a_pending_job_is_followed_also_by_who_may_not_read_events(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    api.forbidden = {("list", "events")}
    assert jobs.info(JOB).reason == "KubeRay has not started it yet; its operator must be running"
    following, deadline = follow(jobs), time.monotonic() + 60
    while not any("watch=" in one for one in api.requests):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running(api)
    api.print("submitter-1", "done")
    succeed(api)
    assert (following.end(), following.error) == ("done\n", None)


# Logs


def follow(jobs: KubernetesJobs, seconds: float = 60) -> "Following":
    return Following(jobs, seconds)


class Following:
    """`logs` with follow, read in a thread."""

    def __init__(self, jobs: KubernetesJobs, seconds: float):
        self.text, self.error, self._seconds = "", None, seconds
        self._thread = threading.Thread(target=self._read, args=(jobs,), daemon=True)
        self._thread.start()

    def _read(self, jobs: KubernetesJobs) -> None:
        try:
            for text in jobs.logs(JOB, follow=True):
                self.text += text
        except UserError as error:
            self.error = error

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + self._seconds
        while text not in self.text:
            assert time.monotonic() < end, self.text
            time.sleep(0.02)

    def end(self) -> str:
        self._thread.join(self._seconds)
        assert not self._thread.is_alive(), self.text
        return self.text


def running(api: ApiServer, pod: str = "submitter-1") -> None:
    api.set_status(JOB, jobDeploymentStatus="Running", jobStatus="RUNNING")
    api.add_pod(pod, {"job-name": JOB})


def succeed(api: ApiServer, pod: str = "submitter-1") -> None:
    api.end_log(pod)
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


def test_a_log_is_followed_from_pending_to_the_end(
    api: ApiServer, prepared: JobRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    following, deadline = follow(jobs), time.monotonic() + 60
    while not any("watch=" in one for one in api.requests):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running(api)
    api.print("submitter-1", "extract  done", "dedup  dönë")
    following.wait_for("dönë")
    api.print("submitter-1", "vocab  done")
    succeed(api)
    assert following.end() == "extract  done\ndedup  dönë\nvocab  done\n"
    assert f"cloze: {JOB} is pending: KubeRay has not started it yet" in capsys.readouterr().err
    assert "".join(jobs.logs(JOB, follow=False)) == following.text
    assert jobs.info(JOB).exit_status == 0


def test_cut_connections_lose_and_repeat_no_line(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    following = follow(jobs)
    for number in range(5):
        api.print("submitter-1", f"line {number}")
        following.wait_for(f"line {number}")
        api.cut()
    succeed(api)
    assert following.end() == "".join(f"line {number}\n" for number in range(5))


def test_a_watch_that_is_too_old_starts_again(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    read = jobs._api.get(JOB)
    api.set_status(JOB, jobDeploymentStatus="Initializing")
    assert jobs._api.wait_for_change(read, 5) == ("MODIFIED", api.get("rayjobs", JOB))
    api.compact()
    assert jobs._api.wait_for_change(read, 1) is None
    following = follow(jobs)
    time.sleep(0.5)
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert following.end() == ""


def test_each_retry_has_its_log_in_order(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    following = follow(jobs)
    api.print("submitter-1", "first attempt")
    following.wait_for("first attempt")
    api.set_status(JOB, jobDeploymentStatus="Retrying", jobStatus="", failed=1)
    api.end_log("submitter-1")
    running(api, "submitter-2")
    api.print("submitter-2", "second attempt")
    following.wait_for("second attempt")
    succeed(api, "submitter-2")
    assert following.end() == "first attempt\nsecond attempt\n"


def test_following_a_job_without_an_api_server_ends_with_an_error(
    api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_jobs, "LOST_SECONDS", 1.0)
    jobs = backend()
    jobs.submit(prepared)
    following = follow(jobs)
    time.sleep(0.5)
    api.shutdown()
    api.server_close()
    api.cut()
    following.end()
    assert "does not answer" in str(following.error)


def test_waiting_for_a_job_outlasts_an_api_server_that_is_away_for_a_while(
    api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")

    def away(_: str) -> JobInfo:
        raise Unreachable("c.yaml: the API server does not answer")

    ended = jobs.info(JOB)
    answers = iter([away, away, jobs.info])
    monkeypatch.setattr(jobs, "info", lambda job: next(answers)(job))
    monkeypatch.setattr(commands, "_POLL", 0.1)
    assert commands._wait(jobs, JOB) == ended
    monkeypatch.setattr(commands, "LOST_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "info", away)
    with pytest.raises(Unreachable):
        commands._wait(jobs, JOB)


def test_waiting_asks_less_often_while_a_job_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()

    def info(_jobs: KubernetesJobs, job: str) -> JobInfo:
        return JobInfo(job, "r", "s3://b", JobState.RUNNING if sum(pauses) < 600 else JobState.SUCCEEDED)

    monkeypatch.setattr(KubernetesJobs, "__init__", lambda _: None)
    monkeypatch.setattr(KubernetesJobs, "info", info)
    monkeypatch.setattr(commands.time, "sleep", pauses.append)
    assert commands._wait(KubernetesJobs(), JOB).state is JobState.SUCCEEDED  # pyright: ignore[reportCallIssue]
    assert (pauses[0], max(pauses)) == (1, 10) and len(pauses) < 80


# The end


def test_a_stopped_job_exists_until_its_cluster_has_ended(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    following = follow(jobs)
    jobs.stop(JOB)
    jobs.stop(JOB)
    assert any("propagationPolicy=Foreground" in one for one in api.requests if one.startswith("DELETE"))
    assert jobs.info(JOB).reason == "is being stopped: it saves, then its cluster ends"
    api.print("submitter-1", "saved")
    api.end_log("submitter-1")
    following.wait_for("saved")
    api.remove("rayjobs", JOB)
    following.end()
    assert (jobs.info(JOB).state, jobs.info(JOB).reason) == (JobState.STOPPED, "was stopped")
    assert jobs.jobs() == []
    with pytest.raises(UserError, match=f"^{JOB}: is not a job of the namespace ml of kubernetes"):
        backend().info(JOB)


def test_a_job_that_was_deleted_while_it_ran_was_stopped_and_one_whose_head_ended_is_submitted_again(
    api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloze.infra.launch.following._POLL", 0.05)
    jobs = backend()
    followed = FollowedJob(jobs, prepared)
    running(api)
    api.end_log("submitter-1")
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="STOPPED")
    with pytest.raises(JobFailed, match=f"^{JOB}: was stopped inside its cluster"):
        list(followed.stages(["extract"]))
    again = FollowedJob(jobs, prepared)
    assert (again.job, again.is_new) == (f"{JOB[:-1]}2", True)
    jobs.stop(again.job)
    api.set_status(again.job, jobDeploymentStatus="Complete", jobStatus="STOPPED")
    with pytest.raises(UserError, match=f"^{again.job}: was stopped; the same command continues"):
        list(again.stages(["extract"]))


def test_a_job_that_is_deleted_right_after_its_end_has_succeeded(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    following = follow(jobs)
    api.print("submitter-1", "done")
    following.wait_for("done")
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    api.remove("rayjobs", JOB)
    api.remove("pods", "submitter-1")
    api.end_log("submitter-1")
    following.end()
    assert (jobs.info(JOB).state, jobs.info(JOB).exit_status) == (JobState.SUCCEEDED, 0)


def head_variables(api: ApiServer) -> dict[str, str]:
    cluster = api.get("rayjobs", JOB)["spec"]["rayClusterSpec"]
    [container] = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"]}


def supervised(api: ApiServer, script: str, root: str) -> int:
    """The exit status of the job's supervisor in the head's pod, where the script runs in place of `cloze run`."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head_variables(api).items():
            patch.setenv(name, value)
        try:
            return supervise(["sh", "-c", script], None, math.inf, 0, root)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.mark.parametrize(
    ("ends", "reported"),
    [("exit 2", 0), ("exit 130", 0), ("kill -TERM $$", 0), ("exit 1", 1), ("kill -KILL $$", 137), ("exit 0", 0)],
)
def test_an_end_that_may_not_be_repeated_is_a_success_for_kuberay_and_a_failure_for_cloze(
    api: ApiServer, prepared: JobRequest, tmp_path: Path, ends: str, reported: int
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    assert supervised(api, ends, f"{tmp_path}/runs") == reported
    if reported:
        return
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    status = {"exit 2": 2, "exit 130": 130, "kill -TERM $$": 143, "exit 0": 0}[ends]
    reason = f"cloze run ended with status {status}; its log says why" if status else ""
    state = JobState.FAILED if status else JobState.SUCCEEDED
    for info in (jobs.info(JOB), *jobs.jobs()):
        assert (info.state, info.exit_status, info.reason) == (state, status, reason)
    assert commands._exit_status(commands._wait(jobs, JOB)) == status


def test_a_stopped_job_that_ray_takes_for_a_success_was_stopped(
    api: ApiServer, prepared: JobRequest, tmp_path: Path
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    jobs.stop(JOB)
    supervised(api, "exit 143", f"{tmp_path}/runs")
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert jobs.info(JOB).state is JobState.STOPPED


def test_an_end_that_cannot_be_recorded_is_reported_to_kuberay(
    api: ApiServer, prepared: JobRequest, tmp_path: Path
) -> None:
    backend().submit(prepared)
    (tmp_path / "file").write_text("")
    assert supervised(api, "exit 2", f"{tmp_path}/file") == 2


def test_the_supervisor_of_the_entrypoint_records_the_end(api: ApiServer, prepared: JobRequest, tmp_path: Path) -> None:
    backend().submit(prepared)
    command = [sys.executable, *arguments(root=f"{tmp_path}/runs"), "sh", "-c", "exit 2"]
    env = {**os.environ, **head_variables(api), "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0
    assert json.loads((tmp_path / f"runs/jobs/{JOB}.json").read_text())["exit_status"] == 2


def test_the_record_of_an_earlier_job_of_the_same_name_is_not_that_of_the_job(
    api: ApiServer, prepared: JobRequest, tmp_path: Path
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    supervised(api, "exit 2", f"{tmp_path}/runs")
    jobs.stop(JOB)
    api.remove("rayjobs", JOB)
    assert jobs.submit(prepared) == (JOB, True)
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert jobs.info(JOB).state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("ends", "state", "status"),
    [("exit 0", JobState.SUCCEEDED, 0), ("exit 2", JobState.FAILED, 2), ("exit 143", JobState.STOPPED, None)],
)
def test_a_job_that_ended_and_was_deleted_unseen_is_as_it_has_recorded(
    api: ApiServer, prepared: JobRequest, tmp_path: Path, ends: str, state: JobState, status: int | None
) -> None:
    jobs = backend()
    jobs.submit(prepared)
    running(api)
    assert jobs.info(JOB).state is JobState.RUNNING
    supervised(api, ends, f"{tmp_path}/runs")
    api.remove("rayjobs", JOB)
    assert (jobs.info(JOB).state, jobs.info(JOB).exit_status) == (state, status)


@pytest.mark.parametrize(
    ("ends", "exit_status"), [("exit 0", 0), ("exit 2", 2), ("exit 143", 130), ("kill -KILL $$", None)]
)
def test_who_waits_for_a_job_that_was_deleted_earlier_gets_its_end_where_the_clusters_file_names_the_root(
    api: ApiServer, prepared: JobRequest, tmp_path: Path, ends: str, exit_status: int | None
) -> None:
    backend().submit(prepared)
    supervised(api, ends, f"{tmp_path}/runs")
    api.remove("rayjobs", JOB)
    later = backend(f"overrides=[root={tmp_path}/runs]")
    if exit_status is None:  # it has recorded nothing
        with pytest.raises(UserError, match=f"^{JOB}: is not a job of the namespace"):
            later.info(JOB)
    else:
        info = commands._wait(later, JOB)
        assert (commands._exit_status(info), info.run, info.root) == (exit_status, "quickstart", f"{tmp_path}/runs")
        assert info.submitted and info.submitted.utcoffset() is not None
    with pytest.raises(UserError, match=f"^{JOB}: is not a job of the namespace"):
        backend().info(JOB)


def test_stopping_a_job_that_has_ended_does_nothing(api: ApiServer, prepared: JobRequest) -> None:
    jobs = backend()
    jobs.submit(prepared)
    api.set_status(JOB, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    jobs.stop(JOB)
    assert "deletionTimestamp" not in api.get("rayjobs", JOB)["metadata"]


def test_an_unknown_job_is_an_error_that_names_a_close_one(api: ApiServer, prepared: JobRequest) -> None:
    jobs, wrong = backend(), f"{JOB[:-1]}7"
    with pytest.raises(UserError, match=f"^{wrong}: is not a job of the namespace ml of kubernetes .*`cloze job list`"):
        jobs.info(wrong)
    jobs.submit(prepared)
    for request in (jobs.info, jobs.stop, lambda job: list(jobs.logs(job, follow=True))):
        with pytest.raises(UserError, match=f"; did you mean {JOB}[?]$"):
            request(wrong)


def test_the_commands_work_on_kubernetes(
    api: ApiServer, prepared: JobRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(re.sub("namespace: .*", "namespace: ml", EXAMPLE.read_text()))
    on_cluster = ["--cluster", str(file)]
    assert main(["submit", str(QUICKSTART), "root=s3://bucket/runs", "--detach", *on_cluster]) == 0
    assert capsys.readouterr().out == f"{JOB}\n"
    running(api)
    api.print("submitter-1", "[1/7] extract done")
    assert main(["job", "list", "--json", *on_cluster]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["id"], listed["run"], listed["state"]) == (JOB, "quickstart", "running")
    assert main(["job", "logs", JOB, *on_cluster]) == 0
    assert capsys.readouterr().out == "[1/7] extract done\n"
    assert main(["job", "stop", JOB, *on_cluster]) == 0
    assert "deletionTimestamp" in api.get("rayjobs", JOB)["metadata"]


# Faults: one line each


def test_of_two_writers_the_second_has_a_conflict(api: ApiServer, prepared: JobRequest) -> None:
    backend().submit(prepared)
    read = api.get("rayjobs", JOB)
    api.update("rayjobs", read)
    with pytest.raises(Refused, match="the object has been modified"):
        api.update("rayjobs", read)


def refused(request: JobRequest, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        backend(*overrides).submit(request)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_usable_kubeconfig_the_error_says_what_to_set(
    api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refused(prepared, "kubernetes.context=there").startswith("c.yaml: kubernetes: no kubeconfig can be used (")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "set KUBECONFIG, or kubernetes.context to one of kubectl config get-contexts" in refused(prepared)


def test_each_fault_of_the_api_server_is_one_line_with_its_fix(
    api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.quota = 0
    assert "exceeded quota: team" in (line := refused(prepared)) and "wait until other jobs have ended" in line
    api.quota = 100
    api.forbidden = {("create", "rayjobs")}
    assert 'User "ann" cannot create resource "rayjobs"' in (line := refused(prepared)) and "ask for a role" in line
    api.forbidden = set()
    assert 'namespaces "other" not found; correct kubernetes.namespace' in refused(
        prepared, "kubernetes.namespace=other"
    )
    api.has_crd = False
    assert refused(prepared) == (
        "c.yaml: the cluster has no RayJobs (404 page not found); install KubeRay 1.7 or later"
    )
    use(monkeypatch, tmp_path, api.url, token="wrong")
    assert refused(prepared).startswith(f"c.yaml: the API server {api.url} refuses the credentials; renew those of")
    nothing = f"http://127.0.0.1:{free_port()}"
    use(monkeypatch, tmp_path, nothing)
    assert refused(prepared).startswith(f"c.yaml: the API server {nothing} does not answer (")


@pytest.mark.skipif(not SCHEMA.exists(), reason=f"{SCHEMA} is not there")
def test_a_wrong_field_is_named(api: ApiServer, prepared: JobRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    create = kubernetes_jobs.rayjob

    def with_spec(**fields: Any) -> Callable[..., dict[str, Any]]:
        return lambda *arguments: {**(job := create(*arguments)), "spec": {**job["spec"], **fields}}

    monkeypatch.setattr(kubernetes_jobs, "rayjob", with_spec(backoffLimit="three"))
    assert "the cluster refuses the job: spec.backoffLimit: 'three' is not of type 'integer'" in refused(prepared)
    monkeypatch.setattr(kubernetes_jobs, "rayjob", with_spec(newer=1))
    assert 'unknown field "spec.newer": the cluster\'s KubeRay is too old; install' in refused(prepared)


# The command


def test_render_prints_yaml_without_an_api_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    command = ["submit", "configs/quickstart.yaml", "root=s3://bucket/runs", "--render", "--cluster"]
    assert main([*command, "configs/clusters/kubernetes.yaml"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["kind"] == "RayJob" and printed.err == ""
    assert main([*command, "configs/clusters/local.yaml"]) == 2
    line = "cloze: --render: requires --cluster with the file of a Kubernetes cluster\n"
    assert capsys.readouterr() == ("", line)
