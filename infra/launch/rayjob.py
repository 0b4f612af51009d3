"""A run and a cluster's configuration -> the RayJob of KubeRay 1.7 that creates a Ray cluster, executes the run on it
and deletes the cluster.
"""

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from cloze.infra.job_record import JOB, JOB_SUBMITTED
from cloze.infra.launch.cluster_config import ClusterConfig, NodeType
from cloze.infra.launch.kubernetes_config import HeadConfig, KubernetesConfig, Toleration

Json = dict[str, Any]

RUN = "cloze/run"  # label and annotation: the run's name
ROOT = "cloze/root"  # annotation
SUBMITTED = "cloze/submitted"  # annotation: JOB_SUBMITTED of its pods
TTL = "cloze/ttl-seconds"  # annotation: from the job's end to its deletion
DIGEST = "cloze/digest"  # label: of what is submitted; equal for all attempts
SUBMITTER = "ray-job-submitter"  # the container that prints the job's log, by the name that KubeRay gives it
QUEUE = "kueue.x-k8s.io/queue-name"

_MAX_NAME = 47  # characters of a RayJob's name, to which KubeRay appends names of what it creates
_GRACE_SECONDS = 120  # from a pod's end to its SIGKILL: what AWS gives a spot machine
_DRAIN_SECONDS = 100  # of these for training to save
_MIN_TTL_SECONDS = 60  # in which those who wait for the job see its end
_SHM_FRACTION = 0.4  # Ray's object store takes 0.3 of the memory
_HOME = "/home/cloze"
_USER = 1000
_DASHBOARD = "http://127.0.0.1:8265"
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


@dataclass(frozen=True)
class Submission:
    """A run that is ready to be sent: its files are in an archive on S3."""

    run: str
    root: str
    digest: str
    entrypoint: str
    env_vars: dict[str, str]
    runtime_env: dict[str, Any]  # its working_dir is the s3:// path of the archive
    submitted: str = ""  # when: JOB_SUBMITTED


def job_name(run: str, digest: str, attempt: int) -> str:
    """RUN-DIGEST-ATTEMPT as the name of a RayJob: a DNS-1035 label of at most 47 characters."""
    end = f"-{digest}-{attempt}"
    slug = re.sub("[^a-z0-9]+", "-", run.lower()).strip("-")
    return ("" if slug[0].isalpha() else "r-") + slug[: _MAX_NAME - len(end) - 2].rstrip("-") + end


def rayjob(name: str, submission: Submission, cluster: ClusterConfig) -> Json:
    """The RayJob object. `cluster` has `kubernetes`."""
    kubernetes = _kubernetes(cluster)
    labels = {RUN: _label(submission.run), DIGEST: submission.digest}
    spec: Json = {
        "jobId": name,
        "entrypoint": submission.entrypoint,
        "runtimeEnvYAML": yaml.safe_dump(submission.runtime_env, sort_keys=False),
        "submissionMode": "K8sJobMode",
        "backoffLimit": cluster.retries,
        "preRunningDeadlineSeconds": kubernetes.pending_deadline_seconds,
        # At each end, at once: its machines cost money. KubeRay's deletion rules have no condition for a stopped job.
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 0,
    }
    if cluster.deadline_seconds:
        spec["activeDeadlineSeconds"] = cluster.deadline_seconds
    spec["submitterPodTemplate"] = _submitter(cluster, labels)
    spec["rayClusterSpec"] = _ray_cluster(name, submission, cluster, labels)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": kubernetes.namespace,
            "labels": labels | ({QUEUE: kubernetes.queue} if kubernetes.queue else {}),
            "annotations": {
                RUN: submission.run,
                ROOT: submission.root,
                SUBMITTED: submission.submitted,
                **_ttl(cluster),
            },
        },
        "spec": spec,
    }


def _ttl(cluster: ClusterConfig) -> dict[str, str]:
    """KubeRay's own ttl would keep the cluster, not the RayJob: a later submission deletes the ended job."""
    return {} if cluster.ttl_seconds is None else {TTL: str(max(cluster.ttl_seconds, _MIN_TTL_SECONDS))}


def as_yaml(job: Json) -> str:
    """The object as YAML that kubectl, which reads YAML 1.1, takes for the same."""
    return yaml.dump(job, Dumper=_Dumper, sort_keys=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts in full and text of several lines as a block; quotes y and n, booleans for kubectl."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _kubernetes(cluster: ClusterConfig) -> KubernetesConfig:
    assert cluster.kubernetes
    return cluster.kubernetes


def _label(text: str) -> str:
    """The text as the value of a label: at most 63 characters, the first and the last alphanumeric."""
    return text[:63].strip("-_")


def _ray_cluster(name: str, submission: Submission, cluster: ClusterConfig, labels: dict[str, str]) -> Json:
    autoscaler = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "securityContext": _CONTAINER_SECURITY,
            "env": _env({"HOME": _HOME}),
            "volumeMounts": _mounts(shm=False),
        },
    }
    env_vars = {
        "HOME": _HOME,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(_DRAIN_SECONDS),
        JOB: name,
        JOB_SUBMITTED: submission.submitted,
        **submission.env_vars,
        "RAY_JOB_STOP_WAIT_TIME_S": str(_DRAIN_SECONDS),  # a pod ends earlier than a job may elsewhere
    }
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": cluster.auth},
        **(autoscaler if _scales(cluster) else {}),
        "headGroupSpec": _head(name, cluster, env_vars, labels),
        "workerGroupSpecs": [_workers(kind, cluster, env_vars, labels) for kind in cluster.node_types],
    }


def _scales(cluster: ClusterConfig) -> bool:
    return any(kind.min_nodes < kind.max_nodes for kind in cluster.node_types)


