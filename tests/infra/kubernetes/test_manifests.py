"""infra/kubernetes as kubectl builds it: Kubernetes' schema and our rules, and mutations that break each rule."""

from pathlib import Path

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
    rayjob_problems,
    schema_problems,
)
from tests.infra.kubernetes.mutations import MUTATIONS, RAYJOB_MUTATIONS, dagster, spec
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
    assert kuberay["singleNamespaceInstall"] is True  # roles of the namespaces that it watches, none of the cluster
    assert autoscaler["containerSecurityContext"]["readOnlyRootFilesystem"] is True
    assert autoscaler["extraArgs"] == {
        "expander": "priority",  # spot before on demand
        "balance-similar-node-groups": False,
        "skip-nodes-with-system-pods": False,
        "scale-down-unneeded-time": "5m",
        "max-node-provision-time": "10m",
    }
    assert all(one["nodeSelector"] == {"cloze/pool": "system"} for one in (kuberay, autoscaler))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_disks_have_the_tag_of_their_environment(overlay: str) -> None:
    assert f"environment={overlay}" in find(built(overlay), "StorageClass", "cloze-gp3")["parameters"].values()


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


@pytest.mark.parametrize("mutation", RAYJOB_MUTATIONS)
def test_each_mutation_of_a_rayjob_is_caught(mutation: str) -> None:
    rendered = job()
    change, expected = RAYJOB_MUTATIONS[mutation]
    change(rendered)
    assert expected in rayjob_problems(rendered, built("dev"))
