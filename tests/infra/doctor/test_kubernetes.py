from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze.infra.doctor.kubernetes import kubernetes_checks
from cloze.infra.launch.kubernetes_config import KubernetesConfig
from tests.infra.launch.kubernetes_api import ApiServer, api_server, kubeconfig

CONFIG = KubernetesConfig(
    image="registry/cloze:1", namespace="ml", service_account="runs", env_secrets=("s3",), image_pull_secrets=("hub",)
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as running:
        (tmp_path / "kubeconfig").write_text(kubeconfig(running.url))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield running


def states(config: KubernetesConfig = CONFIG) -> dict[str, str]:
    return {check.check: check.state for check in kubernetes_checks(config, "cluster.yaml")}


def test_what_the_pods_refer_to_must_exist(server: ApiServer) -> None:
    for kind, name in (("secrets", "hub"), ("serviceaccounts", "runs")):
        server.create(kind, {"metadata": {"name": name}})
    assert states() == {
        "KubeRay": "ok",
        "get rayjobs": "ok",
        "watch rayjobs": "ok",
        "create rayjobs": "ok",
        "delete rayjobs": "ok",
        "list pods": "ok",
        "get pods/log": "ok",
        "list events": "ok",
        "secret s3": "missing",
        "secret hub": "ok",
        "service account runs": "ok",
    }


def test_each_permission_that_jobs_need_is_checked(server: ApiServer) -> None:
    needed = {("watch", "rayjobs"), ("delete", "rayjobs"), ("get", "pods/log"), ("list", "events")}
    server.forbidden = {*needed, ("get", "secrets")}
    server.create("serviceaccounts", {"metadata": {"name": "runs"}})
    found = states()
    assert {check for check, state in found.items() if state == "missing"} == {" ".join(one) for one in needed}
    assert found["secret s3"] == found["secret hub"] == "warning"  # they may exist


def test_a_cluster_without_kuberay_or_that_refuses_is_one_line(server: ApiServer) -> None:
    server.has_crd = False
    [check] = kubernetes_checks(CONFIG, "cluster.yaml")
    assert (check.state, check.fix) == ("missing", "install KubeRay 1.7 or later")
    [check] = kubernetes_checks(CONFIG.model_copy(update={"context": "gone"}), "cluster.yaml")
    assert check.state == "missing" and "kubeconfig" in check.found
