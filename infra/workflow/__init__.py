"""A run's stages as Dagster assets, with a job and a schedule. What a stage does is decided in planner.py.

`cloze run` materializes the assets in its own process (command.py); `python -m cloze.infra.workflow` starts Dagster's
pages and its daemon with the same assets (`defs`). Both keep their history in one DAGSTER_HOME (history.py).
"""

from cloze.infra.workflow.definitions import defs

__all__ = ["defs"]
