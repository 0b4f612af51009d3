"""A Ray cluster -> whether it accepts jobs, and what each of its nodes lacks, which a small job asks them."""

import json
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloze.infra.display import duration, size
from cloze.infra.doctor.check import Check, from_error, missing, ok, warning
from cloze.infra.doctor.machine_checks import machine_checks
from cloze.infra.doctor.machine_facts import MachineFacts
from cloze.infra.launch import ray_jobs
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import copy_package, job_environment
from cloze.infra.package_versions import installed_versions
from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_JOB_SECONDS, _PIP_SECONDS = 120.0, 600.0  # for the job, and for the environment that `pip` creates
_POLL = 0.5
_NOTABLE_SKEW = 60.0  # seconds between the clocks of two nodes
_NAMED_NODES = 3  # in a line, of those that share a result


def ray_cluster_checks(cluster: ClusterConfig, cluster_path: str) -> Iterator[tuple[str, Check]]:
    """Returns each check, and where it was made: the cluster, or some of its nodes."""
    where = f"cluster {cluster.name}"
    try:
        client = ray_jobs._connect(cluster, cluster_path)
        yield where, ok("address", f"{cluster.address} answers and accepts auth: {cluster.auth}")
        version = json.loads(client._do_request("GET", "/api/version").text)["ray_version"]
        yield where, ray_version(version, installed_versions()["ray"])
        nodes = _ask_nodes(client, cluster)
    except UserError as error:
        yield where, from_error("cluster", error)
        return
    except (OSError, RuntimeError) as error:
        yield where, missing("cluster", f"lost {cluster.address} ({error})", "see whether Ray still runs there")
        return
    yield where, alive_nodes(nodes, scales=bool(cluster.cpu_limit))
    yield from ((where, check) for check in equal_versions(nodes))
    yield from node_checks(nodes)


def ray_version(theirs: str, ours: str) -> Check:
    if theirs == ours:
        return ok("Ray", theirs)
    return warning("Ray", f"{theirs}, here {ours}", f"pip install ray=={ours} on the cluster, and start it again")


def _ask_nodes(client: "JobSubmissionClient", cluster: ClusterConfig) -> list[dict[str, Any]]:
    """Run node_job on the cluster. Raises UserError when it does not end well, or not in time."""
    job = f"cloze-doctor-{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory(prefix="cloze-") as folder:
        copy_package(Path(folder))
        entrypoint = shlex.join([cluster.interpreter, "-m", "cloze.infra.doctor.node_job"])
        environment = {**job_environment(cluster), "working_dir": folder}
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the cluster refused a job: {reason}; wait a minute if it has just started, or start Ray with "
                "--dashboard-agent-listen-port=0"
            ) from error
    deadline = time.monotonic() + _JOB_SECONDS + (_PIP_SECONDS if cluster.environment_key else 0)
    while not (details := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise UserError(
                f"{job} has not ended in time: {details.message or details.status}; see its log: "
                f"ray job logs --address {cluster.address} {job}"
            )
        time.sleep(_POLL)
    if answer := _answer(client.get_job_logs(job)):
        client.delete_job(job)
        return answer
    *_, reason = ["", *(details.message or "").strip().splitlines()]
    raise UserError(
        f"{job} failed: {reason}; set python in the cluster's file to the interpreter of an environment with Cloze's "
        "packages, or start Ray in one"
    )


def _answer(log: str) -> list[dict[str, Any]] | None:
    """The nodes in the last line of the job's log."""
    line = next((line for line in reversed(log.splitlines()) if line.startswith('{"nodes"')), None)
    return json.loads(line)["nodes"] if line else None


def alive_nodes(nodes: Sequence[dict[str, Any]], *, scales: bool = False) -> Check:
    """Returns the cluster's size, and whether Ray has lost nodes. A cluster that scales may have no CPUs yet."""
    alive = [node for node in nodes if node["is_alive"]]
    dead = [node["address"] for node in nodes if not node["is_alive"]]
    cpus, gpus = (int(sum(node["resources"].get(kind, 0) for node in alive)) for kind in ("CPU", "GPU"))
    found = f"{len(alive)} alive, with {cpus} CPUs and {gpus} GPUs"
    if not cpus and not scales:
        return missing("nodes", f"{found}: nothing can run", "start Ray on them: ray start --address=HEAD:6379")
    if dead:
        return warning("nodes", f"{found}; lost: {_named(dead)}", "start Ray there again, if they were not removed")
    return ok("nodes", found)


def equal_versions(nodes: Sequence[dict[str, Any]]) -> Iterator[Check]:
    """Returns whether all nodes have the Python and the Ray of the first one, without which tasks cannot start."""
    versions = {node["address"]: node["facts"]["versions"] for node in nodes if "facts" in node}
    for package in ("python", "ray"):
        by_version: dict[str, list[str]] = {}
        for address, installed in versions.items():
            by_version.setdefault(installed.get(package, "none"), []).append(address)
        if len(by_version) > 1:
            found = ", ".join(f"{version} on {_named(addresses)}" for version, addresses in by_version.items())
            yield missing(f"same {package}", f"{package} differs: {found}", "use one environment on all nodes")
        else:
            yield ok(f"same {package}", "on all nodes")


def node_checks(nodes: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Check]]:
    """Returns each result once, and the nodes that share it. What is ok on several nodes is one result."""
    sharing: dict[tuple[str, ...], list[tuple[str, Check]]] = {}
    for node in nodes:
        for check in _checks_of(node) if node["is_alive"] else ():
            key = (check.check, *(() if check.state == "ok" else (check.found, check.fix)))
            sharing.setdefault(key, []).append((node["address"], check))
    results: dict[str, list[Check]] = {}
    for same in sharing.values():
        place = f"node{'s'[: len(same) - 1]} {_named([address for address, _ in same])}"
        check = same[0][1]
        alike = any(other != check for _, other in same)
        results.setdefault(place, []).append(replace(check, found=f"{check.found}; others alike") if alike else check)
    for place, checks in results.items():
        yield from ((place, check) for check in checks)


