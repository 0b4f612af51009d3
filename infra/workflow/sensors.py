"""The user's files -> runs that Dagster's sensors and a tick of the schedule request, once the files are whole.

The sensors are off until they are switched on.
"""

import json
from collections.abc import Iterator

import dagster
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from cloze.infra import new_files
from cloze.infra.fetch.finished import FinishedDump
from cloze.infra.planner import Run
from cloze.infra.workflow.names import identifier
from cloze.infra.workflow.partitions import ConfiguredRun, key_of, newest
from cloze.pipeline.core.errors import UserError

_OFF = dagster.DefaultSensorStatus.STOPPED


def file_sensor(configured: ConfiguredRun, job: UnresolvedAssetJobDefinition) -> dagster.SensorDefinition:
    """Requests a run for each new dump of a run with partitions; of another run when its files have changed."""
    function = _new_dumps if configured.partitions else _new_files
    kind = "dump" if configured.partitions else "files"

    def evaluate(context: dagster.SensorEvaluationContext) -> dagster.SensorResult | dagster.SkipReason:
        return function(configured, context)

    return dagster.SensorDefinition(
        name=f"{identifier(configured.name)}_new_{kind}",
        job=job,
        evaluation_fn=evaluate,
        minimum_interval_seconds=configured.config.schedule.watch_seconds,
        default_status=_OFF,
        description=" ".join((function.__doc__ or "").split()),
    )


def newest_dumps(
    configured: ConfiguredRun, instance: dagster.DagsterInstance
) -> Iterator[dagster.RunRequest | dagster.SkipReason]:
    """What a tick of the schedule requests: a run for the newest finished dump of each language."""
    dumps = configured.dumps()
    configured.add_dates(instance, [dump.date for dump in dumps])
    for dump in newest(dumps):
        yield dagster.RunRequest(partition_key=key_of(dump.language, dump.date))
    if not dumps:
        yield dagster.SkipReason("no dump is finished")


def whole_files(configured: ConfiguredRun) -> Iterator[dagster.RunRequest | dagster.SkipReason]:
    """What a tick of the schedule requests of a run without partitions: a run, unless its files are being written."""
    seconds = configured.config.schedule.watch_seconds
    try:
        found = new_files.stamps(Run(configured.config))
        folder = new_files.unfinished_folder(found)
    except (UserError, OSError):  # the run ends with that line, which is reported; or its cluster can read the files
        yield dagster.RunRequest()
        return
    if folder:
        yield dagster.SkipReason(f"{folder}: is not whole yet")
    elif file := new_files.just_changed(found, seconds):
        yield dagster.SkipReason(f"{file}: was changed less than {seconds} s ago (schedule.watch_seconds)")
    else:
        yield dagster.RunRequest()


def _new_dumps(
    configured: ConfiguredRun, context: dagster.SensorEvaluationContext
) -> dagster.SensorResult | dagster.SkipReason:
    """Requests a run of a language when `cloze fetch` has finished a newer dump of it: once for each dump."""
    dumps = configured.dumps()
    seen: dict[str, str] = json.loads(context.cursor or "{}")  # language -> date and digest
    new = [dump for dump in newest(dumps) if _is_new(dump, seen.get(dump.language, ""))]
    if not new:
        return dagster.SkipReason(f"no new dump: {', '.join(_in_words(newest(dumps))) or 'none is finished'}")
    configured.add_dates(context.instance, [dump.date for dump in dumps])
    context.update_cursor(json.dumps({**seen, **{dump.language: f"{dump.date} {dump.digest}" for dump in new}}))
    return dagster.SensorResult(
        run_requests=[
            dagster.RunRequest(
                run_key=f"{dump.language} {dump.date} {dump.digest}", partition_key=key_of(dump.language, dump.date)
            )
            for dump in new
        ]
    )


def _is_new(dump: FinishedDump, seen: str) -> bool:
    """Whether a dump is another than the one that was seen last, and not older: that one may have been deleted."""
    date, _, digest = seen.partition(" ")
    return dump.digest != digest and dump.date >= date


def _in_words(dumps: list[FinishedDump]) -> Iterator[str]:
    return (f"the newest of {dump.language} is {dump.date}" for dump in dumps)


def _new_files(
    configured: ConfiguredRun, context: dagster.SensorEvaluationContext
) -> dagster.SensorResult | dagster.SkipReason:
    """Requests a run when files that it reads were added or changed, and two successive looks agree on all of them."""
    cursor: dict[str, str] = json.loads(context.cursor or "{}")
    try:
        found = new_files.stamps(Run(configured.config))
    except UserError as error:
        return dagster.SkipReason(str(error))
    digest = new_files.digest(found)
    if digest == cursor.get("requested"):
        return dagster.SkipReason(f"{len(found):,} files, as in the last run that was requested")
    context.update_cursor(json.dumps({**cursor, "seen": digest}))
    if folder := new_files.unfinished_folder(found):
        return dagster.SkipReason(f"{folder}: is not whole yet")
    if digest != cursor.get("seen"):
        return dagster.SkipReason(f"{len(found):,} files, which have changed; waits until they stand still")
    context.update_cursor(json.dumps({"seen": digest, "requested": digest}))
    return dagster.SensorResult(run_requests=[dagster.RunRequest(run_key=digest)])
