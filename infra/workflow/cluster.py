"""A run in Dagster, as one job on a cluster: submitted, followed, and stopped when the run is canceled in the pages."""

import atexit
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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

#: Tags of the run in the history: the id of its job, the name of the cluster, and the cluster's file.
JOB, CLUSTER, FILE = "cloze/job", "cloze/cluster", "cloze/cluster-file"


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


@dataclass
class ClusterJob:
    """The job of a run in Dagster on the cluster of this file.

    It is stopped if the run is canceled in the pages or by its time limit. If the process ends for another reason, such
    as a reboot, the job continues, and the next run attaches to it.
    """

    context: dagster.AssetExecutionContext
    file: str
    request: JobRequest
    job: str | None = None  # its id, once it is submitted

    @cached_property
    def cluster(self) -> ClusterConfig:
        return load(ClusterConfig, self.file)

    @cached_property
    def backend(self) -> Backend:
        return backend_of(self.cluster, self.file)

    def stages(self, after_its_end: JobRequest, names: Sequence[str]) -> Generator[ExecutedStage]:
        """Submit the run and yield the named stages, each when it is finished. A run that is submitted already is
        followed; a retry whose job has ended submits the request `after_its_end`.

        Raises UserError when the job ends with an error that only the user can fix, otherwise JobFailed.
        """
        atexit.register(self.stop_if_canceled)  # a signal in Dagster's code, between two stages, leaves the block open
        try:
            has_ended = _has_ended(self.backend, self.context.run.tags.get(JOB))
            followed = FollowedJob(self.backend, after_its_end if has_ended else self.request)
            self.job = followed.job
            tags = {JOB: self.job, CLUSTER: self.cluster.name, FILE: str(Path(self.file).absolute())}
            self.context.instance.add_run_tags(self.context.run.run_id, tags)
            said = "submitted as" if followed.is_new else "attached to"
            self.context.log.info(f"{said} {self.job} on {self.cluster.name}")
            yield from followed.stages(names)
        except BaseException:
            self.stop_if_canceled()
            raise
        finally:
            atexit.unregister(self.stop_if_canceled)

    def stop_if_canceled(self) -> None:
        """If the submission may have been interrupted, the job is what the cluster has of this run."""
        if _is_canceled(self.context.instance, self.context.run.run_id):
            for job in [self.job] if self.job else _jobs_at_work(self.backend, self.request.config):
                self.backend.stop(job)
                self.context.log.info(f"{job} saves and ends")


def stop_job(run: dagster.DagsterRun) -> bool:
    """Stop the job of a run in the history, whichever process follows it. Returns whether the run has one.

    Raises UserError when the cluster does not answer, and where its file is not on this machine.
    """
    if not {JOB, FILE} <= run.tags.keys():
        return False
    file = run.tags[FILE]
    backend_of(load(ClusterConfig, file), file).stop(run.tags[JOB])
    return True


def _is_canceled(instance: dagster.DagsterInstance, run_id: str) -> bool:
    """Whether somebody has ended the run. Dagster may have reported it as failed since, as it does after a signal."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return False
    events = instance.all_logs(run_id, of_type=dagster.DagsterEventType.RUN_CANCELING)
    return bool(events) or run.status is dagster.DagsterRunStatus.CANCELED


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


def _jobs_at_work(backend: Backend, config: RunConfig) -> list[str]:
    root = Location(config.root).absolute().uri
    return [
        job.id for job in backend.jobs() if (job.run, job.root) == (config.name, root) and not job.state.is_terminal
    ]
