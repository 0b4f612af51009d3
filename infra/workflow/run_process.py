"""Which process executes a run in Dagster's history, and the end of runs whose process has ended.

After kill -9 or a power failure Dagster counts a run as running for ever.
"""

from contextlib import suppress

import dagster
from pydantic import ValidationError

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.processes import Process, ended_with_boot, this_process

_TAG = "cloze/process"
ENDED = "The run's process has ended without reporting it: it was killed, or its machine was."
#: The states of a run that was handed to a process and has not ended.
EXECUTED = [
    dagster.DagsterRunStatus.NOT_STARTED,
    dagster.DagsterRunStatus.STARTING,
    dagster.DagsterRunStatus.STARTED,
    dagster.DagsterRunStatus.CANCELING,
]


class _Record(Config):
    """The value of the tag. A run that is retried begins with the tags of the first attempt, hence the run's id."""

    run: str
    process: Process


def process_tag(run_id: str) -> dict[str, str]:
    """The tag of a run that this process executes."""
    return {_TAG: _Record(run=run_id, process=this_process()).model_dump_json()}


def process_of(run: dagster.DagsterRun) -> Process | None:
    """The process that executes a run; None before it has told."""
    value = run.tags.get(_TAG, "")
    with suppress(ValidationError):
        record = _Record.model_validate_json(value)
        return record.process if record.run == run.run_id else None
    return _of_earlier_version(value)


def _of_earlier_version(tag: str) -> Process | None:
    """`host pid start`, which ended with the boot."""
    host, pid, start = [*tag.split(), "", "", ""][:3]
    here = this_process()
    return Process(host=host, pid=int(pid), machine=here.machine, started=start) if host == here.host else None


def has_ended(run: dagster.DagsterRun) -> bool:
    """Whether a run's process has ended for certain."""
    process = process_of(run)
    return process is not None and ended_with_boot(process)


def end_orphans(instance: dagster.DagsterInstance) -> None:
    """Mark the runs as failed whose process has ended. Dagster's daemon then retries those that it had started."""
    for run in instance.get_runs(dagster.RunsFilter(statuses=EXECUTED)):
        if has_ended(run):
            report_ended(instance, run)


def end_runs_of_host(instance: dagster.DagsterInstance) -> None:
    """Mark the runs as ended whose process was on this host: for the first process of a pod, whose host's name is that
    of the pod before it on the same boot of a machine."""
    for run in instance.get_runs(dagster.RunsFilter(statuses=EXECUTED)):
        process = process_of(run)
        if process and process.host == this_process().host:
            report_ended(instance, run)


def report_ended(instance: dagster.DagsterInstance, run: dagster.DagsterRun) -> None:
    """Mark a run as canceled that was to be canceled, otherwise as failed."""
    if run.status == dagster.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, ENDED)
    else:
        instance.report_run_failed(run, ENDED)
