"""A run that failed, or whose model is held back -> a report to its webhook: run, stage, cause in a line and link."""

import logging

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster_shared.error import SerializableErrorInfo

from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.webhook import post, webhook_url
from cloze.infra.workflow.names import FAILED_STAGE, identifier
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.queue import job_of
from cloze.pipeline.core.errors import UserError

_PARTITION = "dagster/partition"


def failure_sensor(configured: ConfiguredRun, job: UnresolvedAssetJobDefinition) -> list[dagster.SensorDefinition]:
    """Reports the runs of a job, or of stages selected in the asset graph, that fail, also by a check, and are not
    retried, to `schedule.webhook`; none without one. It is on."""
    schedule = configured.config.schedule
    if schedule.webhook is None:
        return []

    def report(context: dagster.RunFailureSensorContext) -> None:
        run = context.dagster_run
        if job_of(run) == job.name and run.tags.get("dagster/will_retry") != "true":
            stage = run.tags.get(FAILED_STAGE) or None
            happened = f"failed in {stage}" if stage else "failed"
            _send(schedule, _message(configured.name, run, schedule, happened, stage, _cause(context)), context.log)

    sensor = dagster.run_failure_sensor(
        name=f"{identifier(configured.name)}_failures",
        minimum_interval_seconds=30,
        default_status=dagster.DefaultSensorStatus.RUNNING,
        description="Reports a failed run to schedule.webhook.",
    )(report)
    return [sensor]


def report_held_back(
    context: dagster.AssetExecutionContext, run_name: str, schedule: ScheduleConfig, reason: str
) -> None:
    """Report that a run's model is not promoted, to `schedule.webhook` if there is one."""
    message = _message(run_name, context.run, schedule, "was not promoted", None, reason)
    _send(schedule, message, context.log)


def _send(schedule: ScheduleConfig, message: dict[str, str | None], log: logging.Logger) -> None:
    if schedule.webhook is None:
        return
    try:
        post(webhook_url(schedule.webhook), message)
        log.info(f"reported {message['dagster_run']}")
    except UserError as error:  # the next one is reported all the same
        log.error(f"{error}; not reported: {message['text']}")


def _message(
    run_name: str, run: dagster.DagsterRun, schedule: ScheduleConfig, happened: str, stage: str | None, cause: str
) -> dict[str, str | None]:
    """`text` is what Slack, Mattermost and their like show."""
    link, partition = f"{schedule.pages.rstrip('/')}/runs/{run.run_id}", run.tags.get(_PARTITION)
    what = f"{run_name} {partition}" if partition else run_name
    return {
        "text": f"{what} {happened}: {cause} {link}",
        "run": run_name,
        "partition": partition,
        "stage": stage,
        "cause": cause,
        "dagster_run": run.run_id,
        "link": link,
    }


def _cause(context: dagster.RunFailureSensorContext) -> str:
    """The first line of the exception that began it, without its class; Dagster's own words for a killed process."""
    errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
    error = next(filter(None, errors), None)
    if error is None:
        return context.failure_event.message or "its process ended without an error"
    return _first_line(error)


def _first_line(error: SerializableErrorInfo) -> str:
    while error.cause and error.cls_name != "Failure":  # which has the line, and the exceptions that it was made of
        error = error.cause
    lines = error.message.strip().splitlines()
    return lines[0].removeprefix(f"{error.cls_name}: ").rpartition(f"{error.cls_name}: ")[2] if lines else str(error)
