"""One run at a time for a root: the tags of a run, by which Dagster's queue lets it wait, retries and ends it."""

from typing import TYPE_CHECKING

import dagster
from dagster._core.run_coordinator.base import SubmitRunContext  # the interface has no public name
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from cloze.infra.workflow.names import identifier
from cloze.infra.workflow.run_process import EXECUTED
from cloze.pipeline.core.storage import Location

if TYPE_CHECKING:
    from cloze.infra.run_config import RunConfig

#: A tag of a run in the history: its root. Dagster's queue starts one run at a time for each.
ROOT = "cloze/root"
#: A tag of a run that failed: whether it is worth another attempt although a stage has raised an exception.
RETRY_AFTER_EXCEPTION = "dagster/retry_on_asset_or_op_failure"

_UNFINISHED = [dagster.DagsterRunStatus.QUEUED, *EXECUTED]


def root_tag(config: "RunConfig") -> dict[str, str]:
    return {ROOT: Location(config.root).absolute().uri}


def run_tags(config: "RunConfig") -> dict[str, str]:
    """The tags of a run that Dagster starts."""
    schedule = config.schedule
    return {
        **root_tag(config),
        "dagster/max_runtime": str(round(schedule.max_runtime_hours * 3600)),
        "dagster/max_retries": str(schedule.retries),
        "dagster/retry_strategy": "ALL_STEPS",  # the stages that are finished skip
        RETRY_AFTER_EXCEPTION: "true",
    }


def unfinished_run(instance: dagster.DagsterInstance, config: "RunConfig") -> dagster.DagsterRun | None:
    """The oldest run of this root that is queued or at work."""
    filters = dagster.RunsFilter(tags=root_tag(config), statuses=_UNFINISHED)
    return next(iter(instance.get_runs(filters, limit=1, ascending=True)), None)


def job_of(run: dagster.DagsterRun) -> str:
    """The job to which a run belongs, also a run of stages selected in the asset graph, which does not name it."""
    return identifier(min(run.asset_selection).path[0]) if run.asset_selection else run.job_name


class RootQueue(QueuedRunCoordinator):
    """Dagster's queue. It gives a run of any origin the tags of its job: stages that are selected in the asset graph
    are launched as a job of Dagster's own, without them."""

    def submit_run(self, context: SubmitRunContext) -> dagster.DagsterRun:
        self._instance.add_run_tags(context.dagster_run.run_id, _job_tags(context))
        return super().submit_run(context)


def _job_tags(context: SubmitRunContext) -> dict[str, str]:
    """The tags of a run's job, or of the job of all stages to which its assets belong."""
    run, origin = context.dagster_run, context.dagster_run.remote_job_origin
    if origin is None:
        return {}
    location = origin.repository_origin.code_location_origin.location_name
    repository = context.workspace.get_code_location(location).get_repository(origin.repository_origin.repository_name)
    job = job_of(run)
    return dict(repository.get_full_job(job).run_tags) if repository.has_job(job) else {}
