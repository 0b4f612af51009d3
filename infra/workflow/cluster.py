"""A run in Dagster, as one job on a cluster: submitted, followed, and stopped when the run is canceled in the pages."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import dagster

from cloze.infra import named_runs
from cloze.infra.execution import ExecutedStage
from cloze.infra.launch.backends import backend_of
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.following import FollowedJob
from cloze.infra.launch.jobs import JobRequest
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.run_settings import RunSettings
from cloze.pipeline.core.config import load

#: Tags of the run in the history: the id of its job, and the name of the cluster.
JOB, CLUSTER = "cloze/job", "cloze/cluster"


def read_config(run: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run of the pages: with the overrides of the cluster of its schedule, which say where its
    outputs are."""
    config = named_runs.read(run, overrides)
    if not config.schedule.cluster:
        return config
    return named_runs.read(run, overrides, defaults=load(ClusterConfig, config.schedule.cluster).overrides)


def cluster_file(config: RunConfig, settings: RunSettings) -> str | None:
    """The file of the cluster that is to execute a run; None for this machine."""
    return (config.schedule.cluster if settings.cluster is None else settings.cluster) or None


def on_cluster(config: RunConfig, file: str | None) -> RunConfig:
    """The configuration with the cluster's overrides, which `read_config` has added for that of the schedule."""
    if file in (None, config.schedule.cluster):
        return config
    return named_runs.with_overrides(config, load(ClusterConfig, file).overrides)


def job_stages(
    context: dagster.AssetExecutionContext, file: str, request: JobRequest, names: Sequence[str]
) -> Generator[ExecutedStage]:
    """Submit the run to the cluster of this file and yield the named stages, each when it is finished. A run that is
    submitted already is followed.

    Raises UserError when the job ends with an error that only the user can fix, otherwise JobFailed.
    """
    cluster = load(ClusterConfig, file)
    job = FollowedJob(backend_of(cluster, file), request)
    context.instance.add_run_tags(context.run.run_id, {JOB: job.job, CLUSTER: cluster.name})
    context.log.info(f"{'submitted as' if job.is_new else 'attached to'} {job.job} on {cluster.name}")
    with _stopped_when_canceled(context, job):
        yield from job.stages(names)


@contextmanager
def _stopped_when_canceled(context: dagster.AssetExecutionContext, job: FollowedJob) -> Iterator[None]:
    """Stop the job if the block is interrupted because the run was canceled. At the end of this process for another
    reason, such as a reboot, the job continues, and the next run attaches to it."""
    try:
        yield
    except BaseException:
        run = context.instance.get_run_by_id(context.run.run_id)
        if run and run.status == dagster.DagsterRunStatus.CANCELING:
            job.stop()
            context.log.info(f"{job.job} saves and ends")
        raise
