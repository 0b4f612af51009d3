"""A failed run -> a report to the webhook of its schedule: the run, the stage, the cause in a line, and a link."""

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster_shared.error import SerializableErrorInfo

from cloze.infra.webhook import post, webhook_url
from cloze.infra.workflow.names import FAILED_STAGE, identifier
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.errors import UserError

_PARTITION = "dagster/partition"


def failure_sensor(configured: ConfiguredRun, job: UnresolvedAssetJobDefinition) -> list[dagster.SensorDefinition]:
    """Reports the runs of a job that fail, also by a check, and are not retried, to `schedule.webhook`; none without
    one. It is on."""
    schedule = configured.config.schedule
    if schedule.webhook is None:
        return []
    webhook, pages = schedule.webhook, schedule.pages.rstrip("/")

    def report(context: dagster.RunFailureSensorContext) -> None:
        if context.dagster_run.tags.get("dagster/will_retry") == "true":
            return
        message = _message(configured.name, context, pages)
        try:
            post(webhook_url(webhook), message)
            context.log.info(f"reported {message['dagster_run']}")
        except UserError as error:  # the next failure is reported all the same
            context.log.error(f"{error}; not reported: {message['text']}")

    sensor = dagster.run_failure_sensor(
        name=f"{identifier(configured.name)}_failures",
        monitored_jobs=[job],
        minimum_interval_seconds=30,
        default_status=dagster.DefaultSensorStatus.RUNNING,
        description="Reports a failed run to schedule.webhook.",
    )(report)
    return [sensor]


def _message(run_name: str, context: dagster.RunFailureSensorContext, pages: str) -> dict[str, str | None]:
    """`text` is what Slack, Mattermost and their like show."""
    run, link = context.dagster_run, f"{pages}/runs/{context.dagster_run.run_id}"
    stage, partition, cause = run.tags.get(FAILED_STAGE) or None, run.tags.get(_PARTITION), _cause(context)
    what = f"{run_name} {partition}" if partition else run_name
    return {
        "text": f"{what} failed{f' in {stage}' if stage else ''}: {cause} {link}",
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
