"""infra/kubernetes/overlays -> Kubernetes objects, and what Kubernetes' schema and our rules refuse of objects."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.infra.kubernetes.access_rules import access_problems
from tests.infra.kubernetes.network_rules import network_problems
from tests.paths import REPOSITORY

Json = dict[str, Any]

FOLDER = REPOSITORY / "infra/kubernetes"
VERSION = "1.35"  # of Kubernetes
HEAD = {"ray.io/cluster": "smoke", "ray.io/node-type": "head"}  # labels that KubeRay gives to a head
_ON_DEMAND = [("cloze/pool", "head"), ("cloze/capacity-type", "on-demand"), ("karpenter.sh/capacity-type", "on-demand")]
_USERS_SECRETS = {"dagster-login"}  # created by hand, as its values are in no repository


@cache
def _built(overlay: str) -> str:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def built(overlay: str) -> list[Json]:
    """The objects of an overlay, as `kubectl kustomize` builds them."""
    return list(yaml.safe_load_all(_built(overlay)))


def find(objects: list[Json], kind: str, name: str) -> Json:
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


def problems(objects: list[Json]) -> list[str]:
    """What breaks a rule of ours; empty for the manifests of the repository."""
    return [
        *(f"{name}: {problem}" for name, pod in pods(objects) for problem in pod_problems(pod)),
        *(f"{name}: {problem}" for name, pod in pods(objects) for problem in _server_problems(pod)),
        *_references(objects),
        *network_problems(objects),
        *access_problems(objects),
        *_limits(objects),
        *_disruption(objects),
        *_volumes(objects),
    ]


def schema_problems(objects: list[Json]) -> list[str]:
    """Kind, name and the first message of each object that Kubernetes' schema refuses."""
    found = []
    for one in objects:
        try:
            kubernetes_validate.validate(one, VERSION, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.InvalidSchemaError) as error:
            found.append(f"{one['kind']} {one['metadata']['name']}: {str(error).splitlines()[0]}")
    return found


def pods(objects: list[Json]) -> list[tuple[str, Json]]:
    """(name, pod spec) of each object that has a pod template."""
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"])
        for one in objects
        if "template" in one.get("spec", {})
    ]


def rayjob_pods(job: Json) -> list[tuple[str, Json]]:
    """(name, pod template) of a RayJob: head, groups of workers, submitter."""
    ray = job["spec"]["rayClusterSpec"]
    groups = [(group["groupName"], group["template"]) for group in ray["workerGroupSpecs"]]
    return [("head", ray["headGroupSpec"]["template"]), *groups, ("submitter", job["spec"]["submitterPodTemplate"])]


def rayjob_problems(job: Json, objects: list[Json]) -> list[str]:
    """Why the namespace of `objects` would not run the RayJob, or not as safely as it should."""
    found = [f"{name}: {problem}" for name, template in rayjob_pods(job) for problem in pod_problems(template["spec"])]
    policy = find(objects, "NetworkPolicy", "ray")["spec"]["podSelector"]["matchExpressions"]
    for name, template in rayjob_pods(job):
        labels = template["metadata"]["labels"]
        if not all(one["operator"] == "Exists" and one["key"] in labels for one in policy):
            found.append(f"{name}: the network policy ray does not select it")
        account = template["spec"].get("serviceAccountName")
        if account not in _names(objects, "ServiceAccount"):
            found.append(f"{name}: its service account is {account}")
        # The head's is for the autoscaler of its Ray cluster.
        if name != "head" and template["spec"].get("automountServiceAccountToken") is not False:
            found.append(f"{name}: has a token of the API server, which it does not need")
    selector = rayjob_pods(job)[0][1]["spec"].get("nodeSelector", {})
    if not any(selector.get(key) == value for key, value in _ON_DEMAND):
        found.append(f"head: may run on a spot machine ({selector})")
    return found


