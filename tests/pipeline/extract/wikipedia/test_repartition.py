import bz2
import gzip
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.stage import VERSION, ExtractConfig, run
from cloze.pipeline.extract.wikipedia import repartition
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus
from cloze.pipeline.extract.work_units import plan_units
from tests.paths import REPOSITORY

HEADER = '<mediawiki xml:lang="xx"><siteinfo><dbname>xxwiki</dbname></siteinfo>\n'
PAGES = 60


def page(number: int) -> str:
    draw = random.Random(number)
    words = " ".join(draw.choice(["Ship", "sea", "long", "day", "board", "nobody", "wind"]) for _ in range(200))
    return (
        f"<page><title>Page {number}</title><ns>{number % 5 // 4}</ns><id>{number}</id>"
        f"<revision><id>{number}</id><text>It was {number}. {words}.</text></revision></page>\n"
    )


def dump(end: str = "</mediawiki>\n", odd: str = "<page><title>Broken<page></page>\n") -> bytes:
    return (HEADER + "".join(map(page, range(PAGES))) + odd + page(PAGES) + end).encode()


def given(*paths: Path) -> list[SourceFile]:
    return [SourceFile(str(path), str(path.stat().st_size), path.stat().st_size) for path in paths]


def config(*options: str) -> ExtractConfig:
    sources = [{"name": "w", "kind": "wikipedia", "files": ["given by the test"]}]
    return ExtractConfig.model_validate({"sources": sources, "beam": ["--runner=FnApiRunner", *options]})


def output(folder: str | Path, reporter=None) -> Output:
    return Output(Location(str(folder)), "extract", VERSION, "0123456789abcdef", reporter)


def rows(folder: str | Path, manifest: Manifest) -> list[dict]:
    location = Location(str(folder))
    tables = (read_table(location / name) for name in manifest.files)
    return [row for table in tables for row in table.to_pylist()]


