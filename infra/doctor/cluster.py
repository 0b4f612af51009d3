"""A cluster's file -> the checks of that kind of cluster."""

from collections.abc import Iterator

from cloze.infra.doctor.check import Check
from cloze.infra.launch.cluster_config import ClusterConfig


def cluster_checks(cluster: ClusterConfig, cluster_path: str) -> Iterator[tuple[str, Check]]:
    """Returns each check, and where it was made: the cluster, or some of its nodes."""
    if cluster.address:
        from cloze.infra.doctor.ray_cluster import ray_cluster_checks

        yield from ray_cluster_checks(cluster, cluster_path)
    elif cluster.kubernetes:
        from cloze.infra.doctor.kubernetes import kubernetes_checks

        yield from ((f"cluster {cluster.name}", check) for check in kubernetes_checks(cluster.kubernetes, cluster_path))
