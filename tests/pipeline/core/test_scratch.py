import os
import time
from pathlib import Path

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.leases import LeaseLost, hold_lease, refuse_to_wait
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.scratch import delete_abandoned, scratch_folder
from cloze.pipeline.core.storage import Location


@pytest.fixture
def out(folder: str) -> Output:
    return Output(Location(folder) / "artifact", "toy", 1, "f" * 16)


def stopped(out: Output) -> Location:
    """The folder of an attempt that was interrupted, with a file in it."""
    with pytest.raises(KeyboardInterrupt), scratch_folder(out) as folder:
        (folder / "rows").write_text("half")
        raise KeyboardInterrupt
    return folder


def test_it_is_deleted_when_the_attempt_is_finished(out: Output) -> None:
    with scratch_folder(out) as folder:
        (folder / "rows").write_text("all")
    assert out.location.files() == []


def test_the_next_attempt_continues_with_the_files_of_a_stopped_one(out: Output) -> None:
    left = stopped(out)
    with scratch_folder(out) as folder:
        assert folder == left and (folder / "rows").read_text() == "half"
    assert out.location.files() == []


def test_one_that_lacks_a_file_is_deleted(out: Output) -> None:
    expected = r"/scratch: a file in it was deleted; run again"
    with pytest.raises(UserError, match=expected), scratch_folder(out) as folder:
        (folder / "rows.done").write_text("")
        (folder / "rows").read_bytes()
    assert out.location.files() == []


def test_one_that_lacks_a_file_of_another_place_stays(out: Output) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder(out) as folder:
        (folder / "rows").write_text("half")
        (out.location / "dump.xml").read_bytes()
    assert (folder / "rows").exists()


@pytest.mark.parametrize("missing", [False, True])
def test_an_attempt_that_has_lost_its_lease_deletes_nothing(out: Output, missing: bool) -> None:
    with hold_lease(out.location, refuse_to_wait(out.location)) as out.lease:
        pass
    with pytest.raises(LeaseLost), scratch_folder(out) as folder:
        (folder / "rows").write_text("of the run that took over")
        if missing:
            (folder / "other").read_bytes()
    assert (folder / "rows").exists()


def test_delete_abandoned_deletes_what_ended_attempts_have_left_unless_a_run_is_at_work(out: Output) -> None:
    left = [stopped(out), out.location / "scratch-0123456789ab"]
    (left[1] / "owner-0.json").write_text("of an earlier version")
    (out.location / "manifest.json").write_text("{}")
    with hold_lease(out.location, refuse_to_wait(out.location)):
        delete_abandoned(out.location)
        assert all(folder.exists() for folder in left)
    delete_abandoned(out.location)
    assert out.location.files() == [out.location / "manifest.json"]


def test_delete_abandoned_deletes_old_temporary_files_of_killed_writers(tmp_path: Path) -> None:
    old, fresh = tmp_path / "parts/.a.json.0123.tmp", tmp_path / "parts/.b.json.4567.tmp"
    old.parent.mkdir()
    for file in (old, fresh):
        file.write_text("half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    delete_abandoned(Location(str(tmp_path)))
    assert fresh.exists() and not old.exists()


def test_delete_abandoned_does_nothing_in_a_read_only_folder(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    left = stopped(out)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cloze.pipeline.core.conditional_writes.create", denied)
    monkeypatch.setattr("cloze.pipeline.core.conditional_writes.put", denied)
    delete_abandoned(out.location)
    assert (left / "rows").exists()