def digests(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items()}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every compressed stream is a long one, and partitions hold a few pages."""
    monkeypatch.setattr(work_units, "MAX_STREAM_BYTES", 1000)
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 5000)


PACKERS = {"bz2": bz2.compress, "gz": lambda data: gzip.compress(data, mtime=0), "xz": lzma.compress}


@pytest.mark.parametrize("kind", PACKERS)
def test_a_repartitioned_stream_has_the_documents_of_a_direct_read(tmp_path: Path, kind: str, monkeypatch):
    (tmp_path / "dump").write_bytes(PACKERS[kind](dump()))
    inputs = {"w": given(tmp_path / "dump")}
    direct = run(config(), inputs, output(tmp_path / "direct"))
    monkeypatch.setattr(work_units, "MAX_STREAM_BYTES", 1000)
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 5000)
    repartitioned = run(config(), inputs, output(tmp_path / "repartitioned"))
    assert rows(tmp_path / "direct", direct) == rows(tmp_path / "repartitioned", repartitioned)
    assert (direct.counts, direct.drops) == (repartitioned.counts, repartitioned.drops)
    assert direct.drops == {"namespace": 12, "malformed": 2}
    assert len(direct.files) == 1 and len(repartitioned.files) > 10
    assert min(repartitioned.files) == "documents/00000.00000-00.parquet"
    assert not list((tmp_path / "repartitioned").glob("scratch"))


@pytest.mark.parametrize("kind", PACKERS)
def test_a_truncated_stream_keeps_complete_pages_and_the_manifest_reports_it_once(
    tmp_path: Path, kind: str, monkeypatch
):
    packed = PACKERS[kind](dump())
    (tmp_path / "cut").write_bytes(packed[: len(packed) * 3 // 4] if kind != "bz2" else PACKERS[kind](dump()[:-900]))
    inputs = {"w": given(tmp_path / "cut")}
    direct = run(config(), inputs, output(tmp_path / "direct"))
    monkeypatch.setattr(work_units, "MAX_STREAM_BYTES", 1000)
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 5000)
    repartitioned = run(config(), inputs, output(tmp_path / "repartitioned"))
    assert rows(tmp_path / "direct", direct) == rows(tmp_path / "repartitioned", repartitioned) != []
    assert direct.facts["truncated"] == repartitioned.facts["truncated"] != []
    assert repartitioned.counts["truncated_files"] == 1


@pytest.mark.usefixtures("tiny")
def test_a_few_large_streams_are_each_repartitioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = dump()
    third = len(data) // 3  # pages straddle the streams
    (tmp_path / "dump").write_bytes(b"".join(bz2.compress(data[i : i + third]) for i in range(0, len(data), third)))
    monkeypatch.setattr(work_units, "MULTISTREAM_UNIT_BYTES", 1000)
    inputs = {"w": given(tmp_path / "dump")}
    assert [unit.file_ranges[0].long_stream for unit in plan_units(config(), inputs)][:3] == [True] * 3
    manifest = run(config(), inputs, output(tmp_path / "out"))
    assert manifest.counts["records"] == PAGES + 3
    assert {name[:15] for name in manifest.files} >= {f"documents/0000{n}" for n in range(3)}


@pytest.mark.usefixtures("tiny")
def test_a_run_resumes_from_finished_partitions_and_parts_with_the_same_bytes(tmp_path: Path):
    (tmp_path / "dump").write_bytes(bz2.compress(dump()))
    inputs, settings = {"w": given(tmp_path / "dump")}, config()
    full = run(settings, inputs, output(tmp_path / "full"))
    half = output(tmp_path / "half")
    with pytest.raises(KeyboardInterrupt), scratch_folder(half) as folder:
        work = extract._repartition(plan_units(settings, inputs), settings, folder, half)
        for unit in work[::2]:
            extract.extract_unit(unit, settings, half)
        raise KeyboardInterrupt
    partitions = sorted(Path(folder.path, "00000").iterdir())
    partitions[0].unlink()  # parsed
    partitions[1].unlink()  # not parsed: the stream is repartitioned again, existing files are kept
    stamps = {path: path.stat().st_mtime_ns for path in [*partitions[2:], *(tmp_path / "half").rglob("*.parquet")]}
    with pytest.raises(KeyboardInterrupt), scratch_folder(half) as again:
        assert again == folder
        assert extract._repartition(plan_units(settings, inputs), settings, again, half) == work
        assert not partitions[0].exists() and partitions[1].exists()
        raise KeyboardInterrupt
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    resumed = run(settings, inputs, half)
    assert digests(resumed) == digests(full) and resumed.counts == full.counts
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path.suffix == ".parquet")


@pytest.mark.usefixtures("tiny")
def test_a_lost_part_is_extracted_again_without_repartitioning_its_stream_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "dump").write_bytes(bz2.compress(dump()))
    inputs, out = {"w": given(tmp_path / "dump")}, output(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(type(out), "commit", lambda *_, **__: None)
        with pytest.raises(UserError, match=r"parts/00000\.00000\.json: this part or one of its files is missing "):
            run(config(), inputs, out)
    monkeypatch.setattr(repartition, "write_partitions", lambda *_: pytest.fail("repartitioned again"))
    resumed = run(config(), inputs, out)
    assert resumed.counts["records"] == PAGES + 3


@pytest.mark.usefixtures("tiny")
def test_a_stream_whose_partitions_cannot_be_found_is_an_error_and_not_a_smaller_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, odd in {"a": "", "b": "<page><title>Broken<page></page>\n"}.items():
        (tmp_path / name).write_bytes(bz2.compress(dump(odd=odd)))
    inputs, out = {"w": given(tmp_path / "a", tmp_path / "b")}, output(tmp_path / "out")
    write = repartition.write_partitions
    with monkeypatch.context() as patch:
        patch.setattr(
            repartition, "write_partitions", lambda stream, **rest: stream.name == "00001" or write(stream, **rest)
        )
        with pytest.raises(UserError, match=r"scratch/00001\.json: this list, or a partition in it, of stream 00001 "):
            run(config(), inputs, out)
    assert run(config(), inputs, out).counts["records"] == 2 * (PAGES + 1) + 2


@pytest.mark.usefixtures("tiny")
def test_a_stream_without_its_record_is_repartitioned_again(tmp_path: Path):
    (tmp_path / "dump").write_bytes(bz2.compress(dump()))
    out, folder = output(tmp_path / "out"), Location(str(tmp_path / "scratch"))
    stream = repartition.Stream("00000", Location(str(tmp_path / "dump")), ByteRange(0, 10**6), "xxwiki")
    repartition.write_partitions(stream, folder, out, 5000)
    partitions = repartition.finished_partitions(stream, folder, out)
    assert len(partitions) > 10
    (tmp_path / "scratch/00000.json").unlink()
    assert repartition.finished_partitions(stream, folder, out) == []
    repartition.write_partitions(stream, folder, out, 5000)
    assert repartition.finished_partitions(stream, folder, out) == partitions
    found = [data for partition in partitions for data, _ in repartition.partition_pages(partition, ReadStatus())]
    assert len(found) == PAGES + 3 and found.count(b"") == 1


@pytest.mark.usefixtures("tiny")
def test_partitions_work_on_any_storage(folder: str, tmp_path: Path):
    (tmp_path / "dump").write_bytes(lzma.compress(dump()))
    reports: list[tuple] = []
    manifest = run(
        config(), {"w": given(tmp_path / "dump")}, output(f"{folder}/out", lambda *progress: reports.append(progress))
    )
    assert len(rows(f"{folder}/out", manifest)) == manifest.counts["documents"] == PAGES + 1 - 12
    assert reports[0][2:] == ("MB", "repartitioning compressed files") and reports[-1][2] == "ranges"
    assert reports[-1][0] == reports[-1][1] == len(manifest.files)
    assert not [name for name in (Location(folder) / "out").sizes() if name.startswith("scratch")]


@pytest.mark.usefixtures("tiny")
def test_an_error_in_a_stream_names_the_users_file(tmp_path: Path):
    bad = dump().replace(b"It was 30", b"It was \xff")
    (tmp_path / "bad.xz").write_bytes(lzma.compress(bad))
    with pytest.raises(UserError, match=r"bad\.xz: is not UTF-8 in the page Page 30"):
        run(config(), {"w": given(tmp_path / "bad.xz")}, output(tmp_path / "1"))
    packed = bytearray(bz2.compress(dump()))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "bad.bz2").write_bytes(packed)
    with pytest.raises(UserError, match=r"bad\.bz2: is damaged bz2"):
        run(config(), {"w": given(tmp_path / "bad.bz2")}, output(tmp_path / "2"))


_KILLED = """
import sys
from tests.pipeline.extract.wikipedia import test_repartition as t
from pathlib import Path
from cloze.pipeline.extract import work_units
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
work_units.MAX_STREAM_BYTES, work_units.XML_UNIT_BYTES = 1000, 5000
write = Location.write_bytes
def slow(self, data, *confirm):
    import time
    write(self, data, *confirm)
    time.sleep(0.05)
