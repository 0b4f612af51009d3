import json
import os
import pickle
import subprocess
import threading
import time
from pathlib import Path
from typing import Annotated

import pytest

from cloze.pipeline.core.artifacts import Artifact, damage, fingerprint, missing_files, read_manifest
from cloze.pipeline.core.config import Compute, Config, identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile, source_file, source_file_by_digest
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.software_versions import git_commit, package_versions
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import run_periodically


class Letters(Config):
    case: str = "lower"
    workers: Annotated[int, Compute] = 2


class Alphabet(Config):
    parts: tuple[Letters, ...]
    by_name: dict[str, Letters]


def output(folder: str) -> Output:
    return Output(Location(folder) / "letters/0123", "letters", version=1, fingerprint="0123")


def test_a_fingerprint_depends_on_stage_version_configuration_and_inputs() -> None:
    one = fingerprint("letters", 1, identity(Letters()), {"data": "aa"})
    assert one == fingerprint("letters", 1, identity(Letters()), {"data": "aa"})
    assert len(one) == 16 and int(one, 16) >= 0
    others = [
        fingerprint("words", 1, identity(Letters()), {"data": "aa"}),
        fingerprint("letters", 2, identity(Letters()), {"data": "aa"}),
        fingerprint("letters", 1, identity(Letters(case="upper")), {"data": "aa"}),
        fingerprint("letters", 1, identity(Letters()), {"data": "bb"}),
        fingerprint("letters", 1, identity(Letters()), {"date": "aa"}),
    ]
    assert len({one, *others}) == 6


def test_a_fingerprint_does_not_depend_on_the_machine() -> None:
    assert fingerprint("letters", 1, identity(Letters(workers=1)), {}) == fingerprint(
        "letters", 1, identity(Letters(workers=64)), {}
    )


def test_a_fingerprint_does_not_depend_on_the_machine_in_the_entries_of_a_list_or_mapping() -> None:
    one, other = (
        identity(Alphabet(parts=(Letters(workers=count),), by_name={"a": Letters(workers=count)})) for count in (1, 64)
    )
    assert one == other == {"parts": [{"case": "lower"}], "by_name": {"a": {"case": "lower"}}}


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint("a", 1, {"x": 1, "y": 2}, {"p": "1", "q": "2"}) == fingerprint(
        "a", 1, {"y": 2, "x": 1}, {"q": "2", "p": "1"}
    )


def test_the_identity_of_a_source_file_is_its_bytes_and_suffix_not_its_path(folder: str) -> None:
    root = Location(folder)
    for name, text in (("a/one.txt", "same"), ("b/two.txt", "same"), ("c.csv", "same"), ("d.txt", "other")):
        (root / name).write_text(text)
    one, two, csv, other = (
        source_file(root / name, root / "cache") for name in ("a/one.txt", "b/two.txt", "c.csv", "d.txt")
    )
    assert one.identity == two.identity
    assert len({one.identity, csv.identity, other.identity}) == 3
    assert one.bytes == 4 and one.location == root / "a/one.txt"


def test_a_source_file_is_remembered_by_its_digest(folder: str) -> None:
    file, cache = Location(folder) / "a.txt", Location(folder) / "cache"
    file.write_text("first")
    first = source_file(file, cache)
    assert source_file_by_digest(cache, first.sha256) == first
    assert source_file_by_digest(cache, "0" * 64) is None


def test_a_source_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = Location(str(tmp_path / "a.txt")), Location(str(tmp_path / "cache"))
    file.write_text("first")
    first = source_file(file, cache)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "open", lambda self: pytest.fail(f"{self} was read again") if self == file else None)
        patch.setattr(Location, "read_bytes", lambda self: Path(self.path).read_bytes())
        assert source_file(file, cache) == first
    Path(file.path).write_text("other")  # the same size
    os.utime(file.path, ns=(0, 1))
    assert source_file(file, cache).sha256 != first.sha256


def test_parts_add_up(folder: str) -> None:
    out = output(folder)
    out.commit("two", {"data/2.txt": b"222"}, counts={"letters": 3, "words": 1}, drops={"digits": 4})
    out.commit("one", {"data/1.txt": b"11"}, counts={"letters": 2}, drops={"vowels": 1})
    manifest = out.finish(
        out.require_parts(["two", "one"]), {}, {}, counts={"letters": 10}, drops={"vowels": 1}, facts={"note": "done"}
    )
    assert manifest.counts == {"letters": 15, "words": 1}
    assert manifest.drops == {"digits": 4, "vowels": 2}
    assert list(manifest.files) == ["data/1.txt", "data/2.txt"]
    assert manifest.files["data/2.txt"].bytes == 3
    assert manifest.facts == {"note": "done"}
    assert read_manifest(out.location) == manifest


