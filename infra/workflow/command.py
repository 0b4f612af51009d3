"""`cloze run`: the stages in this process, as one run in Dagster's history."""

import os
from collections.abc import Sequence

from cloze.infra.execution import started_run
from cloze.infra.planner import Run
from cloze.infra.workflow.assets import RunSettings
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import PROCESS, cancel_orphans, open_history, process_tag
from cloze.infra.workflow.names import asset_key, identifier, op_name

_COMMAND = "cloze/command"  # a tag of the run in the history
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}  # the display replaces it


def materialize(
    run: Run, command: str, until: str | None = None, force: Sequence[str] = (), *, wait: bool = True
) -> int:
    """Run the stages up to `until` in this process, as one run in Dagster's history.

    Returns 0; raises the exception of the stage that failed. Unless it is to `wait` for another run that works on the
    same output, that is an ArtifactInUse.
    """
    name, settings = run.config.name, RunSettings(force=list(force), cluster="", wait=wait)
    with started_run(run, until, force) as stages, open_history() as instance:
        cancel_orphans(instance)
        definitions(run.config).resolve_job_def(identifier(name)).execute_in_process(
            {"loggers": _QUIET, "ops": {op_name(name): {"config": settings.model_dump()}}},
            instance,
            asset_selection=[asset_key(name, stage.name) for stage in stages],
            tags={_COMMAND: command, PROCESS: process_tag(os.getpid())},
        )
    return 0
