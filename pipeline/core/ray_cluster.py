"""The Ray cluster that this process belongs to: its nodes, and what it can scale to according to the cluster's file."""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

#: Environment variable with the number of CPUs that the cluster can scale to.
MAX_CPUS = "CLOZE_MAX_CPUS"
#: Environment variable with the number of GPUs that the cluster can scale to.
MAX_GPUS = "CLOZE_MAX_GPUS"
#: Environment variable with the kinds of machines that the cluster can scale to: a JSON list of NodeType.
NODE_TYPES = "CLOZE_NODE_TYPES"
#: Environment variable with the price of the head, in dollars an hour, where it is no machine of these kinds.
HEAD_PRICE = "CLOZE_HEAD_PRICE"

#: The label of a node with the name of its kind. KubeRay and Ray's launcher set it.
NODE_GROUP = "ray.io/node-group"


class NodeType(NamedTuple):
    """A kind of machine that the cluster can scale to: its name, a machine's CPUs and GPUs, the number of machines, and
    the price of one if it is known."""

    name: str
    cpus: int
    gpus: int
    max_nodes: int
    dollars_per_hour: float | None = None


def belongs_to_cluster() -> bool:
    """Whether this process belongs to a Ray cluster, as that of a submitted job does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def node_types() -> list[NodeType]:
    """The kinds of machines that the cluster can scale to; empty if the cluster's file does not list them."""
    return [NodeType(**kind) for kind in json.loads(os.environ.get(NODE_TYPES, "[]"))]


def head_price() -> float | None:
    """Dollars an hour of the head; None if the cluster's file does not say which machine it is, or it has no price."""
    return float(os.environ[HEAD_PRICE]) if HEAD_PRICE in os.environ else None


def cpu_limit() -> int | None:
    """The number of CPUs that the cluster can scale to; None for those that it has."""
    return int(os.environ[MAX_CPUS]) if MAX_CPUS in os.environ else None


def gpu_limit() -> int | None:
    """The number of GPUs that the cluster can scale to; None for those that it has."""
    return int(os.environ[MAX_GPUS]) if MAX_GPUS in os.environ else None


def node_resources() -> list[Mapping[str, float]]:
    """The resources of each node that the cluster has. Requires a Ray session."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def without_gpu_nodes() -> dict[str, str] | None:
    """The label selector for work that needs no GPU, where the cluster can scale to machines without GPUs.

    Without it Ray places such work on a GPU node whenever that is the only free one, and the node could not be removed.
    """
    types = node_types()
    gpu_types = [kind.name for kind in types if kind.gpus]
    return {NODE_GROUP: f"!in({','.join(gpu_types)})"} if 0 < len(gpu_types) < len(types) else None


def cluster_cpus() -> int:
    """The number of CPUs that the cluster has, or can scale to, for work that needs no GPU; at least 1. Requires a Ray
    session.
    """
    nodes = node_resources()
    if without_gpu_nodes():
        nodes = [node for node in nodes if not node.get("GPU")]
    return max(1, int(sum(node.get("CPU", 0) for node in nodes)), cpu_limit() or 0)
