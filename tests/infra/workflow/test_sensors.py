"""Runs that start when the files they read have changed, or at a tick of the schedule when they are whole."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import dagster
import pytest

from cloze.infra.planner import Run
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.storage import Location
from tests.infra import toy_run as toy

Make = Callable[..., Run]


class Looks:
    """The sensor of the toy run's files, look after look, with its cursor."""

    def __init__(self, run: Run):
        self._sensor = definitions(ConfiguredRun(run.config)).resolve_sensor_def("toy_new_files")
        self._cursor: str | None = None

    def look(self) -> str | int:
        """The number of runs that it requests, or why it requests none."""
        with open_history() as instance, dagster.build_sensor_context(instance, cursor=self._cursor) as context:
            found = self._sensor.evaluate_tick(context)
        self._cursor = found.cursor or self._cursor
        return len(found.run_requests) if found.run_requests else str(found.skip_message)


@pytest.fixture
def looks(folder: str, own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Of a run that reads *.txt of the folder `in`, which has one file."""
    (Location(folder) / "in/a.txt").write_text("a")
    return Looks(toy.toy_run(monkeypatch, tmp_path / "root", f"{folder}/in/*.txt"))


def test_files_that_stand_still_are_requested_once(looks: Looks, folder: str) -> None:
    assert looks.look() == "1 files, which have changed; waits until they stand still"
    assert looks.look() == 1
    assert looks.look() == "1 files, as in the last run that was requested"
    (Location(folder) / "in/b.txt").write_text("half of")
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    (Location(folder) / "in/b.txt").write_text("half of a document")  # it grows between two looks
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    assert looks.look() == 1


def test_files_that_are_being_fetched_or_copied_are_not_taken(looks: Looks, folder: str) -> None:
    place = Location(folder) / "in"
    (place / ".partial/b.txt").write_text("half of a")
    assert [looks.look(), looks.look()] == [f"{place}: is not whole yet"] * 2
    (place / ".partial").delete()
    (place / "dump.json").write_text(json.dumps({"files": [{"name": "b.txt", "bytes": 9, "sha1": "0"}]}))
    assert looks.look() == f"{place}: is not whole yet"
    (place / "b.txt").write_text("b" * 9)
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    assert looks.look() == 1


def test_without_files_there_is_no_run(make: Make, tmp_path: Path) -> None:
    looks = Looks(make())
    (tmp_path / "source.txt").unlink()
    assert "source.txt: no such file" in str(looks.look())


@pytest.mark.usefixtures("own_dagster")
def test_a_tick_does_not_take_files_that_are_being_fetched_or_copied(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(watch_seconds: int, files: str = f"{folder}/in/*.txt") -> str | int:
        """The number of runs that it requests, or why it requests none."""
        watched = [f"schedule={{watch_seconds: {watch_seconds}}}"]
        run = toy.toy_run(monkeypatch, tmp_path / "root", files, overrides=watched)
        schedule = definitions(ConfiguredRun(run.config)).resolve_schedule_def("toy_schedule")
        with open_history() as instance, dagster.build_schedule_context(instance) as context:
            found = schedule.evaluate_tick(context)
        return len(found.run_requests) if found.run_requests else str(found.skip_message)

    place = Location(folder) / "in"
    assert tick(60) == 1  # its run ends with the line that there is no file
    if folder.startswith("s3://"):
        assert tick(60, "s3://no-such-bucket/*.txt") == 1
    for name in ("a.txt", "c.txt"):
        (place / name).write_text("half of a document")
        skipped = str(tick(60))
        assert skipped.startswith(f"{place}/")
        assert skipped.endswith(".txt: was changed less than 60 s ago (schedule.watch_seconds)")
    time.sleep(1.1)
    assert tick(1) == 1
    (place / ".partial/b.txt").write_text("half of b")
    assert tick(1) == f"{place}: is not whole yet"
    (place / ".partial").delete()
    (place / "dump.json").write_text(json.dumps({"files": [{"name": "b.txt", "bytes": 9, "sha1": "0"}]}))
    assert tick(1) == f"{place}: is not whole yet"
