"""A run in Dagster, as one job on a cluster: submitted, followed, and stopped when the run is canceled in the pages."""

import atexit
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import dagster

from cloze.infra import named_runs
from cloze.infra.execution import ExecutedStage
from cloze.infra.launch.backends import backend_of
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.following import FollowedJob
from cloze.infra.launch.jobs import Backend, JobRequest, Unreachable
from cloze.infra.run_config import RunConfig
from cloze.infra.workflow.run_settings import RunSettings
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

#: Tags of the run in the history: the id of its job, and the name of the cluster.
JOB, CLUSTER = "cloze/job", "cloze/cluster"
_AT_WORK = (dagster.DagsterRunStatus.STARTING, dagster.DagsterRunStatus.STARTED)


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
    context: dagster.AssetExecutionContext,
    file: str,
    request: JobRequest,
    after_its_end: JobRequest,
    names: Sequence[str],
) -> Generator[ExecutedStage]:
    """Submit the run to the cluster of this file and yield the named stages, each when it is finished. A run that is
    submitted already is followed; a retry whose job has ended submits the request `after_its_end`.

    Raises UserError when the job ends with an error that only the user can fix, otherwise JobFailed.
    """
    cluster = load(ClusterConfig, file)
    backend = backend_of(cluster, file)
    with _stopped_when_canceled(context, backend, request) as submitted:
        job = FollowedJob(backend, after_its_end if _has_ended(backend, context.run.tags.get(JOB)) else request)
        submitted.append(job.job)
        context.instance.add_run_tags(context.run.run_id, {JOB: job.job, CLUSTER: cluster.name})
        context.log.info(f"{'submitted as' if job.is_new else 'attached to'} {job.job} on {cluster.name}")
        yield from job.stages(names)


def stop_job(run: dagster.DagsterRun, file: str) -> None:
    """Stop the run's job on the cluster of this file, if it has one."""
    if job := run.tags.get(JOB):
        backend_of(load(ClusterConfig, file), file).stop(job)


def _has_ended(backend: Backend, job: str | None) -> bool:
    """Whether the job of the attempt before has ended; False without one."""
    if job is None:
        return False
    try:
        return backend.info(job).state.is_terminal
    except Unreachable:
        raise
    except UserError:  # the cluster keeps no record of it any more
        return True


@contextmanager
def _stopped_when_canceled(
    context: dagster.AssetExecutionContext, backend: Backend, request: JobRequest
) -> Iterator[list[str]]:
    """Stop the run's job if the block is interrupted because the run was ended in the pages or by its time limit. If
    this process ends for another reason, such as a reboot, the job continues, and the next run attaches to it.

    Yields a list for the job's id. While it is empty the interrupt may have hit the submission: then the job is the one
    of this run that the cluster has.
    """
    submitted: list[str] = []

    def stop_if_canceled() -> None:
        run = context.instance.get_run_by_id(context.run.run_id)
        if run and run.status not in _AT_WORK:
            for job in submitted or _jobs_at_work(backend, request.config):
                backend.stop(job)
                context.log.info(f"{job} saves and ends")

    atexit.register(stop_if_canceled)  # a signal in Dagster's code, between two stages, leaves this block open
    try:
        yield submitted
    except BaseException:
        stop_if_canceled()
        raise
    finally:
        atexit.unregister(stop_if_canceled)


def _jobs_at_work(backend: Backend, config: RunConfig) -> list[str]:
    root = Location(config.root).absolute().uri
    return [
        job.id for job in backend.jobs() if (job.run, job.root) == (config.name, root) and not job.state.is_terminal
    ]
