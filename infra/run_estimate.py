"""ROOT/runs/NAME.estimate.json: what each stage of a run was estimated to take when the run started."""

import json
from collections.abc import Mapping
from typing import Any

from cloze.pipeline.core.storage import Location


def read_estimates(root: Location, run: str) -> dict[str, dict[str, Any]]:
    """Stage -> its estimate, as `StageEstimate.plain`, and its fingerprint; empty if the run has none."""
    try:
        found = json.loads(_file(root, run).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):  # only the report's comparison depends on it
        return {}
    return found if isinstance(found, dict) else {}


def write_estimates(root: Location, run: str, estimates: Mapping[str, Mapping[str, Any]]) -> None:
    text = json.dumps(estimates, indent=1)
    _file(root, run).write_text(text)


def _file(root: Location, run: str) -> Location:
    return root / "runs" / f"{run}.estimate.json"