def test_the_next_run_finds_a_finished_part(folder: str) -> None:
    assert output(folder).finished_part("one") is None
    part = output(folder).commit("one", {"data/1.txt": b"1"}, counts={"letters": 1}, facts={"metric": 0.5})
    assert output(folder).finished_part("one") == part
    assert output(folder).finished_parts(["two", "one"]) == {"one": part}
    assert output(folder).require_parts(["one"]) == [part]


def test_a_part_committed_again_counts_once(folder: str) -> None:
    out = output(folder)
    for _ in range(2):
        out.commit("one", {"data/1.txt": b"1"}, counts={"letters": 1})
    assert out.finish(out.require_parts(["one"]), {}, {}).counts == {"letters": 1}


def test_a_missing_part_is_an_error_and_not_a_smaller_artifact(folder: str) -> None:
    out = output(folder)
    for name in ("one", "two", "three"):
        out.commit(name, {f"data/{name}.txt": b"1"})
    (out.location / "parts/two.json").write_text('{"name": "two"')
    (out.location / "data/three.txt").delete()
    with pytest.raises(
        UserError, match=r"parts/three\.json: this part or one of its files is missing \(2 of 3 parts\); run again"
    ):
        out.require_parts(["one", "two", "three"])
    assert out.finished_parts(["one", "two", "three"]).keys() == {"one"}


