"""What the checks store next to a run's configuration, under <root>/runs/.

NAME.passed.json: the figures of the last run that passed all its checks, by stage. A run that fails a check leaves it:
bad input fails as often as it is run. NAME.checks.json: the results of the last checks, for the report.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from cloze.infra.checks.check import Figure
from cloze.infra.checks.results import CheckResult
from cloze.pipeline.core.artifacts import Fact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


class StageFigures(Fact):
    """A stage's fingerprint, a digest of its settings and of those of the stages before it, and its figures."""

    fingerprint: str
    settings: str = ""
    figures: dict[str, list[Figure]] = Field(default={})  # by the name of their check


def read_passed(root: Location, run: str) -> dict[str, StageFigures]:
    """Stage -> its figures in the last run that passed; empty if none has. Raises UserError for a damaged file."""
    file = _passed_file(root, run)
    try:
        return {name: StageFigures.model_validate(stage) for name, stage in json.loads(file.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, ValidationError, AttributeError) as error:
        raise UserError(f"{file}: is damaged; delete it: the next run that passes writes it again") from error


def write_passed(root: Location, run: str, stages: Mapping[str, StageFigures]) -> None:
    _write(_passed_file(root, run), {name: stage.model_dump() for name, stage in stages.items()})


def read_results(root: Location, run: str) -> dict[str, dict[str, Any]]:
    """Stage -> its fingerprint and the results of its checks as plain JSON; empty if there are none."""
    try:
        found = json.loads(_results_file(root, run).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # only the report depends on it
        return {}
    return found if isinstance(found, dict) else {}


def write_results(root: Location, run: str, stage: str, fingerprint: str, results: Sequence[CheckResult]) -> None:
    """Store the results of one stage's checks next to those of the other stages."""
    before = read_results(root, run)
    after = {**before, stage: {"fingerprint": fingerprint, "results": [result.plain for result in results]}}
    if after != before:
        _write(_results_file(root, run), after)


def _write(file: Location, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1))


def _passed_file(root: Location, run: str) -> Location:
    return root / "runs" / f"{run}.passed.json"


def _results_file(root: Location, run: str) -> Location:
    return root / "runs" / f"{run}.checks.json"
