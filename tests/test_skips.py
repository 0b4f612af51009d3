"""Continuous integration refuses skipped tests that are not listed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

_LISTED = (
    "tests.infra.workflow.test_history_in_postgres",
    "test_the_command_line_and_dagster_share_a_history_in_postgres",
)


@pytest.mark.parametrize(
    ("module", "name", "status"),
    [
        (*_LISTED, 0),
        (_LISTED[0], "test_another", 1),
        ("tests.infra.terraform.test_environments", "test_each_rule_holds[dev]", 0),  # all of a module
        ("tests.infra.terraform.test_environments_of_others", "test_each_rule_holds[dev]", 1),
    ],
)
def test_a_skipped_test_is_listed_itself_or_with_its_module(
    tmp_path: Path, module: str, name: str, status: int
) -> None:
    case = f'<testcase classname="{module}" name="{name}"><skipped message="not here"/></testcase>'
    (tmp_path / "report.xml").write_text(f"<testsuite>{case}</testsuite>")
    command = [sys.executable, str(REPOSITORY / ".ci/skips.py"), str(tmp_path / "report.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status and (f"{module}.{name} was skipped (not here)" in done.stdout) == bool(status)
