import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cloze.infra.doctor.check import Check
from cloze.infra.doctor.cluster import cluster_checks
from cloze.infra.doctor.machine_facts import MachineFacts, machine_facts
from cloze.infra.doctor.node_job import connection_error
from cloze.infra.doctor.ray_cluster import alive_nodes, equal_versions, node_checks, ray_version
from cloze.infra.launch.cluster_config import ClusterConfig
from tests.conftest import free_port
from tests.infra.launch.test_ray_jobs import environment_without, started_head
from tests.paths import REPOSITORY


def node(address: str = "10.0.0.1", facts: MachineFacts | None = None, **changes: Any) -> dict[str, Any]:
    """What a node like this machine reports, with changes."""
    resources = {"CPU": 2.0, "object_store_memory": 10**6, **changes.pop("resources", {})}
    plain = json.loads(json.dumps(asdict(facts or machine_facts())))
    report = {"address": address, "is_alive": True, "facts": plain, "connection_error": "", "clock_difference": 0.0}
    return {**report, "resources": resources, **changes}


def on_nodes(*nodes: dict[str, Any]) -> dict[str, list[tuple[str, Check]]]:
    """The results that are not ok, by the name of their check, with the nodes."""
    found: dict[str, list[tuple[str, Check]]] = {}
    for place, check in node_checks(nodes):
        if check.state != "ok":
            found.setdefault(check.check, []).append((place, check))
    return found


def test_nodes_like_this_machine_are_ok_and_share_their_lines() -> None:
    nodes = [node(f"10.0.0.{number}") for number in range(1, 6)]
    results = list(node_checks(nodes))
    assert {check.state for _, check in results} <= {"ok", "warning"}
    assert {place for place, _ in results} == {"nodes 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 more"}
    assert len(results) == len({check.check for _, check in results})


def test_what_one_node_lacks_is_named_with_the_node() -> None:
    small = replace(machine_facts(), open_files=1000)
    [(place, check)] = on_nodes(node("10.0.0.1"), node("10.0.0.2", small))["open files"]
    assert (place, check.state) == ("node 10.0.0.2", "warning")


@pytest.mark.parametrize(
    ("changes", "check", "state", "found"),
    [
        (
            {"connection_error": "Connection refused"},
            "ports",
            "missing",
            "cannot connect to the job's node: Connection",
        ),
        ({"clock_difference": 120.0}, "clock", "warning", "is 2 min 00 s ahead of the job's node"),
        ({"clock_difference": -7200.0}, "clock", "warning", "is 2 h 00 min behind the job's node"),
        ({"error": "no Python process"}, "node", "missing", "no task can run there: no Python process"),
        ({"resources": {"object_store_memory": 10**15}}, "object store", "warning", "1000.0 TB do not fit into shared"),
        ({"resources": {"GPU": 8.0}}, "Ray's GPUs", "missing", "Ray counts 8, there are 0"),
    ],
)
def test_a_fault_of_a_node_is_named(changes: dict[str, Any], check: str, state: str, found: str) -> None:
    [(place, result)] = on_nodes(node(), node("10.0.0.2", **changes))[check]
    assert (place, result.state) == ("node 10.0.0.2", state) and result.found.startswith(found)


def test_lost_nodes_and_clusters_without_cpus_are_named() -> None:
    lost = node("10.0.0.2", is_alive=False)
    assert alive_nodes([node()]).state == "ok"
    assert alive_nodes([node(), lost]).found == "1 alive, with 2 CPUs and 0 GPUs; lost: 10.0.0.2"
    empty = node(resources={"CPU": 0})
    assert alive_nodes([empty]).state == "missing"
    assert alive_nodes([empty], scales=True).state == "ok"
    assert not on_nodes(lost)


def test_nodes_must_have_one_python_and_one_ray() -> None:
    facts = machine_facts()
    other = replace(facts, versions={**facts.versions, "python": "3.12.1"})
    python, ray = equal_versions([node(facts=facts), node("10.0.0.2", other), {"address": "10.0.0.3"}])
    assert (python.state, ray.state) == ("missing", "ok")
    assert python.found == f"python differs: {facts.versions['python']} on 10.0.0.1, 3.12.1 on 10.0.0.2"


def test_another_version_of_ray_is_warned_of() -> None:
    assert ray_version("2.60.0", "2.60.0").state == "ok"
    assert ray_version("2.49.1", "2.60.0").found == "2.49.1, here 2.60.0"


def test_a_port_that_cannot_be_reached_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert connection_error(*server.getsockname()) == ""
    assert connection_error("127.0.0.1", free_port()) == "Connection refused"


def test_a_cluster_that_does_not_answer_is_named() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    [(where, check)] = cluster_checks(ClusterConfig(name="none", address=address, auth="disabled"), "cluster.yaml")
    assert (where, check.state) == ("cluster none", "missing")
    assert check.found == f"cluster.yaml: no Ray cluster answers at {address}"
    assert check.fix == "correct it, or start one: ray start --head"


def test_a_node_needs_only_the_standard_library() -> None:
    heavy = "{'numpy', 'pyarrow', 'pydantic', 'ray', 'rich', 'torch'}"
    code = f"import sys; import cloze.infra.doctor.node_job; print(sorted({{*sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def doctor(address: str, token: str, python: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "cluster.yaml").write_text(f"name: head\naddress: {address}\npython: {python}\n")
    command = [sys.executable, "-m", "cloze.infra.cli", "doctor", "--json", "--cluster", "cluster.yaml"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN": token}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=180)


@pytest.mark.campaign
def test_a_real_cluster_that_refuses_the_token_or_lacks_a_package(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lacking = environment_without("tokenizers", tmp_path / "lacking")
    with started_head(lacking, tmp_path_factory.mktemp("ray")) as address:
        refused = doctor(address, "wrong", lacking, tmp_path)
        assert refused.returncode == 2, refused.stderr
        last = json.loads(refused.stdout)[-1]
        assert last["where"] == "cluster head" and "auth: token is refused by" in last["found"]

        deadline = time.monotonic() + 120
        while "No available agent" in (asked := doctor(address, "secret", lacking, tmp_path)).stdout:
            assert time.monotonic() < deadline  # the cluster has just started
        assert asked.returncode == 2, asked.stderr
        checks = json.loads(asked.stdout)
        [lack] = [check for check in checks if check["state"] == "missing"]
        assert lack["where"].startswith("node ") and lack["found"] == "tokenizers is missing"
        [size] = [check for check in checks if check["check"] == "nodes"]
        assert size["found"] == "1 alive, with 2 CPUs and 0 GPUs"
