"""A run -> a RayJob on Kubernetes: submit it, list, follow and stop such jobs.

`stop` deletes the RayJob: KubeRay sends the run SIGTERM, and the Ray cluster ends when the run has saved. A stopped job
is therefore not in the list; the run's own files stay under its root, with the record of how the job ended.
"""

import hashlib
import io
import itertools
import json
import shlex
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import CONFIG, job_environment, stage_files
from cloze.infra.launch.jobs import (
    LOST_SECONDS,
    JobInfo,
    JobRequest,
    JobState,
    Unreachable,
    digest_of,
    submission_time,
    unknown_job,
)
from cloze.infra.launch.kubernetes_api import AlreadyExists, Json, KubernetesApi, NotFound
from cloze.infra.launch.pod_problems import pod_problem
from cloze.infra.launch.rayjob import DIGEST, SUBMITTER, Submission, as_yaml, job_name, rayjob
from cloze.infra.launch.rayjob_status import (
    forgotten_info,
    is_deleted,
    is_expired,
    job_info,
    job_state,
    recorded_info,
    vanished_info,
)
from cloze.infra.launch.supervisor import arguments
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.software_versions import GIT_COMMIT
from cloze.pipeline.core.storage import Location

_PENDING_SECONDS = 10  # until a pending job is read again if nothing changes
_RECONNECT_SECONDS = 1  # until the log of a running job, whose connection was cut, is read again
_MARGIN_SECONDS = 5  # by which clocks may differ


def render(request: JobRequest, cluster: ClusterConfig) -> str:
    """The YAML of the RayJob that `submit` creates first; sends nothing."""
    submission, _ = prepare(request, cluster)
    upload = f"# Before it creates this object, cloze submit writes {submission.runtime_env['working_dir']}\n"
    name, submission = job_name(submission.run, submission.digest, 1), replace(submission, submitted=submission_time())
    return upload + as_yaml(rayjob(name, submission, cluster))


def prepare(request: JobRequest, cluster: ClusterConfig) -> tuple[Submission, bytes]:
    """A run as it is submitted, and the archive of its files."""
    assert cluster.kubernetes
    runtime_env = job_environment(cluster)
    # Set in the pods: Ray itself needs some to read the archive, and KubeRay's shell would expand a $ in the others.
    env_vars = runtime_env.pop("env_vars")
    if cluster.kubernetes.code == "image":
        del env_vars[GIT_COMMIT]  # this machine's; the image has its own code
    with tempfile.TemporaryDirectory(prefix="cloze-") as folder:
        stage_files(Path(folder), request.config, cluster, request.until)
        root = json.loads((Path(folder) / CONFIG).read_text())["root"]
        archive, files_digest = _archive(Path(folder))
    run = [cluster.interpreter, "-m", "cloze.infra.cli", "run", CONFIG, *request.options]
    entrypoint = shlex.join([cluster.interpreter, *arguments(root=root), *run])
    # Without the commit, which also changes with a file that is not sent.
    sent_variables = {name: value for name, value in env_vars.items() if name != GIT_COMMIT}
    described = cluster.model_dump(mode="json", exclude={"kubernetes": {"context"}})  # this machine's name for it
    digest = digest_of([entrypoint, sent_variables, runtime_env, files_digest, described])[:12]
    runtime_env["working_dir"] = str(Location(root) / "jobs" / f"{request.config.name}-{digest}.zip")
    return Submission(request.config.name, root, digest, entrypoint, env_vars, runtime_env), archive


def _archive(folder: Path) -> tuple[bytes, str]:
    """A zip file of the folder, below one folder, which Ray removes; and the digest of its files."""
    digest, buffer = hashlib.sha256(), io.BytesIO()
    # Not strict: the times of some files are before 1980, with which the format begins.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            digest.update(f"\n{name} ".encode() + hashlib.sha256(file.read_bytes()).digest())
            archive.write(file, Path("job") / name)
    return buffer.getvalue(), digest.hexdigest()


class UnknownJob(UserError):
    """The namespace has no such job."""


