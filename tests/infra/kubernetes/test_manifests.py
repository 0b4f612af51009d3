"""infra/kubernetes as kubectl builds it: Kubernetes' schema and our rules, and mutations that break each rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.rayjob import Submission, rayjob
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from tests.infra.kubernetes.manifests import (
    FOLDER,
    Json,
    built,
    find,
    pods,
    problems,
    rayjob_pods,
    rayjob_problems,
    schema_problems,
)
from tests.infra.launch.kuberay import refusals, schema_errors, unknown_fields
from tests.paths import REPOSITORY

OVERLAYS = ("dev", "prod")
SUBMISSION = Submission(
    run="smoke",
    root="s3://bucket/runs",
    digest="0123456789ab",
    entrypoint="python -m cloze.infra.cli run run.yaml",
    env_vars={},
    runtime_env={"working_dir": "s3://bucket/runs/jobs/smoke-0123456789ab.zip"},
)


def job(*overrides: str) -> Json:
    """The RayJob that the kubernetes backend renders for the namespace of the manifests."""
    settings = ("kubernetes.namespace=cloze", "kubernetes.service_account=cloze", *overrides)
    cluster = load(ClusterConfig, REPOSITORY / "configs/clusters/kubernetes.yaml", settings)
    return rayjob("smoke-0123456789ab-1", SUBMISSION, cluster)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_each_object_and_each_rule_holds(overlay: str) -> None:
    objects = built(overlay)
    assert (schema_problems(objects), problems(objects)) == ([], [])


def test_the_namespace_runs_the_rendered_rayjob() -> None:
    rendered = job()
    assert rayjob_problems(rendered, built("dev")) == []
    assert (refusals(rendered), schema_errors(rendered), unknown_fields(rendered)) == ([], [], [])


def test_kuberays_and_the_autoscalers_values_keep_the_rules() -> None:
    kuberay, autoscaler = (
        yaml.safe_load((FOLDER / "charts" / name).read_text())
        for name in ("kuberay-operator.yaml", "cluster-autoscaler.yaml")
    )
    policy = find(built("dev"), "NetworkPolicy", "ray")
    operators = policy["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]
    assert kuberay["watchNamespace"] == [policy["metadata"]["namespace"]]
    assert operators == {"kubernetes.io/metadata.name": "kuberay"}  # the namespace of `helm install` in up.py
    assert {"name": "RayJobDeletionPolicy", "enabled": True} in kuberay["featureGates"]
    assert autoscaler["containerSecurityContext"]["readOnlyRootFilesystem"] is True
    assert all(one["nodeSelector"] == {"cloze/pool": "system"} for one in (kuberay, autoscaler))


def test_the_run_of_the_pages_is_valid(tmp_path: Path) -> None:
    [data] = [one["data"] for one in built("dev") if one["metadata"]["name"].startswith("dagster-runs")]
    file = tmp_path / "weekly.yaml"
    file.write_text(data["weekly.yaml"])
    assert load(RunConfig, file).name == "weekly"


def test_the_pages_answer_to_the_pods_address_by_the_proxy_alone() -> None:
    for overlay in OVERLAYS:
        [(_, pod)] = pods(built(overlay))
        addresses = {
            one["name"]: " ".join([*one.get("command", []), *one.get("args", [])]) for one in pod["containers"]
        }
        assert [name for name, command in addresses.items() if "0.0.0.0" in command] == ["login"] * (overlay == "prod")


Mutation = Callable[[list[Json]], Any]


def dagster(objects: list[Json]) -> Json:
    return find(objects, "StatefulSet", "dagster")["spec"]["template"]["spec"]


def container(objects: list[Json]) -> Json:
    return next(one for one in dagster(objects)["containers"] if one["name"] == "daemon")


def spec(kind: str, name: str) -> Callable[[list[Json]], Json]:
    return lambda objects: find(objects, kind, name)["spec"]


def removed(kind: str, name: str) -> Mutation:
    return lambda objects: objects.remove(find(objects, kind, name))


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "a pod as root": (lambda all: dagster(all)["securityContext"].pop("runAsNonRoot"), "dagster: may run as root"),
    "a container as root": (
        lambda all: container(all)["securityContext"].update(runAsUser=0),
        "dagster: daemon: may run as root",
    ),
    "no seccomp": (lambda all: dagster(all)["securityContext"].pop("seccompProfile"), "dagster: no seccomp profile"),
    "the machine's network": (
        lambda all: dagster(all).update(hostNetwork=True),
        "dagster: shares the machine's namespaces",
    ),
    "privileges": (
        lambda all: container(all)["securityContext"].pop("allowPrivilegeEscalation"),
        "dagster: daemon: may gain privileges",
    ),
    "capabilities": (
        lambda all: container(all)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
        "dagster: daemon: keeps capabilities",
    ),
    "a root file system to write to": (
        lambda all: container(all)["securityContext"].pop("readOnlyRootFilesystem"),
        "dagster: daemon: can write to its root file system",
    ),
    "no limits": (lambda all: container(all)["resources"].pop("limits"), "dagster: daemon: has no limits"),
    "no probe": (lambda all: container(all).pop("livenessProbe"), "dagster: daemon: has no livenessProbe"),
    "latest": (
        lambda all: container(all).update(image="cloze:latest"),
        "dagster: daemon: its image cloze:latest changes",
    ),
    "no service account": (removed("ServiceAccount", "dagster"), "dagster: its service account does not exist"),
    "no denial": (removed("NetworkPolicy", "deny-all"), "no network policy denies Egress"),
    "only ingress is denied": (
        lambda all: spec("NetworkPolicy", "deny-all")(all).update(policyTypes=["Ingress"]),
        "no network policy denies Egress",
    ),
    "everybody reaches Ray": (
        lambda all: spec("NetworkPolicy", "ray")(all)["ingress"].append({}),
        "NetworkPolicy ray: lets in what is outside of the named namespaces",
    ),
    "the metadata service": (
        lambda all: spec("NetworkPolicy", "https-and-pod-identity")(all)["egress"][0]["to"][0]["ipBlock"].pop("except"),
        "NetworkPolicy https-and-pod-identity: lets pods reach the machine's metadata service",
    ),
    "a load balancer": (
        lambda all: spec("Service", "dagster-login")(all).update(type="LoadBalancer"),
        "Service dagster-login: is reached from outside of the cluster",
    ),
    "GPUs without a quota": (
        lambda all: spec("ResourceQuota", "jobs")(all)["hard"].pop("requests.nvidia.com/gpu"),
        "no quota of requests.nvidia.com/gpu",
    ),
    "a namespace for any pod": (
        lambda all: find(all, "Namespace", "cloze")["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "the namespace admits pods that are not restricted",
    ),
    "heads without a budget": (
        removed("PodDisruptionBudget", "ray-heads"),
        "no disruption budget keeps the Ray heads",
    ),
    "a budget that Kubernetes cannot compute": (
        lambda all: [
            spec("PodDisruptionBudget", "ray-heads")(all).pop("minAvailable"),
            spec("PodDisruptionBudget", "ray-heads")(all).update(maxUnavailable=0),
        ],
        "no disruption budget keeps the Ray heads",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_mutation_is_caught(mutation: str) -> None:
    objects = built("prod")
    change, expected = MUTATIONS[mutation]
    change(objects)
    assert expected in problems(objects)


def test_the_schema_catches_an_unknown_key_and_a_wrong_value() -> None:
    objects = built("dev")
    dagster(objects)["restartpolicy"] = "Always"
    spec("ResourceQuota", "jobs")(objects)["hard"] = ["pods"]
    assert [problem.split(":")[0] for problem in schema_problems(objects)] == [
        "ResourceQuota jobs",
        "StatefulSet dagster",
    ]


RAYJOB_MUTATIONS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "a head on spot": (
        lambda one: rayjob_pods(one)[0][1]["spec"]["nodeSelector"].update({"karpenter.sh/capacity-type": "spot"}),
        "head: may run on a spot machine ({'karpenter.sh/capacity-type': 'spot'})",
    ),
    "a head anywhere": (
        lambda one: rayjob_pods(one)[0][1]["spec"].pop("nodeSelector"),
        "head: may run on a spot machine ({})",
    ),
    "workers as root": (
        lambda one: rayjob_pods(one)[1][1]["spec"]["securityContext"].update(runAsUser=0),
        "cpu: may run as root",
    ),
    "workers without a policy": (
        lambda one: rayjob_pods(one)[2][1]["metadata"]["labels"].pop("cloze/run"),
        "gpu: the network policy ray does not select it",
    ),
    "another service account": (
        lambda one: rayjob_pods(one)[0][1]["spec"].update(serviceAccountName="default"),
        "head: its service account is default",
    ),
}


@pytest.mark.parametrize("mutation", RAYJOB_MUTATIONS)
def test_each_mutation_of_a_rayjob_is_caught(mutation: str) -> None:
    rendered = job()
    change, expected = RAYJOB_MUTATIONS[mutation]
    change(rendered)
    assert expected in rayjob_problems(rendered, built("dev"))
