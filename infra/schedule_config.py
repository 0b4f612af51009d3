"""The configuration of a run's schedule in Dagster."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Config, InputPath


class ScheduleConfig(Config):
    """When a run starts by itself. `schedule: 0 3 * * 0` is short for `schedule: {cron: 0 3 * * 0}`."""

    cron: str = "0 3 * * 0"
    """Cron expression, in UTC. The schedule is off until it is switched on in Dagster's pages."""
    cluster: Annotated[str | None, InputPath()] = None
    """File of the cluster that runs it as a job, as in `cloze submit --cluster`. Unset: this machine."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a run that Dagster has started is executed again after a crash. It continues from what is finished. An
    error that you can fix is not retried."""
    max_runtime_hours: Annotated[float, Field(gt=0)] = 168.0
    """Hours after which Dagster ends a run that it has started: training saves a checkpoint, finished parts are kept.
    It counts as a crash."""

    @model_validator(mode="before")
    @classmethod
    def _cron_alone(cls, value: Any) -> Mapping[str, Any] | Any:
        return {"cron": value} if isinstance(value, str) else value
