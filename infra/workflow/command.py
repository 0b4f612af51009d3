"""`cloze run`: the stages in this process, as one run in Dagster's history."""

import logging
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import dagster

from cloze.infra.execution import active_run, started_run
from cloze.infra.planner import Run
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.launched_run import StagesToRun, StartedStages
from cloze.infra.workflow.names import asset_key, identifier, op_name
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.run_process import end_orphans, process_tag
from cloze.infra.workflow.run_settings import RunSettings

_COMMAND = "cloze/command"  # a tag of the run in the history
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}  # the display replaces it


def materialize(
    run: Run, command: str, until: str | None = None, force: Sequence[str] = (), *, wait: bool = True
) -> int:
    """Run the stages up to `until` in this process, as one run in Dagster's history.

    Returns 0; raises the exception of the stage that failed. Unless it is to `wait` for another run that works on the
    same output, that is an ArtifactInUse.
    """
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # a signal while it closes a file is no error
    configured = ConfiguredRun(run.config)
    name, settings = configured.name, RunSettings(force=list(force), wait=wait)

    @contextmanager
    def begin(
        context: dagster.AssetExecutionContext, *_: ConfiguredRun | RunSettings | Collection[str]
    ) -> Iterator[StartedStages]:
        with active_run(run.config, context.resources.ray) as active:
            to_run = StagesToRun(active, stages, force)
            yield StartedStages(active.run, stages, to_run.executed(wait=wait))

    with started_run(run, until, force) as stages, open_history() as instance:
        end_orphans(instance)
        if run.config.partition:
            configured.add_dates(instance, [run.config.partition.date])
        run_id = str(uuid.uuid4())
        try:
            definitions(configured, begin).resolve_job_def(identifier(name)).execute_in_process(
                {"loggers": _QUIET, "ops": {op_name(name): {"config": settings.model_dump()}}},
                instance,
                asset_selection=[asset_key(name, stage.name) for stage in stages],
                partition_key=configured.partition_key,
                run_id=run_id,
                tags={_COMMAND: command, **process_tag(run_id)},
            )
        except dagster.DagsterExecutionInterruptedError:  # by a signal that came in Dagster's code, between stages
            raise KeyboardInterrupt from None
    return 0
