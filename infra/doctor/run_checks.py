"""A run and a cluster's file -> the checks of this machine, of the run's root and sources, and of the cluster."""

from collections.abc import Iterator, Sequence

from cloze.infra.doctor.check import Check
from cloze.infra.doctor.cluster import cluster_checks
from cloze.infra.doctor.local import local_checks
from cloze.infra.doctor.machine_facts import MachineFacts
from cloze.infra.doctor.store import store_checks
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.pipeline.core.config import input_paths, load
from cloze.pipeline.core.storage import Location


def run_checks(
    here: str,
    facts: MachineFacts,
    run: str | None,
    overrides: Sequence[str],
    root: str | None,
    cluster_path: str | None,
) -> Iterator[tuple[str, Check]]:
    """Returns each check and its place; `here` is this machine. Raises UserError at once for an invalid file."""
    cluster = load(ClusterConfig, cluster_path) if cluster_path else None
    location, sources = Location("runs" if root is None else root).absolute(), list[str]()
    if run:
        from cloze.infra import named_runs  # imports torch, which takes seconds

        config = named_runs.read(run, overrides, root, defaults=cluster.overrides if cluster else ())
        location = Location(config.root).absolute()
        files = [pattern for path in input_paths(config) if not path.mark.files_in for pattern in path.patterns]
        sources = [pattern for pattern in files if pattern.startswith("s3://")]

    def checks() -> Iterator[tuple[str, Check]]:
        yield from ((here, check) for check in local_checks(facts, location))
        store = location.uri if location.is_s3 else "S3"
        yield from ((store, check) for check in store_checks(location, sources))
        if cluster and cluster_path:
            yield from cluster_checks(cluster, cluster_path)

    return checks()
