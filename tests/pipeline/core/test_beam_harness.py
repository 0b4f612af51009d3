import sys
from pathlib import Path

import pytest

from cloze.pipeline.core.beam_harness import HarnessActor, HarnessReport


def test_a_harness_that_cannot_be_started_is_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    reports = list(HarnessActor().run({}))
    error = f"[Errno 2] No such file or directory: '{tmp_path}/python'"
    assert reports == [HarnessReport("", None, error)]
    assert reports[0].loss == f"as its process could not run ({error})"


def test_a_harness_without_room_for_its_folder_is_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    (report,) = HarnessActor().run({})
    assert report.loss.startswith("as its process could not run ([Errno 2] No such file or directory")


def test_a_harness_that_exits_is_lost_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "false")
    *_, last = HarnessActor().run({})
    assert last == HarnessReport("", 1) and last.loss == "with exit status 1"
    assert not list(tmp_path.iterdir())
