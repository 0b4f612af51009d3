import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cloze.pipeline.core import scratch as scratch_module
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.scratch import delete_abandoned, scratch_folder
from cloze.pipeline.core.storage import Location
from tests.paths import REPOSITORY


@pytest.fixture
def artifact(folder: str) -> Location:
    return Location(folder) / "artifact"


def folders(artifact: Location) -> list[Location]:
    return [found for found in artifact.folders() if found.name.startswith("scratch-")]


def stopped(artifact: Location) -> Location:
    """The folder of an attempt that was interrupted, with a file in it."""
    with pytest.raises(KeyboardInterrupt), scratch_folder(artifact) as folder:
        (folder / "rows").write_text("half")
        raise KeyboardInterrupt
    return folder


def test_it_goes_away_when_the_attempt_is_finished(artifact: Location) -> None:
    with scratch_folder(artifact) as folder:
        (folder / "rows").write_text("all")
        assert len(folders(artifact)) == 1
    assert artifact.files() == []


def test_two_concurrent_attempts_have_separate_folders_and_neither_removes_the_others(artifact: Location) -> None:
    with scratch_folder(artifact) as slow:
        (slow / "rows").write_text("slow")
        with scratch_folder(artifact) as fast:
            assert fast != slow and not (fast / "rows").exists()
            (fast / "rows").write_text("fast")
        assert (slow / "rows").read_text() == "slow" and not fast.exists()
    assert artifact.files() == []


def test_the_next_attempt_takes_over_the_folder_of_a_stopped_one(artifact: Location) -> None:
    left = stopped(artifact)
    with scratch_folder(artifact) as folder:
        assert folder == left and (folder / "rows").read_text() == "half"
        assert len(folders(artifact)) == 1
        with scratch_folder(artifact) as other:
            assert other != left
    assert artifact.files() == []


def test_of_several_that_would_take_it_over_one_does(artifact: Location) -> None:
    left = stopped(artifact)
    start, found = threading.Barrier(4, timeout=60), list[Location]()

    def attempt() -> None:
        start.wait()
        with scratch_folder(artifact) as folder:
            found.append(folder)
            start.wait()

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 4 and found.count(left) == 1
    assert artifact.files() == []


def test_the_next_attempt_takes_over_the_folder_of_a_killed_one(tmp_path: Path) -> None:
    code = f"""
from cloze.pipeline.core.scratch import delete_abandoned, scratch_folder
from cloze.pipeline.core.storage import Location
with scratch_folder(Location({str(tmp_path)!r})) as folder:
    (folder / "rows").write_text("half")
    print(folder, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        left = process.stdout.readline().strip()
        with scratch_folder(Location(str(tmp_path))) as folder:
            assert folder.uri != left
        assert Path(left, "rows").exists()
        os.kill(process.pid, signal.SIGKILL)
    with scratch_folder(Location(str(tmp_path))) as folder:
        assert folder.uri == left and (folder / "rows").read_text() == "half"
    assert not list(tmp_path.iterdir())


def silent_for(hours: float, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's clock: that file was written so long ago."""
    real = Location.info

    def info(file: Location) -> pafs.FileInfo:
        said = real(file)
        if not file.uri.endswith(owner):
            return said
        return pafs.FileInfo(said.path, said.type, size=said.size, mtime=datetime.now(UTC) - timedelta(hours=hours))

    monkeypatch.setattr(Location, "info", info)


@pytest.mark.parametrize(("hours", "taken"), [(0.5, False), (1.5, True)])
def test_an_attempt_on_another_machine_counts_as_killed_after_an_hour_without_heartbeat(
    artifact: Location, monkeypatch: pytest.MonkeyPatch, hours: float, taken: bool
) -> None:
    there = scratch_module._this_process().model_copy(update={"machine": "another"})
    with monkeypatch.context() as patch:
        patch.setattr(scratch_module, "_this_process", lambda *_: there)
        patch.setattr(scratch_module, "_write_state", lambda *_: True)  # it was cut off
        left = stopped(artifact)
    silent_for(hours, f"{left.uri.split('/')[-2]}/owner-0.json", monkeypatch)
    with scratch_folder(artifact) as folder:
        assert (folder == left) == taken
    assert (left / "rows").exists() != taken


def test_an_attempt_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "_HEARTBEAT", 0.01)
    with scratch_folder(Location(str(tmp_path))) as folder:
        owner = Path(folder.path).parent / "owner-0.json"
        first = owner.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while owner.stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert owner.stat().st_mtime_ns > first


