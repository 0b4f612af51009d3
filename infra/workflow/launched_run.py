"""A run that Dagster has started, by hand or by a schedule: what `cloze run` does before and after its stages."""

import multiprocessing
import signal
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC
from typing import NamedTuple

import dagster

from cloze.infra import named_runs
from cloze.infra.estimate.record import estimate_start
from cloze.infra.execution import ActiveRun, ExecutedStage, active_run, execute_stage, started_run, still_forced
from cloze.infra.explain import explain, with_causes
from cloze.infra.interrupts import ends_soon_when_interrupted
from cloze.infra.launch.following import JobFailed
from cloze.infra.launch.jobs import JobRequest, Unreachable
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage
from cloze.infra.workflow.cluster import ClusterJob, cluster_file, on_cluster
from cloze.infra.workflow.names import FAILED_STAGE
from cloze.infra.workflow.partitions import ConfiguredRun, partition_of
from cloze.infra.workflow.queue import RETRY_AFTER_EXCEPTION
from cloze.infra.workflow.run_process import process_tag
from cloze.infra.workflow.run_settings import RunSettings
from cloze.pipeline.core.errors import StorageError, UserError
from cloze.pipeline.core.signals import own_ending

_SECONDS_TO_EXIT = 15  # in which Dagster writes the run's last events
_STOPPED = "cloze: stopped; what is finished is kept"


class StartedStages(NamedTuple):
    """A run that has started, its selected stages, and these again, each when it is finished."""

    run: Run
    stages: Sequence[Stage]
    executed: Iterator[ExecutedStage]


@dataclass(frozen=True)
class StagesToRun:
    """A run that is being executed, and its stages to execute now. `force` names those to run again, unless they were
    since `first_attempt`."""

    active: ActiveRun
    stages: Sequence[Stage]
    force: Sequence[str]
    first_attempt: str | None = None

    def executed(self, *, wait: bool) -> Iterator[ExecutedStage]:
        """Execute the stages, one after the other."""
        for stage in self.stages:
            forced = [name for name in self.force if name == stage.name]  # looked up when its inputs are finished
            force = bool(still_forced(self.active.run, forced, self.first_attempt))
            yield execute_stage(self.active, stage, force=force, wait=wait)


@contextmanager
def launched_run(
    context: dagster.AssetExecutionContext, configured: ConfiguredRun, settings: RunSettings, selected: Collection[str]
) -> Iterator[StartedStages]:
    """The selected stages up to `until`, executed here or as a job on a cluster. The process ends soon when the run is
    terminated.

    Raises dagster.Failure with the one line that `cloze run` would end with. Dagster retries it where the store or
    the cluster did not answer.
    """
    # A retry has copied the tags of the run before.
    context.instance.add_run_tags(context.run.run_id, {**process_tag(context.run.run_id), FAILED_STAGE: ""})

    job: ClusterJob | None = None

    def report_canceled() -> None:
        if job:
            with suppress(UserError):  # nobody would read that the cluster does not answer
                job.stop_if_canceled()
        run = context.instance.get_run_by_id(context.run.run_id)
        if run and run.status == dagster.DagsterRunStatus.CANCELING:
            context.instance.report_run_canceled(run, _STOPPED)

    with _errors_reported(context), ends_soon_when_interrupted(_STOPPED, report_canceled):
        config = configured.of(partition_of(context))
        cluster = cluster_file(config, settings)
        run = Run(_with_overrides(on_cluster(config, cluster), settings.overrides))
        until, force = _last(run, settings.until, selected), settings.force
        if cluster:
            chosen = [stage for stage in run.until(until) if stage.name in selected]
            request = JobRequest(run.config, until, tuple(force))
            after_its_end = replace(request, force=tuple(still_forced(run, force, _first_attempt(context))))
            names = [stage.name for stage in chosen]
            job = ClusterJob(context, cluster, request)
            with closing(job.stages(after_its_end, names)) as executed:
                yield StartedStages(run, chosen, executed)
            return
        estimate_start(run, until, force)
        with started_run(run, until, force) as stages, active_run(run.config, context.resources.ray) as active:
            chosen = [stage for stage in stages if stage.name in selected]
            to_run = StagesToRun(active, chosen, force, _first_attempt(context))
            yield StartedStages(active.run, chosen, to_run.executed(wait=settings.wait))


@contextmanager
def _errors_reported(context: dagster.AssetExecutionContext) -> Iterator[None]:
    """Fail with the one line of an error that a further attempt cannot repair, or that ended the run by itself."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        ending = None
        if isinstance(error, KeyboardInterrupt):
            ending = own_ending()
            _exit_soon()
        line = ending.line if ending else explain(error)
        if line is None:
            raise
        if ending or not _may_pass(error):
            context.instance.add_run_tags(context.run.run_id, {RETRY_AFTER_EXCEPTION: "false"})
        raise dagster.Failure(line) from error


def _may_pass(error: BaseException) -> bool:
    """Whether a later attempt may succeed without the user: the store, the cluster or the history did not answer."""
    return any(
        isinstance(one, JobFailed | Unreachable | StorageError | sqlite3.OperationalError)
        or (isinstance(one, OSError) and str(one).startswith("s3://"))  # a StorageError of another process
        for one in with_causes(error)
    )


def _exit_soon() -> None:
    """Let the kernel end an interrupted run's process that does not exit by itself: Ray's threads may delay that."""
    if multiprocessing.parent_process():  # a process of Dagster's for one run
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS_TO_EXIT)


def _with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    if not overrides:
        return config
    changed = named_runs.with_overrides(config, overrides)
    for key in ("name", "root"):
        if key in [override.partition("=")[0] for override in overrides]:
            raise UserError(f"{key}: cannot be overridden in Dagster; start another configuration (CLOZE_CONFIG)")
    if list(Run(changed).stages) != list(Run(config).stages):
        raise UserError("overrides: have changed the stages of the run; write this into its configuration instead")
    return changed


def _last(run: Run, until: str | None, selected: Collection[str]) -> str | None:
    """The last of the selected stages up to `until`; None for the last of the run, whose end is that of the run."""
    of_run = run.until(until)
    last = [stage.name for stage in of_run if stage.name in selected][-1:]
    if not last:
        raise UserError(f"until: {until} comes before the stages that are selected; give a later one")
    return None if last[0] == list(run.stages)[-1] else last[0]


def _first_attempt(context: dagster.AssetExecutionContext) -> str | None:
    """When the first attempt of a run that is retried was created (UTC, as in manifests); None for others."""
    if "dagster/retry_number" not in context.run.tags:
        return None
    record = context.instance.get_run_record_by_id(context.run.root_run_id or context.run.run_id)
    return record.create_timestamp.astimezone(UTC).isoformat(timespec="seconds") if record else None
