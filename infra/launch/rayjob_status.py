"""A RayJob -> the state of its job: as KubeRay has it, and as the run has recorded its end under the root.

The record (job_record.py) tells the ends apart that KubeRay takes for a success, and outlasts the RayJob.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime

from cloze.infra.job_record import job_file, read_record
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import JobInfo, JobState
from cloze.infra.launch.kubernetes_api import Json
from cloze.infra.launch.rayjob import ROOT, RUN, SUBMITTED, TTL
from cloze.infra.launch.supervisor import FINAL
from cloze.pipeline.core.storage import Location


def job_info(job: Json, cluster: ClusterConfig, problem: str = "") -> JobInfo:
    """The job as KubeRay has it. `problem`: of its pods."""
    metadata, status, state = job["metadata"], job.get("status", {}), job_state(job)
    ray_times = status.get("rayJobInfo") or {}
    return JobInfo(
        id=metadata["name"],
        run=metadata.get("annotations", {}).get(RUN, ""),
        root=metadata.get("annotations", {}).get(ROOT, ""),
        state=state,
        reason=_reason(job, state, cluster, problem),
        submitted=_time(metadata["creationTimestamp"]),
        started=_time(ray_times.get("startTime")),
        ended=_time(status.get("endTime")) if state.is_terminal else None,
        exit_status=_exit_status(status, state),
    )


def recorded_info(job: Json, cluster: ClusterConfig, problem: str = "") -> JobInfo:
    """The same, but a success for KubeRay, which is not to repeat the run, is what the run has recorded."""
    info = job_info(job, cluster, problem)
    if info.state is JobState.SUCCEEDED and (status := _recorded_status(job)) and status in FINAL:
        if is_deleted(job):
            return _at_end(info, status)
        return replace(info, state=JobState.FAILED, reason=_ended_with(status), exit_status=status)
    return info


def vanished_info(job: Json, cluster: ClusterConfig) -> JobInfo:
    """A RayJob that no longer exists, as it was last or has recorded since; stopped if it had not ended."""
    last = recorded_info(job, cluster)
    if last.state.is_terminal:
        return last
    status = _recorded_status(job)
    return _at_end(last, None if status == 1 and is_deleted(job) else status)


def forgotten_info(job: str, cluster: ClusterConfig) -> JobInfo | None:
    """A job that no longer exists, as recorded under the root that the cluster's file names; None if its end is not."""
    roots = [value for key, _, value in (override.partition("=") for override in cluster.overrides) if key == "root"]
    record = read_record(job_file(Location(roots[-1]), job)) if roots else None
    if record is None or record.ended is None:
        return None
    info = JobInfo(job, job.rsplit("-", 2)[0], roots[-1], JobState.RUNNING, submitted=_time(record.submitted))
    return _at_end(info, record.exit_status)


def _at_end(info: JobInfo, recorded: int | None) -> JobInfo:
    """A job that has ended with this exit status of its run, or was ended without one."""
    if recorded == 0:
        return replace(info, state=JobState.SUCCEEDED, reason="", exit_status=0)
    if recorded in (1, 2):
        return replace(info, state=JobState.FAILED, reason=_ended_with(recorded), exit_status=recorded)
    return replace(info, state=JobState.STOPPED, reason="was stopped")


def _reason(job: Json, state: JobState, cluster: ClusterConfig, problem: str) -> str:
    status = job.get("status", {})
    if state is JobState.FAILED:
        return _failure(status, cluster)
    if is_deleted(job):
        return "is being stopped: it saves, then its cluster ends"
    if job["spec"].get("suspend"):
        return f"waits until the queue {cluster.kubernetes and cluster.kubernetes.queue} admits it"
    if status.get("jobDeploymentStatus") == "Retrying":
        return f"attempt {status.get('failed')} of {cluster.retries + 1} has failed; a new cluster is created"
    if problem or state is not JobState.PENDING:
        return problem
    if not status.get("jobDeploymentStatus"):
        return "KubeRay has not started it yet; its operator must be running"
    return "waits until its Ray cluster is ready"


def job_state(job: Json) -> JobState:
    status = job.get("status", {})
    ray = status.get("jobStatus", "")
    match status.get("jobDeploymentStatus", ""):
        case "Complete" if ray == "STOPPED" and is_deleted(job):
            return JobState.STOPPED
        case "Complete":
            return JobState.SUCCEEDED if ray == "SUCCEEDED" else JobState.FAILED
        case "Failed" | "ValidationFailed":
            return JobState.FAILED
        case "Running" if ray in ("RUNNING", "SUCCEEDED", "FAILED", "STOPPED"):
            return JobState.RUNNING
    return JobState.PENDING


def is_deleted(job: Json) -> bool:
    return "deletionTimestamp" in job["metadata"]


def is_expired(job: Json) -> bool:
    """Whether it has ended longer ago than the ttl_seconds with which it was submitted."""
    ttl = job["metadata"].get("annotations", {}).get(TTL)
    ended = _time(job.get("status", {}).get("endTime"))
    if ttl is None or ended is None or not job_state(job).is_terminal:
        return False
    return (datetime.now(UTC) - ended).total_seconds() > int(ttl)


def _failure(status: Json, cluster: ClusterConfig) -> str:
    """Why KubeRay has given the job up."""
    assert cluster.kubernetes
    if status.get("jobStatus") == "STOPPED" and status.get("jobDeploymentStatus") == "Complete":
        return "was stopped inside its cluster, as its head does before it ends; the same command continues"
    message = " ".join(status.get("message", "").split())[:300]
    match status.get("reason", ""):
        case "DeadlineExceeded":
            return f"has taken longer than deadline_seconds ({cluster.deadline_seconds})"
        case "PreRunningDeadlineExceeded":
            seconds = cluster.kubernetes.pending_deadline_seconds
            return f"its Ray cluster was not ready within kubernetes.pending_deadline_seconds ({seconds})"
        case "AppFailed" if code := re.search(r"exit code (-?\d+)", message):
            return _ended_with(int(code[1]))
    return ": ".join(filter(None, (status.get("reason"), message))) or "its reason is not known"


def _ended_with(exit_status: int) -> str:
    return f"cloze run ended with status {exit_status}; its log says why"


def _recorded_status(job: Json) -> int | None:
    """The exit status of the run's last attempt, as recorded under the root; None if it has recorded none."""
    annotations, name = job["metadata"].get("annotations", {}), job["metadata"]["name"]
    submitted = annotations.get(SUBMITTED)
    record = read_record(job_file(Location(annotations[ROOT]), name)) if submitted else None
    return record.exit_status if record and record.submitted == submitted else None


def _exit_status(status: Json, state: JobState) -> int | None:
    if state is JobState.SUCCEEDED:
        return 0
    code = re.search(r"exit code (-?\d+)", status.get("message", ""))
    if state is not JobState.FAILED or not code:
        return None
    return int(code[1]) if int(code[1]) > 0 else 1


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
