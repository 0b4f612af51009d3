"""What KubeRay 1.7 refuses: the schema of its CRD, where it is beside the checkout, and the checks of its operator."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import yaml

from tests.paths import SHARED

SCHEMA = SHARED / "k8s/rayjob-v1.schema.json"
Json = dict[str, Any]


@cache
def crd_schema() -> Json | None:
    return json.loads(SCHEMA.read_text()) if SCHEMA.exists() else None


def schema_errors(rayjob: Json) -> list[tuple[str, str]]:
    """(field, message) for each value that the CRD's schema does not accept; none where the schema is not there."""
    errors = jsonschema.Draft202012Validator(crd_schema() or {}).iter_errors(rayjob)
    return [(".".join(map(str, error.absolute_path)), error.message[:200]) for error in errors]


def unknown_fields(rayjob: Json) -> list[str]:
    """The fields that the CRD's schema does not have, which the API server drops or, asked to be strict, refuses."""
    return list(_unknown(crd_schema() or {}, rayjob, ""))


def _unknown(schema: Json, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(schema.get("items", {}), item, f"{path}[{index}]")
    elif isinstance(value, dict) and "properties" in schema:
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{path}.{key}".removeprefix(".")
            yield from _unknown(schema["properties"].get(key, {}), item, f"{path}.{key}")


def refusals(rayjob: Json) -> list[str]:
    """Why the operator refuses the RayJob; empty for one that it accepts."""
    return [*_name(rayjob["metadata"]["name"]), *_job(rayjob["spec"]), *_cluster(rayjob["spec"]["rayClusterSpec"])]


def kueue_refusals(rayjob: Json) -> list[str]:
    """Why Kueue refuses a RayJob with a queue."""
    if "kueue.x-k8s.io/queue-name" not in rayjob["metadata"].get("labels", {}):
        return []
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    pod_sets = ["head", *(group["groupName"] for group in cluster["workerGroupSpecs"])]
    pod_sets += ["submitter"] if spec["submissionMode"] == "K8sJobMode" else []
    checks = {
        "a kueue managed job should delete the cluster after finishing": not spec.get("shutdownAfterJobFinishes"),
        "a kueue managed job should not use autoscaling": cluster.get("enableInTreeAutoscaling"),
        "a Workload has at most 8 pod sets": len(pod_sets) > 8,
        "the names of pod sets differ": len(set(pod_sets)) < len(pod_sets),
    }
    return [message for message, refused in checks.items() if refused]


def _name(name: str) -> Iterator[str]:
    if len(name) > 47:
        yield "RayJob name should be no more than 47 characters"
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "RayJob name should be a valid DNS1035 label"


def _job(spec: Json) -> Iterator[str]:
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shutdown:
        yield "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    if spec.get("ttlSecondsAfterFinished", 0) and not shutdown:
        yield "a RayJob with shutdownAfterJobFinishes set to false cannot have ttlSecondsAfterFinished"
    if shutdown and "deletionRules" in spec.get("deletionStrategy", {}):
        yield "shutdownAfterJobFinishes and deletionStrategy.deletionRules are mutually exclusive"
    if spec.get("submissionMode") == "SidecarMode":
        yield from (
            f"SidecarMode doesn't support {key}" for key in ("submitterPodTemplate", "submitterConfig") if key in spec
        )
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0):
        yield "backoffLimit is incompatible with InteractiveMode"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds must be a positive integer"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML") or "{}"), dict):
        yield "runtimeEnvYAML is not a mapping"


def _cluster(cluster: Json) -> Iterator[str]:
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    for group in groups:
        params = group.get("rayStartParams", {})
        if group.get("resources") and params.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield "resource fields should not be set in both rayStartParams and resources"
        if "labels" in params:
            yield "rayStartParams['labels'] is not supported"
        for key, value in group.get("labels", {}).items():
            if not re.fullmatch(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", value):
                yield f"invalid label value for {key}"
        if cluster.get("enableInTreeAutoscaling") and group.get("suspend"):
            yield "a worker group cannot be suspended with autoscaling enabled"
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        is_v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
        if cluster.get("enableInTreeAutoscaling") and is_v2 and policy != "Never":
            yield "restartPolicy should be Never or unset when using autoscaler V2"
    auth, version = cluster.get("authOptions", {}), cluster.get("rayVersion", "")
    if auth.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is not supported in a RayJob"
    if auth.get("mode") == "token" and tuple(map(int, version.split(".") if version else ())) < (2, 52):
        yield "authOptions.mode is 'token' but the minimum Ray version is 2.52.0"