Location.write_bytes = slow
t.run(t.config(), {{"w": t.given(Path({dump!r}))}}, t.output({out!r}))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_after_a_kill_the_next_run_writes_the_same_bytes(tmp_path: Path):
    (tmp_path / "dump").write_bytes(bz2.compress(dump()))
    inputs = {"w": given(tmp_path / "dump")}
    full = run(config(), inputs, output(tmp_path / "full"))
    for number, wanted in enumerate((["scratch/*/*.pages"], ["parts/*.json"])):
        out = tmp_path / f"out{number}"
        code = _KILLED.format(dump=str(tmp_path / "dump"), out=str(out))
        with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as process:
            deadline = time.monotonic() + 60
            while not all(len(list(out.glob(pattern))) > 3 for pattern in wanted) and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert list(out.glob("scratch")) and not (out / "manifest.json").exists()
        stamps = {path: path.stat().st_mtime_ns for path in out.glob("parts/*.json")}
        resumed = run(config(), inputs, output(out))
        assert not list(out.glob("scratch"))
        assert digests(resumed) == digests(full) and resumed.counts == full.counts
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_two_processes_repartition_two_files_to_the_same_bytes(tmp_path: Path):
    (tmp_path / "a").write_bytes(bz2.compress(dump()))
    (tmp_path / "b").write_bytes(lzma.compress(dump(odd="")))
    inputs = {"w": given(tmp_path / "a", tmp_path / "b")}
    alone = run(config(), inputs, output(tmp_path / "1"))
    two = config("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert digests(run(two, inputs, output(tmp_path / "2"))) == digests(alone)
