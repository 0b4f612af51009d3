"""A run's stages as Dagster assets, with a job and a schedule. What a stage does is decided in planner.py.

`cloze run` materializes the assets in its own process (command.py); `python -m cloze.infra.workflow` starts Dagster's
pages and its daemon with the same assets (`defs`). Both keep their history in one DAGSTER_HOME (history.py).
"""

import dagster


@dagster.definitions
def defs() -> dagster.Definitions:
    """The definitions of `dagster dev -m cloze.infra.workflow`."""
    # Dagster's daemon and webserver import this package for its queue and launcher: they need no stages, and no torch.
    from cloze.infra.workflow.definitions import definitions_of_runs

    return definitions_of_runs()


__all__ = ["defs"]
