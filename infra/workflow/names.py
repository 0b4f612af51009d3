"""The names of a run and of its stages in Dagster."""

import re

import dagster

#: A tag of materializations and observations: the version of the data, for a stage its fingerprint.
DATA_VERSION = "dagster/data_version"
#: A tag of a run that has failed: the stage.
FAILED_STAGE = "cloze/failed_stage"


def asset_key(run_name: str, stage_name: str) -> dagster.AssetKey:
    return dagster.AssetKey([run_name, stage_name])


def source_key(run_name: str, stage_name: str, name: str) -> dagster.AssetKey:
    """The asset of the user's files that are an input of a stage."""
    return dagster.AssetKey([run_name, "files", stage_name, re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)])


def identifier(name: str) -> str:
    """A name for Dagster's jobs, groups and resources, which may not contain dashes."""
    return name.replace("-", "_")


def check_name(name: str) -> str:
    """A check's name for Dagster: letters, digits and underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII)


def op_name(run_name: str) -> str:
    """The op that executes the stages of a run."""
    return f"{identifier(run_name)}_stages"
