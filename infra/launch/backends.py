"""A cluster's file -> the backend that runs its jobs."""

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import Backend
from cloze.pipeline.core.errors import UserError


def backend_of(cluster: ClusterConfig | None, path: str) -> Backend:
    """The backend of the cluster whose file is `path`; this machine without a cluster.

    Raises UserError for a file that describes machines, but not where they are.
    """
    if cluster is None or cluster.is_this_machine:
        from cloze.infra.launch.local_jobs import LocalJobs

        machines = ("node_types", "max_cpus", "max_gpus")
        if cluster and (given := [key for key in machines if getattr(cluster, key) not in (None, ())]):
            raise UserError(
                f"{path}: {given[0]} describes another cluster's machines, but without address or kubernetes the job "
                f"would run on this machine; add one of these, or remove {given[0]}"
            )
        return LocalJobs(cluster or ClusterConfig(name="this machine"))
    if cluster.kubernetes:
        from cloze.infra.launch.kubernetes_jobs import KubernetesJobs

        return KubernetesJobs(cluster, path)
    from cloze.infra.launch.ray_jobs import RayJobs

    return RayJobs(cluster, path)