class KubernetesJobs:
    """The jobs of one namespace: a `Backend`. `file` is the cluster's file, for errors."""

    def __init__(self, cluster: ClusterConfig, file: str):
        assert cluster.kubernetes
        self._cluster, self._config = cluster, cluster.kubernetes
        self._api = KubernetesApi(cluster.kubernetes, file)
        self._seen: dict[str, Json] = {}  # as each job was last read: it may no longer exist

    def submit(self, request: JobRequest) -> tuple[str, bool]:
        """Create the run's RayJob, unless one of the same run, files and cluster is running."""
        submission, archive = prepare(request, self._cluster)
        known = self._api.rayjobs(DIGEST)
        self._delete_expired(known)
        existing = [job for job in known if job["metadata"]["labels"][DIGEST] == submission.digest]
        if running := [job for job in existing if not job_state(job).is_terminal and not is_deleted(job)]:
            return running[0]["metadata"]["name"], False
        place = Location(submission.runtime_env["working_dir"])
        if not place.exists():
            place.write_bytes(archive)
        names = {job["metadata"]["name"] for job in existing}
        attempts = (job_name(submission.run, submission.digest, attempt) for attempt in itertools.count(1))
        name = next(attempt for attempt in attempts if attempt not in names)
        try:
            self._api.create(rayjob(name, replace(submission, submitted=submission_time()), self._cluster))
        except AlreadyExists:  # submitted twice at the same moment
            return name, False
        return name, True

    def jobs(self) -> list[JobInfo]:
        jobs = sorted(self._api.rayjobs(DIGEST), key=lambda job: job["metadata"]["creationTimestamp"], reverse=True)
        return [self._read(job) for job in jobs if not is_expired(job)]

    def info(self, job: str) -> JobInfo:
        """As the job is, or, if it has been deleted, as it has ended.

        That is known of one that this object has read before, and where the cluster's file names the root.
        """
        try:
            found = self._get(job)
        except UnknownJob:
            if job in self._seen:
                return vanished_info(self._seen[job], self._cluster)
            if info := forgotten_info(job, self._cluster):
                return info
            raise
        return self._read(found, self._problem(found))

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """The log of each attempt's submitter, which follows the log of the Ray job. Reports why a job is pending."""
        current, log, reason = self._get(job), _Log(self._api), ""
        lost_since: float | None = None
        while True:
            try:
                ended = job_state(current).is_terminal  # before the log is read, so that none of it is missing
                yield from log.lines(job, follow=follow and not ended)
                if ended or not follow:
                    return
                info = job_info(current, self._cluster, self._problem(current))
                if info.state is JobState.PENDING and info.reason != reason:
                    reason = info.reason
                    print(f"cloze: {job} is pending: {reason}", file=sys.stderr, flush=True)
                seconds = _PENDING_SECONDS if info.state is JobState.PENDING else _RECONNECT_SECONDS
                kind, current = self._api.wait_for_change(current, seconds) or ("", self._api.get(job))
                self._seen[job], lost_since = current, None
                if kind == "DELETED":
                    return
            except NotFound:
                return
            except Unreachable:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_SECONDS:
                    raise
                time.sleep(2)

    def stop(self, job: str) -> None:
        current = self._get(job)
        if not job_state(current).is_terminal and not is_deleted(current):
            self._api.delete(job)

    def _get(self, job: str) -> Json:
        try:
            self._seen[job] = found = self._api.get(job)
            return found
        except NotFound:
            names = [known["metadata"]["name"] for known in self._api.rayjobs(DIGEST)]
            place = f"the namespace {self._config.namespace} of {self._cluster.name} (a stopped one is deleted)"
            raise UnknownJob(str(unknown_job(job, names, place))) from None

    def _read(self, job: Json, problem: str = "") -> JobInfo:
        """The job as it is; as KubeRay has it, if its root cannot be read here."""
        try:
            return recorded_info(job, self._cluster, problem)
        except (OSError, UserError):
            return job_info(job, self._cluster, problem)

    def _delete_expired(self, jobs: list[Json]) -> None:
        """Delete those that ended longer ago than the ttl_seconds with which they were submitted."""
        for job in jobs:
            if is_expired(job) and not is_deleted(job):
                self._api.delete(job["metadata"]["name"])

    def _problem(self, job: Json) -> str:
        """Why the job's pods do not start, or how they were lost; "" if nothing is known, or may be read."""
        try:
            return "" if job_state(job).is_terminal else self._shown_problem(job)
        except Unreachable:
            raise
        except UserError:  # without these permissions the job itself can be followed
            return ""

    def _shown_problem(self, job: Json) -> str:
        name, cluster = job["metadata"]["name"], job.get("status", {}).get("rayClusterName")
        pods = [*(self._api.pods(f"ray.io/cluster={cluster}") if cluster else []), *self._api.pods(f"job-name={name}")]
        if problem := next(filter(None, map(pod_problem, reversed(pods))), ""):
            return problem
        warnings = [message for one in (name, cluster) if one for message in self._api.warnings(one)]
        return " ".join(warnings[-1].split())[:300] if warnings else ""


class _Log:
    """What has been read of the logs of a job's submitter pods: one pod for each attempt, and each time one is lost."""

    def __init__(self, api: KubernetesApi):
        self._api = api
        self._last: dict[str, tuple[str, float]] = {}  # pod -> the time of its last line, and when it was read

    def lines(self, job: str, *, follow: bool) -> Iterator[str]:
        for pod in self._api.pods(f"job-name={job}"):
            name = pod["metadata"]["name"]
            since = None
            if name in self._last:
                since = int(time.time() - self._last[name][1]) + _MARGIN_SECONDS
            try:
                for timestamp, text in self._api.log(name, SUBMITTER, follow=follow, since_seconds=since):
                    if name not in self._last or timestamp > self._last[name][0]:
                        self._last[name] = (timestamp, time.time())
                        yield f"{text}\n"
            except NotFound:  # has not started, or no longer exists
                continue
