"""The settings of Dagster's instance: the dagster.yaml that Cloze writes, and what a user's own file lacks."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloze.infra.workflow.queue import ROOT
from cloze.pipeline.core import yaml_text

_TEXT = f"""\
# Written by Cloze, which keeps a file that you have changed.
telemetry: {{enabled: false}}
nux: {{enabled: false}}
# One run at a time for a root; the others wait in the queue.
concurrency:
  runs:
    tag_concurrency_limits:
    - {{key: {ROOT}, value: {{applyLimitPerUniqueValue: true}}, limit: 1}}
run_coordinator: {{module: cloze.infra.workflow.queue, class: RootQueue}}
# Runs whose process has ended are ended, and executed again as often as their schedule's retries say.
run_launcher: {{module: cloze.infra.workflow.launcher, class: ProcessLauncher}}
run_monitoring: {{enabled: true, poll_interval_seconds: 15, cancel_timeout_seconds: 60}}
run_retries: {{enabled: true}}
"""
_EARLIER_TEXTS = ("telemetry:\n  enabled: false\nnux:\n  enabled: false\n",)


def write_settings(file: Path) -> None:
    """Write the settings if there are none, or those of an earlier version. Raises OSError."""
    if file.exists() and file.read_text() not in _EARLIER_TEXTS:
        return
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(_TEXT)
    new.replace(file)


def lacking(file: Path) -> list[str]:
    """The keys that a user's own file lacks, or sets to another value than Cloze's."""
    expected, found = _loaded(_TEXT, file), _loaded(file.read_text(), file)
    compared = ("concurrency", "run_coordinator", "run_launcher", "run_monitoring", "run_retries")
    return [key for key in compared if not _contains(found.get(key), expected[key])]


def _loaded(text: str, file: Path) -> Mapping[str, Any]:
    value, _ = yaml_text.read(text, str(file))
    return value if isinstance(value, Mapping) else {}


def _contains(found: Any, expected: Any) -> bool:
    """Whether `found` has all that is expected; numbers may differ."""
    if isinstance(expected, Mapping):
        return isinstance(found, Mapping) and all(_contains(found.get(key), expected[key]) for key in expected)
    if isinstance(expected, list):
        return isinstance(found, list) and all(item in found for item in expected)
    return found == expected or (isinstance(expected, int) and not isinstance(expected, bool))
