"""The Ray cluster that this process belongs to, and its size."""

import os

#: Environment variable with the number of CPUs that the cluster can scale to.
MAX_CPUS = "CLOZE_MAX_CPUS"
#: Environment variable with the number of GPUs that the cluster can scale to.
MAX_GPUS = "CLOZE_MAX_GPUS"
#: Environment variable with the prices of the cluster's nodes, as JSON: infra/limits.py.
NODE_PRICES = "CLOZE_NODE_PRICES"


def belongs_to_cluster() -> bool:
    """Whether this process belongs to a Ray cluster, as that of a submitted job does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cluster_cpus() -> int:
    """The number of CPUs that the cluster has, or can scale to; at least 1. Requires a Ray session."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)), int(os.environ.get(MAX_CPUS, 0)))
