"""The configuration of a run's schedule in Dagster."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Config, InputPath


class PartitionsConfig(Config):
    """One run for each language and date of a dump. `{language}`, `{wiki}` and `{date}` in the run's name and paths
    stand for those of `partition`: `name: wiki-{language}`, `files: ["dumps/{wiki}/{date}/*.xml*.bz2"]`."""

    languages: Annotated[list[str], Field(min_length=1)]
    """The languages, as `cloze fetch wikipedia LANG` names them: en, la, zh-min-nan."""
    dumps: str
    """Folder or s3://bucket/prefix with the fetched dumps: the --to of `cloze fetch wikipedia LANG`."""


class ScheduleConfig(Config):
    """When a run starts by itself. `schedule: 0 3 * * 0` is short for `schedule: {cron: 0 3 * * 0}`."""

    cron: str = "0 3 * * 0"
    """Cron expression, in UTC. The schedule is off until it is switched on in Dagster's pages."""
    cluster: Annotated[str | None, InputPath()] = None
    """File of the cluster that runs it as a job, as for `cloze submit RUN --cluster YAML`. Unset: this machine."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a run that Dagster has started is executed again after a crash. It continues from what is finished. An
    error that you can fix is not retried."""
    max_runtime_hours: Annotated[float, Field(gt=0)] = 168.0
    """Hours after which Dagster ends a run that it has started: training saves a checkpoint, finished parts are kept.
    It counts as a crash."""

    partitions: PartitionsConfig | None = None
    """A run for each language and date of a dump. A tick of the schedule starts those of the newest dumps."""
    watch_seconds: Annotated[int, Field(ge=1)] = 60
    """Seconds between two looks for new files. Changed files count when two successive looks agree on all of them. A
    tick of the schedule is skipped if one was changed in so many seconds before."""
    promote: bool = False
    """Promote the model of a whole run that the schedule or a sensor has started, after it has passed its checks."""
    webhook: str | None = None
    """Where a failed run, and a model that `promote` holds back, is reported, by a POST of JSON: a URL, or the name of
    an environment variable with one, so that it is not stored."""
    pages: str = "http://127.0.0.1:3000"
    """The address of Dagster's pages, for the links in such a report."""

    @model_validator(mode="before")
    @classmethod
    def _cron_alone(cls, value: Any) -> Mapping[str, Any] | Any:
        return {"cron": value} if isinstance(value, str) else value