def _checks_of(node: dict[str, Any]) -> Iterator[Check]:
    if error := node.get("error"):
        yield missing("node", f"no task can run there: {error}", "see the logs in /tmp/ray/session_latest/logs there")
        return
    facts = MachineFacts.from_json(node["facts"])
    yield from machine_checks(facts)
    yield _object_store(int(node["resources"].get("object_store_memory", 0)), facts)
    yield _ray_gpus(int(node["resources"].get("GPU", 0)), len(facts.gpus))
    if error := node["connection_error"]:
        fix = "allow all TCP ports between the nodes, and none from outside"
        yield missing("ports", f"cannot connect to the job's node: {error}", fix)
    else:
        yield ok("ports", "can connect to the job's node")
    yield _clock(node["clock_difference"])


def _object_store(memory: int, facts: MachineFacts) -> Check:
    """Returns whether Ray's object store is in shared memory."""
    shared = facts.shared_memory
    if shared and memory <= shared.size:
        return ok("object store", f"{size(memory)} in {shared.path}")
    fix = "give it more shared memory (docker run --shm-size=8g), or ray start --object-store-memory=BYTES"
    return warning("object store", f"{size(memory)} do not fit into shared memory and are on the disk", fix)


def _ray_gpus(of_ray: int, installed: int) -> Check:
    if of_ray < installed:
        fix = f"start Ray there with --num-gpus={installed}, without CUDA_VISIBLE_DEVICES"
        return warning("Ray's GPUs", f"Ray uses {of_ray} of {installed}", fix)
    if of_ray > installed:
        return missing(
            "Ray's GPUs", f"Ray counts {of_ray}, there are {installed}", "start Ray there without --num-gpus"
        )
    return ok("Ray's GPUs", str(of_ray))


def _clock(difference: float) -> Check:
    if abs(difference) < _NOTABLE_SKEW:
        return ok("clock", "agrees with the job's node")
    direction = "ahead of" if difference > 0 else "behind"
    found = f"is {duration(abs(difference))} {direction} the job's node"
    return warning("clock", found, "set it: timedatectl set-ntp true; S3 refuses requests from 15 minutes on")


def _named(addresses: list[str]) -> str:
    more = len(addresses) - _NAMED_NODES
    return ", ".join(addresses[:_NAMED_NODES]) + (f" and {more} more" if more > 0 else "")