def pod_problems(pod: Json) -> Iterator[str]:
    """What breaks the restricted pod security standard or our own rules, which are stricter."""
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the machine's namespaces"
    if any(not volume.keys() & {"name"} or "hostPath" in volume for volume in pod.get("volumes", [])):
        yield "mounts a path of the machine"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        yield from (f"{container['name']}: {problem}" for problem in _container(container))


def _container(container: Json) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("runAsUser") == 0 or security.get("runAsNonRoot") is False:
        yield "may run as root"
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if security.get("seccompProfile", {"type": "RuntimeDefault"})["type"] != "RuntimeDefault":
        yield "no seccomp profile"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "opens a port of the machine"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "can write to its root file system"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= resources.get(kind, {}).keys():
            yield f"has no {kind}"
    name, _, tag = container["image"].rpartition("/")[2].partition(":")
    if tag in ("", "latest") and "@" not in name:
        yield f"its image {container['image']} changes"


def _server_problems(pod: Json) -> Iterator[str]:
    """Containers that run for ever are asked whether they still work."""
    return (f"{one['name']}: has no livenessProbe" for one in pod["containers"] if "livenessProbe" not in one)


def _names(objects: list[Json], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in objects if one["kind"] == kind}


def _references(objects: list[Json]) -> Iterator[str]:
    """Names in pods of objects that nobody creates."""
    maps, accounts = _names(objects, "ConfigMap"), _names(objects, "ServiceAccount")
    for name, pod in pods(objects):
        sources = [source for one in pod["containers"] for source in one.get("envFrom", [])]
        used = {source["configMapRef"]["name"] for source in sources if "configMapRef" in source}
        used |= {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
        secrets = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
        if missing := sorted((used - maps) | (secrets - _USERS_SECRETS)):
            yield f"{name}: {missing[0]} does not exist"
        if pod.get("serviceAccountName") not in accounts:
            yield f"{name}: its service account does not exist"


def _limits(objects: list[Json]) -> Iterator[str]:
    hard = next((one["spec"]["hard"] for one in objects if one["kind"] == "ResourceQuota"), {})
    for key in ("requests.cpu", "requests.memory", "requests.nvidia.com/gpu", "pods"):
        if key not in hard:
            yield f"no quota of {key}"
    for key in ("services.loadbalancers", "services.nodeports"):
        if hard.get(key) != "0":
            yield f"the quota admits {key}"
    labels = next((one["metadata"]["labels"] for one in objects if one["kind"] == "Namespace"), {})
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace admits pods that are not restricted"


def _disruption(objects: list[Json]) -> Iterator[str]:
    budgets = [one["spec"] for one in objects if one["kind"] == "PodDisruptionBudget"]
    heads = [one for one in budgets if one["selector"]["matchLabels"].items() <= HEAD.items()]
    # A RayCluster has no scale subresource, so that Kubernetes computes no budget from maxUnavailable or a percentage.
    if not any(isinstance(one.get("minAvailable"), int) and one["minAvailable"] >= 1000 for one in heads):
        yield "no disruption budget keeps the Ray heads"
    if any(not one.get("maxUnavailable") for one in budgets if one not in heads):
        yield "a disruption budget admits no disruption: no machine below it can be upgraded"


def _volumes(objects: list[Json]) -> Iterator[str]:
    """One pod writes the history, and its disk is encrypted, is found by `down`, and ends with its claim."""
    for one in objects:
        name = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "StatefulSet" and one["spec"]["replicas"] != 1:
            yield f"{name}: more than one pod writes the history"
        if one["kind"] == "StorageClass":
            if one["parameters"].get("encrypted") != "true":
                yield f"{name}: disks are not encrypted"
            if one.get("reclaimPolicy") != "Delete":
                yield f"{name}: disks stay when their claims are deleted"
            tags = {value for key, value in one["parameters"].items() if key.startswith("tagSpecification_")}
            if "project=cloze" not in tags or not any(tag.startswith("environment=") for tag in tags):
                yield f"{name}: disks have no tags, by which `down` finds what is left"
