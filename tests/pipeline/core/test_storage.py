import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location, find_files


def test_written_bytes_are_read_back(folder: str) -> None:
    file = Location(folder) / "a/b/c.txt"
    assert not file.exists()
    file.write_text("first")
    file.write_bytes("zweite Zeile, größer".encode())
    assert file.exists() and file.is_file()
    assert file.read_text() == "zweite Zeile, größer"
    assert file.size() == len("zweite Zeile, größer".encode())
    with file.open() as reader:
        reader.seek(7)
        assert reader.read(5) == b"Zeile"


def test_an_empty_file_is_a_file(folder: str) -> None:
    file = Location(folder) / "empty"
    file.write_bytes(b"")
    assert file.is_file() and file.size() == 0 and file.read_bytes() == b""


def test_files_are_sorted_and_found_at_any_depth(folder: str) -> None:
    root = Location(folder)
    for name in ("b.txt", "a/z.txt", "a/c/d.txt"):
        (root / name).write_text(name)
    assert root.files() == [root / "a/c/d.txt", root / "a/z.txt", root / "b.txt"]
    assert (root / "a").files() == [root / "a/c/d.txt", root / "a/z.txt"]
    assert (root / "nowhere").files() == []


def test_deleting_takes_a_file_or_a_folder_or_nothing(folder: str) -> None:
    root = Location(folder)
    for name in ("kept/a.txt", "gone/a.txt", "gone/b/c.txt", "file.txt"):
        (root / name).write_text(name)
    (root / "gone").delete()
    (root / "file.txt").delete()
    (root / "never").delete()
    assert root.files() == [root / "kept/a.txt"]


def test_the_size_of_a_missing_file_is_a_user_error(folder: str) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: no such file"):
        (Location(folder) / "gone.txt").size()


def test_a_glob_finds_its_files_in_order(folder: str) -> None:
    root = Location(folder)
    for name in ("b.xml.bz2", "a.xml.bz2", "a.xml", "deeper/c.xml.bz2"):
        (root / name).write_text(name)
    assert find_files(f"{folder}/*.bz2")[:2] == [root / "a.xml.bz2", root / "b.xml.bz2"]
    assert find_files(f"{folder}/a.xml") == [root / "a.xml"]
    assert find_files(f"{folder}/?.xml") == [root / "a.xml"]


def test_a_star_stays_in_its_folder_and_two_stars_do_not(folder: str) -> None:
    root = Location(folder)
    for name in ("top.txt", "one/a.txt", "one/two/b.txt"):
        (root / name).write_text(name)
    assert find_files(f"{folder}/*.txt") == [root / "top.txt"]
    assert find_files(f"{folder}/*/*.txt") == [root / "one/a.txt"]
    assert find_files(f"{folder}/**/*.txt") == [root / "one/a.txt", root / "one/two/b.txt", root / "top.txt"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder: str) -> None:
    root = Location(folder)
    for name in ("Book [1].txt", "Book 1.txt", "Book 2.txt"):
        (root / name).write_text(name)
    assert find_files(f"{folder}/Book [1].txt") == [root / "Book [1].txt"]
    assert find_files(f"{folder}/Book [12].txt") == [root / "Book 1.txt", root / "Book 2.txt"]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Location("~/runs/a.txt").write_text("a")
    assert find_files("~/runs/*.txt") == find_files("~/runs/a.txt") == [Location(f"{tmp_path}/runs/a.txt")]
    assert Location("runs/~").uri == "runs/~"


@pytest.mark.parametrize("place", ["file/x.txt", "file/deeper/x.txt"])
def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"/file.*: cannot be created \(.+\); name a writable folder"):
        (Location(str(tmp_path)) / place).write_text("x")


def test_a_missing_file_is_named(folder: str) -> None:
    (Location(folder) / "there/a.txt").write_text("a")
    for pattern, problem in (
        (f"{folder}/a.txt", "no such file"),
        (f"{folder}/*.txt", "no file matches"),
        (f"{folder}/there", "is a folder"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            find_files(pattern)
        assert str(caught.value).startswith(f"{pattern}: ")


def test_a_missing_relative_path_names_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^books/a\.txt: no such file in {tmp_path};"):
        find_files("books/a.txt")


def test_a_failing_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Location(str(tmp_path)) / "a.txt"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.write_text("new")
    with pytest.raises(OSError, match="No space left"):
        (Location(str(tmp_path)) / "b.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "old"


def test_unfinished_writes_are_not_listed_and_swept_when_old(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    (root / "a.txt").write_text("a")
    fresh, stale = tmp_path / ".b.txt.1234.tmp", tmp_path / ".c.txt.5678.tmp"
    for path in (fresh, stale):
        path.write_text("half")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    assert root.files() == [root / "a.txt"]
    root.delete_stale_writes()
    assert fresh.exists() and not stale.exists()


def test_deleting_stale_writes_skips_folders_that_another_run_deletes(tmp_path: Path) -> None:
    stop = threading.Event()

    def another() -> None:
        while not stop.is_set():
            for number in range(20):
                (tmp_path / f"scratch/{number}/deep").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(tmp_path / "scratch")

    stale = tmp_path / ".c.txt.5678.tmp"
    stale.write_text("half")
    os.utime(stale, (time.time() - 7200, time.time() - 7200))
    thread = threading.Thread(target=another)
    thread.start()
    try:
        for _ in range(1000):
            Location(str(tmp_path)).delete_stale_writes()
    finally:
        stop.set()
        thread.join()
    assert not stale.exists()


def test_a_location_is_a_value() -> None:
    assert Location("runs/") == Location("runs")
    assert Location("runs") / "a" / "b.XML.BZ2" == Location("runs/a/b.XML.BZ2")
    assert (Location("s3://bucket/runs/") / "a.Gz").suffix == ".gz"
    assert Location("s3://bucket/runs").path == "bucket/runs"
    assert Location("s3://bucket/runs").local_path is None
    assert Location("runs").local_path == Path.cwd() / "runs"
    assert Location("/").uri == "/" and (Location("/") / "tmp").uri == "/tmp"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [("gs://bucket/runs", "gs:// is not supported"), ("s3://", "names no bucket"), ("", "the path is empty")],
)
def test_other_stores_are_refused(uri: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Location(uri)


@pytest.mark.parametrize("name", ["x.gz", "x.zst", "x.bz2"])
def test_no_suffix_changes_what_is_written(folder: str, name: str):
    location = Location(folder) / name
    location.write_bytes(b"as given")
    assert location.read_bytes() == b"as given" and location.size() == 8
