"""Listings of a store that lag and leave entries out: whatever they say, the same comes out, or an error."""

import bz2
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.pipeline.core.artifacts import Artifact, Manifest, missing_files
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.dedup import stage as dedup
from cloze.pipeline.dedup import steps
from cloze.pipeline.dedup.stage import DedupConfig
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.extract.stage import ExtractConfig
from tests.pipeline.dedup.test_dedup import prose
from tests.pipeline.extract.wikipedia.test_repartition import HEADER


def page(number: int) -> str:
    return (
        f"<page><title>Page {number}</title><ns>0</ns><id>{number}</id>"
        f"<revision><id>{number}</id><text>{prose(number % 40, 40)}.</text></revision></page>\n"
    )


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> SourceFile:
    file = tmp_path_factory.mktemp("dump") / "dump.xml.bz2"
    file.write_bytes(bz2.compress((HEADER + "".join(map(page, range(60))) + "</mediawiki>\n").encode()))
    return SourceFile(str(file), "0" * 64, file.stat().st_size)


@contextmanager
def lying(draw: random.Random) -> Iterator[None]:
    """Listings leave out each entry with some chance, or are as they were when they were asked for the first time."""
    sizes, folders = Location.sizes, Location.folders
    before: dict[str, dict[str, int]] = {}

    def some_sizes(folder: Location, *_: int) -> dict[str, int]:
        now = sizes(folder)
        listed = before.setdefault(folder.uri, now) if draw.random() < 0.3 else now
        return {name: size for name, size in listed.items() if draw.random() < 0.7}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Location, "sizes", some_sizes)
        patch.setattr(Location, "folders", lambda folder: [one for one in folders(folder) if draw.random() < 0.7])
        yield


def both(dump: SourceFile, folder: str, stop: bool = False) -> tuple[Manifest, Manifest]:
    """Extraction of the dump, which is repartitioned into small files, and deduplication; `stop`ped in between."""
    sources = [{"name": "w", "kind": "wikipedia", "files": ["given by the test"]}]
    config = ExtractConfig.model_validate({"sources": sources})
    documents = Output(Location(folder) / "extract", "extract", extract.VERSION, "e" * 16)
    kept = Output(Location(folder) / "dedup", "dedup", dedup.VERSION, "d" * 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_units, "MAX_STREAM_BYTES", 1000)
        patch.setattr(work_units, "XML_UNIT_BYTES", 3000)
        patch.setattr(steps, "BUCKET_RECORDS", 20)
        extracted = extract.run(config, {"w": [dump]}, documents)
        if stop:
            (documents.location / "manifest.json").delete()
            (documents.location / f"parts/{sorted(names(extracted))[3]}.json").delete()
            extracted = extract.run(config, {"w": [dump]}, documents)
        artifact = Artifact(documents.location, "extract", "e" * 16)
        return extracted, dedup.run(DedupConfig(), {"documents": artifact}, kept)


def names(manifest: Manifest) -> set[str]:
    return {name.removeprefix("documents/").rpartition("-")[0] for name in manifest.files}


def said(manifest: Manifest) -> dict:
    return manifest.model_dump(exclude={"seconds", "cpu_seconds", "finished"})


@pytest.fixture(scope="module")
def quiet(dump: SourceFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    extracted, kept = both(dump, str(tmp_path_factory.mktemp("quiet")))
    assert extracted.counts["documents"] == 60 and kept.drops == {"duplicate": 20} and len(extracted.files) > 5
    return said(extracted), said(kept)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_incomplete_listings_do_not_change_the_result(
    dump: SourceFile, quiet: tuple[dict, dict], seed: int, stop: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with lying(random.Random(seed)):
            extracted, kept = both(dump, folder, stop)
            assert missing_files(Location(folder) / "extract", extracted) == []
        assert (said(extracted), said(kept)) == quiet
        (Path(folder) / "extract" / next(iter(extracted.files))).unlink()
        with lying(random.Random(seed)):
            assert missing_files(Location(folder) / "extract", extracted) == [next(iter(extracted.files))]


def test_a_glob_is_what_two_listings_agree_on(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Location(folder) / f"{name}.txt" for name in "abc"]
    for file in files:
        file.write_text("text")
    listings = iter([files[:2], files, files, files[:1], files[1:]] + [files[: number % 3] for number in range(9)])
    monkeypatch.setattr("cloze.pipeline.core.storage._glob", lambda *_: next(listings))
    monkeypatch.setattr("cloze.pipeline.core.storage._glob_s3", lambda *_: next(listings))
    assert find_files(f"{folder}/*.txt") == files
    with pytest.raises(UserError, match=r"\*\.txt: each listing contains other files; wait until"):
        find_files(f"{folder}/*.txt")


def test_force_repeats_every_part_though_a_listing_omits_all_files(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Output(Location(folder) / "toy" / "0123", "toy", 1, "0123")
    parts = [out.commit(name, {f"files/{name}.txt": name.encode()}) for name in "ab"]
    out.finish(parts, {}, {})
    monkeypatch.setattr(Location, "sizes", lambda *_: {})
    out.clear()
    assert out.finished_parts(["a", "b"]) == {} and not (out.location / "manifest.json").exists()
