"""The names of a run and of its stages in Dagster."""

import dagster


def asset_key(run_name: str, stage_name: str) -> dagster.AssetKey:
    return dagster.AssetKey([run_name, stage_name])


def identifier(name: str) -> str:
    """A name for Dagster's jobs, groups and resources, which may not contain dashes."""
    return name.replace("-", "_")


def op_name(run_name: str) -> str:
    """The op that executes the stages of a run."""
    return f"{identifier(run_name)}_stages"
