"""A cluster's file -> the backend that runs its jobs."""

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import Backend


def backend_of(cluster: ClusterConfig | None, path: str) -> Backend:
    """The backend of the cluster whose file is `path`; this machine without a cluster."""
    if cluster is None or cluster.is_this_machine:
        from cloze.infra.launch.local_jobs import LocalJobs

        return LocalJobs(cluster or ClusterConfig(name="this machine"))
    if cluster.kubernetes:
        from cloze.infra.launch.kubernetes_jobs import KubernetesJobs

        return KubernetesJobs(cluster, path)
    from cloze.infra.launch.ray_jobs import RayJobs

    return RayJobs(cluster, path)
