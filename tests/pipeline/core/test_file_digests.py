import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core import file_digests, s3
from cloze.pipeline.core.errors import StorageError, UserError
from cloze.pipeline.core.file_digests import SourceFile, cached_source_files, source_files
from cloze.pipeline.core.storage import Location

CONTENTS = [b"", b"short", os.urandom(1000), os.urandom(1001), os.urandom(2000), b"short"]


@pytest.fixture
def files(folder: str, monkeypatch: pytest.MonkeyPatch) -> list[Location]:
    """Files of several ranges, one, or none."""
    monkeypatch.setattr(file_digests, "_RANGE_BYTES", 500)
    files = [Location(folder) / f"source/{number}.txt" for number in range(len(CONTENTS))]
    for file, content in zip(files, CONTENTS, strict=True):
        file.write_bytes(content)
    return files


def sha256s(files: Sequence[SourceFile]) -> list[str]:
    return [file.sha256 for file in files]


def test_ranges_of_several_files_are_hashed_in_order(files: list[Location], folder: str) -> None:
    cache = Location(folder) / "cache"
    hashed = source_files(files, cache)
    assert sha256s(hashed) == [hashlib.sha256(content).hexdigest() for content in CONTENTS]
    assert [file.bytes for file in hashed] == [len(content) for content in CONTENTS]
    assert [file.location for file in hashed] == files
    assert set(sha256s(cached_source_files(cache))) == set(sha256s(hashed))


def test_only_new_files_are_read(files: list[Location], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Location(folder) / "cache"
    before = source_files(files, cache)
    files[1].write_bytes(b"other")
    read: list[Location] = []
    read_range = file_digests._read_range
    monkeypatch.setattr(file_digests, "_read_range", lambda one: read.append(one.file.location) or read_range(one))
    after = source_files(files, cache)
    assert read == [files[1]]
    assert after[1].sha256 == hashlib.sha256(b"other").hexdigest() and after[2:] == before[2:]


def test_an_object_that_changes_while_it_is_read_is_an_error(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = Location(f"{s3_bucket}/{tmp_path.name}/a.txt"), Location(str(tmp_path))
    file.write_bytes(b"before")
    stamped = file_digests._stamped

    def change_after(location: Location, cache_folder: Location) -> Any:
        found = stamped(location, cache_folder)
        location.write_bytes(b"after")
        return found

    monkeypatch.setattr(file_digests, "_stamped", change_after)
    monkeypatch.setattr(file_digests, "_RANGE_BYTES", 2)
    with pytest.raises(StorageError, match=r"a\.txt: reading failed: it has changed meanwhile"):
        source_files([file], cache)
    assert cached_source_files(cache) == []


def test_a_local_file_that_becomes_shorter_while_it_is_read_or_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = Location(str(tmp_path / "a.txt")), Location(str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"a\.txt: no such file"):
        source_files([file], cache)
    file.write_bytes(b"before")
    found = file_digests._stamped(file, cache)
    file.write_bytes(b"cut")
    monkeypatch.setattr(file_digests, "_stamped", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"a\.txt: became shorter while it was read"):
        source_files([file], cache)
    assert cached_source_files(cache) == []


@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE", None])
def test_a_digest_that_s3_stores_is_taken_if_it_is_of_the_whole_object(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    client = s3._client._create()
    file, cache = Location(f"{s3_bucket}/{tmp_path.name}/a.txt"), Location(str(tmp_path))
    client.put_object(Bucket="cloze-tests", Key=f"{tmp_path.name}/a.txt", Body=b"text", ChecksumAlgorithm="SHA256")
    reads: list[str] = []

    def add_kind(parsed: dict[str, Any], **_: object) -> None:  # which moto does not return
        assert base64.b64decode(parsed["ChecksumSHA256"]) == hashlib.sha256(b"text").digest()
        parsed.update({"ChecksumType": kind} if kind else {})

    client.meta.events.register("after-call.s3.HeadObject", add_kind)
    client.meta.events.register("before-send.s3.GetObject", lambda request, **_: reads.append(request.url))
    monkeypatch.setattr(s3._client, "_client", client)
    assert source_files([file], cache) == [SourceFile(file.uri, hashlib.sha256(b"text").hexdigest(), 4)]
    assert bool(reads) == (kind != "FULL_OBJECT")
