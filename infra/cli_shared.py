"""What the commands of the command line share: the run that is named, overrides, JSON."""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloze.infra.planner import Run


def load_run(options: argparse.Namespace) -> "Run":
    """The run of the options. Raises UserError when there is none, or it has no such stage."""
    quiet_engines()
    from cloze.infra.open_run import open_run, refuse_promoted

    if options.command in ("run", "finetune", "submit"):
        refuse_promoted(options.run, options.command)
    run = open_run(options.run, options.overrides, options.root, only_tasks=options.only_tasks)
    for note in run.notes:
        print(f"cloze: {note}", file=sys.stderr)
    for name in [*(options.force or []), *([options.until] if options.until else [])]:
        run.stage(name)
    return run


def quiet_engines() -> None:
    """Let Ray and Dagster, which read this when they are imported, send no statistics."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")


def is_override(word: str) -> bool:
    """Whether a word of the command line is key=value or a YAML file."""
    return not word.startswith("-") and ("=" in word or word.endswith((".yaml", ".yml")))


def print_json(value: Any) -> int:
    """Print with null for numbers that JSON does not have. Returns 0."""
    print(json.dumps(_finite(value), indent=1, allow_nan=False))
    return 0


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
