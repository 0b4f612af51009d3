"""The configuration of a run in Dagster's launchpad."""

import dagster
from pydantic import Field


class RunSettings(dagster.Config):
    """What `cloze run` takes as options and overrides."""

    until: str | None = Field(default=None, description="The last stage to run: --until.")
    force: list[str] = Field(default=[], description="Stages to run again although they are finished: --force.")
    overrides: list[str] = Field(
        default=[], description="Keys of the configuration with other values for this run, such as vocab.size=8000."
    )
    cluster: str | None = Field(
        default=None,
        description="File of the cluster that runs it as a job; empty for this machine. By default schedule.cluster.",
    )
    wait: bool = Field(default=True, description="Wait for another run that works on the same output; else fail.")