def test_a_folder_that_a_listing_omits_is_neither_taken_over_nor_removed(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = stopped(artifact)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "folders", lambda _: [])
        with scratch_folder(artifact) as folder:
            assert folder != left
    assert (left / "rows").exists()
    with scratch_folder(artifact) as folder:
        assert folder == left


def test_a_half_removed_folder_of_a_killed_attempt_is_not_taken_over(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scratch_module, "_remove", lambda _: None)
        with scratch_folder(artifact) as finished:
            (finished / "rows").write_text("all")
    died(monkeypatch)
    with scratch_folder(artifact) as folder:
        assert folder != finished
    assert artifact.files() == []


def died(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is another, and the one it was runs no more."""
    monkeypatch.setattr(scratch_module, "_start_time", lambda process: "later" if process == os.getpid() else "")


def test_a_folder_half_removed_by_another_killed_attempt_is_not_taken_over(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scratch_module._remove

    def half(folder: Location) -> None:
        if folder.uri != left.uri.rpartition("/")[0]:
            real(folder)
            return
        (left / "rows").delete()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), scratch_folder(artifact) as other:
        left = stopped(artifact)  # while the other is at work
        (left / "done").write_text("")
        patch.setattr(scratch_module, "_remove", half)
    died(monkeypatch)
    with scratch_folder(artifact) as folder:
        assert folder != left
    assert artifact.files() == [] and not other.exists()


def test_an_attempt_that_resumes_after_a_takeover_leaves_the_folder_to_its_successor(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = scratch_module._this_process().model_copy(update={"machine": "another"})
    monkeypatch.setattr(scratch_module, "_HEARTBEAT", 0.01)
    paused = scratch_folder(artifact)
    with monkeypatch.context() as patch:
        patch.setattr(scratch_module, "_this_process", lambda *_: there)
        patch.setattr(scratch_module, "run_periodically", lambda *_: nullcontext())
        folder = paused.__enter__()
    owner = f"{folder.uri.split('/')[-2]}/owner-0.json"
    with monkeypatch.context() as patch:
        silent_for(1.5, owner, patch)
        heir = scratch_folder(artifact)
        assert heir.__enter__() == folder
    (folder / "rows").write_text("the heir's")
    paused.__exit__(None, None, None)
    assert (folder / "rows").exists()
    assert scratch_module._send_heartbeat(artifact / owner, artifact / owner.replace("0.json", "1.json")) is False
    heir.__exit__(None, None, None)
    assert artifact.files() == []


def test_a_process_of_this_machine_that_was_suspended_keeps_its_folder(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_folder(artifact) as suspended:
        silent_for(9, f"{suspended.uri.split('/')[-2]}/owner-0.json", monkeypatch)
        with scratch_folder(artifact) as folder:
            assert folder != suspended


def test_a_zombie_process_does_not_keep_its_folder() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert scratch_module._start_time(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its exit code is not fetched
        assert scratch_module._start_time(process.pid) == ""


def test_one_that_lacks_a_file_is_not_the_next_ones(artifact: Location) -> None:
    said = r"/scratch-\w+: a file in it was deleted, by another run or by hand; run again"
    with pytest.raises(UserError, match=said), scratch_folder(artifact) as lacking:
        (lacking / "rows.done").write_text("")
        (lacking / "rows").read_bytes()
    with scratch_folder(artifact) as folder:
        assert folder != lacking


def test_one_that_lacks_a_file_of_another_place_is_the_next_ones(artifact: Location) -> None:
    with pytest.raises(FileNotFoundError), scratch_folder(artifact) as left:
        (left / "rows").write_text("half")
        (artifact / "dump.xml").read_bytes()
    with scratch_folder(artifact) as folder:
        assert folder == left
    assert artifact.files() == []


def test_files_written_after_the_removal_of_a_folder_are_removed_by_the_next_attempt(artifact: Location) -> None:
    with scratch_folder(artifact) as removed:
        pass
    (removed / "rows").write_text("late")
    with scratch_folder(artifact) as folder:
        assert folder != removed
    assert artifact.files() == []


def test_delete_abandoned_removes_folders_of_ended_attempts_but_not_of_a_running_one(artifact: Location) -> None:
    stopped(artifact)
    (artifact / "manifest.json").write_text("{}")
    with scratch_folder(artifact) as working:  # takes the stopped one's over
        (working / "rows").write_text("half")
        left = stopped(artifact)
        delete_abandoned(artifact)
        assert not left.exists() and (working / "rows").exists()
    assert artifact.files() == [artifact / "manifest.json"]


def test_delete_abandoned_does_nothing_in_a_read_only_folder(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = stopped(artifact)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Location, "write_bytes", denied)
    delete_abandoned(artifact)
    assert (left / "rows").exists()
