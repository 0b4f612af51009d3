"""A run's finished stage -> the results of its checks."""

from typing import Protocol

from cloze.infra.checks.results import CheckResult
from cloze.pipeline.core.artifacts import Artifact


class CheckedRun(Protocol):
    """What the checks need of a planner's `Run`."""


def check_stage(run: CheckedRun, stage: str, artifact: Artifact) -> list[CheckResult]:
    """The results of all checks of a stage whose output is finished. Reads, writes nothing; fails for no result."""
    return []