def test_a_file_that_a_listing_leaves_out_is_not_lost(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = output(folder)
    manifest = out.finish([out.commit("one", {"data/1.txt": b"one", "data/2.txt": b"two"})], {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(Location, "sizes", lambda _: {"data/2.txt": 99})
        assert missing_files(out.location, manifest) == []
    (out.location / "data/2.txt").write_text("tw")
    assert missing_files(out.location, manifest) == ["data/2.txt"]
    (out.location / "data/2.txt").delete()
    assert missing_files(out.location, manifest) == ["data/2.txt"]


def test_a_part_whose_file_is_missing_or_cut_is_no_part(folder: str) -> None:
    out = output(folder)
    out.commit("gone", {"data/1.txt": b"one", "data/2.txt": b"two"})
    out.commit("cut", {"data/3.txt": b"three"})
    (out.location / "data/2.txt").delete()
    (out.location / "data/3.txt").write_text("thr")
    assert out.finished_part("gone") is None and out.finished_part("cut") is None
    assert out.finished_parts(["gone", "cut"]) == {}


def test_a_damaged_record_is_no_part(folder: str) -> None:
    out = output(folder)
    out.commit("one", {"data/1.txt": b"1"})
    (out.location / "parts/one.json").write_text('{"name": "one"')
    assert out.finished_part("one") is None


def test_a_part_is_recorded_after_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = output(str(tmp_path))
    written: list[str] = []
    monkeypatch.setattr(Location, "write_bytes", lambda self, *_: written.append(self.name))
    out.commit("one", {"b.txt": b"", "a.txt": b""})
    assert written == ["b.txt", "a.txt", "one.json"]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = output(str(tmp_path))
    out.commit("one", {"data/1.txt": b"1"})
    assert read_manifest(out.location) is None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            out.finish([], {}, {})
    assert read_manifest(out.location) is None
    out.finish([], {}, {})
    assert read_manifest(out.location) is not None


def test_an_artifact_lists_the_files_its_manifest_promises(folder: str) -> None:
    out = output(folder)
    out.finish([out.commit("one", {"train/b.txt": b"", "train/a.txt": b"", "heldout/c.txt": b""})], {}, {})
    (out.location / "train/stray.txt").write_text("of a killed run")
    artifact = Artifact(out.location, "letters", "0123")
    assert artifact.files("train/") == [out.location / "train/a.txt", out.location / "train/b.txt"]
    assert artifact.files() == [out.location / name for name in ("heldout/c.txt", "train/a.txt", "train/b.txt")]


def test_an_artifact_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finished; run the stage letters first"):
        _ = Artifact(Location(str(tmp_path)), "letters", "0123").manifest


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: is damaged; delete it and run again"):
        read_manifest(Location(str(tmp_path)))


def test_a_manifest_records_its_origin(tmp_path: Path) -> None:
    out = output(str(tmp_path))
    manifest = out.finish([], {"case": "lower"}, {"data": "aa"})
    assert (manifest.stage, manifest.version, manifest.fingerprint) == ("letters", 1, "0123")
    assert (manifest.config, manifest.inputs) == ({"case": "lower"}, {"data": "aa"})
    assert manifest.versions == package_versions() and {"python", "pyarrow", "torch"} <= package_versions().keys()
    assert manifest.git_commit == git_commit()
    assert manifest.seconds >= 0 and manifest.finished.endswith("+00:00")
    assert json.loads((tmp_path / "letters/0123/manifest.json").read_text())["stage"] == "letters"


def test_the_git_commit_says_when_the_tree_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    for dirty, mark in ((" M a.py", "+changes"), ("", "")):

        def git(command: list[str], status: str = dirty, **_: object) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, 0, "c0ffee\n" if command[1] == "rev-parse" else status)

        monkeypatch.setattr(subprocess, "run", git)
        git_commit.cache_clear()
        assert git_commit() == f"c0ffee{mark}"
    git_commit.cache_clear()


def test_an_environment_variable_sets_the_git_commit_of_code_without_its_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOZE_GIT_COMMIT", "c0ffee")
    git_commit.cache_clear()
    assert git_commit() == "c0ffee"
    git_commit.cache_clear()


def test_workers_get_an_output_without_its_display(tmp_path: Path) -> None:
    told: list[tuple[float, float, str, str]] = []
    out = Output(Location(str(tmp_path)), "letters", 1, "0123", reporter=lambda *what: told.append(what))
    out.report_progress(1, 2, "files", "a.txt")
    pickle.loads(pickle.dumps(out)).report_progress(2, 2, "files")
    assert told == [(1, 2, "files", "a.txt")]


def test_watching_shows_the_parts_as_they_are_committed(tmp_path: Path) -> None:
    told: list[float] = []
    out = Output(Location(str(tmp_path)), "letters", 1, "0123", reporter=lambda done, *_: told.append(done))
    out.commit("one", {})
    with out.reporting_parts(3, "files"):
        out.commit("two", {})
        out.commit("three", {})
    assert told[0] == 1 and told[-1] == 3


def test_progress_is_reported_before_during_and_after_and_never_exceeds_the_total(tmp_path: Path) -> None:
    told: list[tuple[float, float, str, str]] = []
    out = Output(Location(str(tmp_path)), "letters", 1, "0123", reporter=lambda *what: told.append(what))
    counts = iter([0, 1, 2, *[5] * 1000])
    with out.reporting_progress(lambda: next(counts), 3, "files", "slowly"):
        deadline = time.monotonic() + 10
        while len(told) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told[:3] == [(number, 3, "files", "slowly") for number in range(3)]
    assert told[-1] == (3, 3, "files", "slowly")


def test_two_writers_of_one_artifact_leave_it_whole(folder: str) -> None:
    first, second = output(folder), output(folder)
    for out in (first, second):
        for number in ("1", "2"):
            out.commit(number, {f"data/{number}.txt": b"1"}, counts={"letters": 1})
    for out in (first, second):
        out.finish(out.require_parts(["1", "2"]), {}, {})
    manifest = read_manifest(first.location)
    assert manifest and manifest.counts == {"letters": 2} and len(manifest.files) == 2


def test_a_source_files_path_is_no_part_of_its_identity() -> None:
    assert SourceFile("a/b.txt", "00", 1).identity == SourceFile("s3://c/d.TXT", "00", 1).identity == "00.txt"
    assert SourceFile("a/x.jsonl.gz", "00", 1).identity == "00.jsonl.gz" != SourceFile("x.txt.gz", "00", 1).identity


@pytest.mark.parametrize(
    ("error", "printed"),
    [(OSError(5, "Input/output error"), ""), (KeyError("a"), "warning: KeyError: 'a'; tries again\n")],
)
def test_a_periodic_call_that_fails_is_repeated(
    capsys: pytest.CaptureFixture[str], error: Exception, printed: str
) -> None:
    calls, again = list[int](), threading.Event()

    def call() -> bool:
        calls.append(1)
        if len(calls) < 3:
            raise error
        again.set()
        return False

    with run_periodically(call, 0.01):
        assert again.wait(10)
    assert len(calls) == 3 and capsys.readouterr().err == printed


def test_only_a_file_that_differs_from_its_record_is_called_damaged(folder: str) -> None:
    out = Output(Location(folder) / "extract/0", "extract", 1, "0")
    out.finish([out.commit("a", {"deep/a.bin": b"content"})], {}, {})
    file = out.location / "deep/a.bin"
    whole = damage(file, "bad page")
    assert "is whole" in str(whole) and "run again: what is finished is kept" in str(whole)
    file.write_bytes(b"Content")
    manifest = f"{out.location}/manifest.json"
    assert str(damage(file, "bad page")) == (
        f"{file}: is damaged: its SHA-256 differs from {manifest}; delete it and run again: other files are kept"
    )
    file.write_bytes(b"")
    assert f"is damaged: its length of 0 bytes differs from {manifest}; " in str(damage(file, "bad page"))
    other = out.location / "unrecorded"
    assert str(damage(other, "bad page")).startswith(f"{other}: cannot be read (bad page); delete it and run again")
