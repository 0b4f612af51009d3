"""Rows come back from JSON lines as they were, whatever their values hold."""

from pathlib import Path

import pytest

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.storage import Location

ROWS = [{"label": "a\u2028b\x85c\nd", "value": 0.1}, {"label": "é", "value": float("nan")}, {}]


@pytest.mark.parametrize("escaped", [True, False])
def test_line_separators_in_a_value_end_no_row(tmp_path: Path, escaped: bool) -> None:
    (tmp_path / "x.jsonl").write_bytes(json_lines.encode(ROWS, escaped=escaped))
    found = json_lines.read(Location(str(tmp_path / "x.jsonl")))
    assert str(found) == str(ROWS)  # a NaN is not equal to itself


def test_rows_are_escaped_unless_people_read_them() -> None:
    assert json_lines.encode([{"a": "é"}]) == b'{"a": "\\u00e9"}\n'
    assert json_lines.encode([{"a": "é"}], escaped=False) == '{"a": "é"}\n'.encode()


def test_a_file_that_is_not_there_yet_has_no_rows(tmp_path: Path) -> None:
    assert json_lines.read(Location(str(tmp_path / "x.jsonl"))) == []