def _head(name: str, cluster: ClusterConfig, env_vars: dict[str, str], labels: dict[str, str]) -> Json:
    """The head has no CPUs for Ray's tasks: they must not take memory from Ray's services and the run's process.

    Before it ends, for whatever reason, its hook stops the job as `ray job stop` does, and waits until it has saved.
    """
    head = _kubernetes(cluster).head
    # Repeated, the command sends no second signal, which would end the job before it has saved.
    stop = f"timeout {_DRAIN_SECONDS} ray job stop --address {_DASHBOARD} {shlex.quote(name)} || true"
    container = {
        "name": "ray-head",
        "ports": [
            {"name": port, "containerPort": number}
            for port, number in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001))
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", stop]}}},
        **_ray_container(cluster, env_vars | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}),
        "resources": _resources(head.cpus, head.memory_gb),
    }
    return {
        "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
        "template": _pod(
            cluster, container, head, labels, shm_gb=_shm_gb(cluster, head.memory_gb), api_token=_scales(cluster)
        ),
    }


def _workers(kind: NodeType, cluster: ClusterConfig, env_vars: dict[str, str], labels: dict[str, str]) -> Json:
    container = {
        "name": "ray-worker",
        **_ray_container(cluster, env_vars),
        "resources": _resources(kind.cpus, kind.memory_gb, kind.gpus),
    }
    return {
        "groupName": kind.name,
        "replicas": kind.min_nodes,
        "minReplicas": kind.min_nodes,
        "maxReplicas": kind.max_nodes,
        "rayStartParams": {},
        "template": _pod(cluster, container, kind, labels, shm_gb=_shm_gb(cluster, kind.memory_gb)),
    }


def _submitter(cluster: ClusterConfig, labels: dict[str, str]) -> Json:
    """The pod that submits the job to the Ray cluster and prints its log. KubeRay adds its command."""
    container = {
        "name": SUBMITTER,
        **_container(cluster, {"HOME": _HOME, "RAY_USAGE_STATS_ENABLED": "0"}),
        "volumeMounts": _mounts(shm=False),
        "resources": {
            "requests": {"cpu": "500m", "memory": "500M"},
            "limits": {"cpu": "1", "memory": "1000M"},
        },
    }
    return _pod(cluster, container, _kubernetes(cluster).head.model_copy(update={"instance_type": None}), labels)


def _ray_container(cluster: ClusterConfig, env_vars: dict[str, str]) -> Json:
    secrets = [{"secretRef": {"name": name}} for name in _kubernetes(cluster).env_secrets]
    return {
        **_container(cluster, env_vars),
        **({"envFrom": secrets} if secrets else {}),
        "volumeMounts": _mounts(shm=True),
    }


def _container(cluster: ClusterConfig, env_vars: dict[str, str]) -> Json:
    return {
        "image": _kubernetes(cluster).image,
        "imagePullPolicy": "IfNotPresent",
        "env": _env(env_vars),
        "securityContext": _CONTAINER_SECURITY,
    }


def _env(env_vars: dict[str, str]) -> list[Json]:
    # Kubernetes replaces $(NAME) and $$ in values.
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in env_vars.items()]


def _mounts(*, shm: bool) -> list[Json]:
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": _HOME}]
    return [*mounts, {"name": "shared-mem", "mountPath": "/dev/shm"}] if shm else mounts


def _pod(
    cluster: ClusterConfig,
    container: Json,
    machine: NodeType | HeadConfig,
    labels: dict[str, str],
    *,
    shm_gb: float | None = None,
    api_token: bool = False,
) -> Json:
    """`api_token`: whether the pod gets its service account's token of the API server, which Ray's autoscaler needs."""
    kubernetes = _kubernetes(cluster)
    volumes: list[Json] = [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]
    if shm_gb:
        volumes.append({"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": _megabytes(shm_gb)}})
    selector = _node_selector(cluster, machine)
    tolerations = _tolerations(machine)
    pull_secrets = [{"name": name} for name in kubernetes.image_pull_secrets]
    account = kubernetes.service_account
    spec: Json = {
        "restartPolicy": "Never",  # as the autoscaler v2 requires
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        **({"serviceAccountName": account} if account else {}),
        "automountServiceAccountToken": api_token,
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
        **({"nodeSelector": selector} if selector else {}),
        **({"tolerations": tolerations} if tolerations else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _node_selector(cluster: ClusterConfig, machine: NodeType | HeadConfig) -> dict[str, str]:
    selector = {"node.kubernetes.io/instance-type": machine.instance_type} if machine.instance_type else {}
    if any(kind.spot for kind in cluster.node_types):
        spot = isinstance(machine, NodeType) and machine.spot
        selector[_kubernetes(cluster).capacity_label] = "spot" if spot else "on-demand"
    return selector | machine.node_selector


def _tolerations(machine: NodeType | HeadConfig) -> list[Json]:
    tolerations = machine.tolerations
    if isinstance(machine, NodeType) and machine.gpus:
        tolerations = (Toleration(key="nvidia.com/gpu"), *tolerations)
    return [
        {"key": one.key, "effect": one.effect}
        | ({"operator": "Exists"} if one.value is None else {"operator": "Equal", "value": one.value})
        for one in tolerations
    ]


def _resources(cpus: int, memory_gb: float, gpus: int = 0) -> Json:
    """Requests equal to limits: a pod with less memory than it may use is evicted first."""
    amounts = {"cpu": str(cpus), "memory": _megabytes(memory_gb)} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": amounts, "limits": amounts}


def _shm_gb(cluster: ClusterConfig, memory_gb: float) -> float:
    return _kubernetes(cluster).shm_gb or memory_gb * _SHM_FRACTION


def _megabytes(gigabytes: float) -> str:
    return f"{round(gigabytes * 1000)}M"
