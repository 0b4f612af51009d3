"""What runs in an environment's Kubernetes cluster: KubeRay's operator, the autoscaler of nodes, the manifests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cloze.infra.scripts import tools
from cloze.infra.scripts.environment import Environment
from cloze.pipeline.core.errors import UserError

NAMESPACE = "cloze"
_KUBERAY = ("kuberay-operator", "https://ray-project.github.io/kuberay-helm", "1.7.0", "kuberay")
_AUTOSCALER = ("cluster-autoscaler", "https://kubernetes.github.io/autoscaler", "9.59.1", "kube-system")
_LOGIN_SECRET = "dagster-login"


def connect(environment: Environment) -> None:
    """Add the cluster to the kubeconfig."""
    names = ["--name", environment.cluster, "--alias", environment.cluster, "--region", environment.region]
    tools.run("aws", "eks", "update-kubeconfig", *names)


def kubectl(environment: Environment, *arguments: str) -> tuple[str, ...]:
    """The command, on this environment's cluster whatever the kubeconfig's current context is."""
    return "kubectl", f"--context={environment.cluster}", *arguments


def install_charts(environment: Environment, outputs: Mapping[str, Any]) -> None:
    """Install or upgrade KubeRay's operator and the cluster autoscaler."""
    values = environment.build / "cluster-autoscaler.yaml"
    _write(
        values,
        {
            "autoDiscovery": {"clusterName": outputs["cluster_name"]},
            "awsRegion": outputs["region"],
            "expanderPriorities": outputs["autoscaler_priorities"],
        },
    )
    tools.run(
        *kubectl(environment, "apply", "--server-side", f"--filename={_manifests(environment)}/base/namespace.yaml")
    )
    _install(environment, _KUBERAY, f"--values={_manifests(environment)}/charts/kuberay-operator.yaml")
    _install(
        environment,
        _AUTOSCALER,
        f"--values={_manifests(environment)}/charts/cluster-autoscaler.yaml",
        f"--values={values}",
    )


def apply_manifests(environment: Environment, repository: str, digest: str, cluster_file: str) -> None:
    """Apply the environment's overlay with the image and the cluster's file, and wait for Dagster, which submits by its
    service account: its pod has no kubeconfig that the file's context could be of.

    Raises UserError if the overlay has the login and its secret is missing.
    """
    folder = environment.build / "kubernetes"
    folder.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_load(cluster_file)
    del content["kubernetes"]["context"]
    _write(folder / "cluster.yaml", content)
    overlay = _manifests(environment) / "overlays" / environment.name
    up_to_clone = "/".join([".."] * len(folder.relative_to(environment.clone).parts))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{up_to_clone}/{overlay.relative_to(environment.clone)}"],
        "images": [{"name": "cloze", "newName": repository, "digest": digest}],
        "configMapGenerator": [
            {"name": "dagster-runs", "namespace": NAMESPACE, "behavior": "merge", "files": ["cluster.yaml"]}
        ],
    }
    _write(folder / "kustomization.yaml", kustomization)
    manifests = tools.output("kubectl", "kustomize", str(folder))
    secret = kubectl(environment, "get", "secret", _LOGIN_SECRET, f"--namespace={NAMESPACE}")
    if _LOGIN_SECRET in manifests and not tools.succeeds(*secret):
        raise UserError(
            f"secret {_LOGIN_SECRET}: is missing in the namespace {NAMESPACE}; create it as "
            "infra/kubernetes/components/login/kustomization.yaml says, then repeat this command"
        )
    tools.run(*kubectl(environment, "apply", "--server-side", "--filename=-"), text=manifests)
    wait = ["rollout", "status", "statefulset/dagster", f"--namespace={NAMESPACE}", "--timeout=15m"]
    tools.run(*kubectl(environment, *wait))


def smoke_job(environment: Environment) -> None:
    """Submit the data stages of the quickstart as a RayJob, and wait until it has succeeded."""
    file = str(environment.cluster_file)
    tools.run("cloze", "submit", "configs/quickstart.yaml", "--cluster", file, "--until", "tokens", "name=smoke")


def _manifests(environment: Environment) -> Path:
    return environment.clone / "infra/kubernetes"


def _install(environment: Environment, chart: tuple[str, str, str, str], *values: str) -> None:
    name, repository, version, namespace = chart
    where = [f"--kube-context={environment.cluster}", f"--namespace={namespace}", "--create-namespace"]
    tools.run(
        "helm", "upgrade", "--install", name, name, f"--repo={repository}", f"--version={version}", *where, *values,
        "--wait", "--timeout=10m",
    )  # fmt: skip


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
