"""A Ray job that asks each node of its cluster what it has: `python -m cloze.infra.doctor.node_job`.

Its last line is JSON: the nodes, each with its facts or with the error that prevents them. Nodes may lack packages: it
imports Ray and the standard library only.
"""

import json
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from cloze.infra.doctor.machine_facts import machine_facts
from cloze.infra.ray_session import ray_session

NODE_SECONDS = 40.0  # until all nodes have answered: each starts a Python process
_CONNECT_SECONDS = 5.0


def main() -> None:
    with ray_session(), socket.create_server(("", 0)) as server:
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        nodes = _describe_nodes(server.getsockname()[1])
    print(json.dumps({"nodes": nodes}), flush=True)


def _describe_nodes(port: int) -> list[dict[str, Any]]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own_address = ray.util.get_node_ip_address()
    remote = ray.remote(num_cpus=0, max_retries=0)(describe)
    nodes, pending = [], {}
    for node in ray.nodes():
        entry = {"address": node["NodeManagerAddress"], "is_alive": node["Alive"], "resources": node["Resources"]}
        nodes.append(entry)
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            pending[remote.options(scheduling_strategy=here).remote(own_address, port)] = entry
    deadline = time.monotonic() + NODE_SECONDS
    while pending and (left := deadline - time.monotonic()) > 0:
        for answer in ray.wait(list(pending), timeout=left)[0]:
            entry = pending.pop(answer)
            try:
                entry |= ray.get(answer)
                entry["clock_difference"] = entry.pop("clock") - time.time()
            except RayError as error:
                entry["error"] = " ".join(str(error).split())[-300:]
    for entry in pending.values():
        entry["error"] = f"no Python process has started there within {NODE_SECONDS:.0f} s"
    return nodes


def describe(job_address: str, job_port: int) -> dict[str, Any]:
    """Runs on each node: what it has, whether it can connect to a port of the job's node, and its clock."""
    return {
        "facts": asdict(machine_facts()),
        "connection_error": connection_error(job_address, job_port),
        "clock": time.time(),
    }


def connection_error(address: str, port: int) -> str:
    """Returns why a port cannot be connected to; empty if it can."""
    try:
        socket.create_connection((address, port), _CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _accept(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:  # closed
            return


if __name__ == "__main__":
    main()
