"""How many requests to S3 the stage extract needs for partitions, progress and finished parts."""

import bz2
import time
from pathlib import Path

import pytest

from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia import repartition
from cloze.pipeline.extract.work_units import plan_units
from tests.pipeline.core.test_s3_requests import requests
from tests.pipeline.extract.wikipedia.test_repartition import config, dump, given
from tests.s3_proxy import Proxy


@pytest.fixture
def out(s3_bucket: str, proxy: Proxy) -> Output:
    return Output(Location(f"{s3_bucket}/requests-{time.monotonic_ns()}/extract/0"), "extract", extract.VERSION, "0")


def stream(tmp_path: Path) -> repartition.Stream:
    (tmp_path / "dump").write_bytes(bz2.compress(dump()))
    return repartition.Stream("00000", Location(str(tmp_path / "dump")), ByteRange(0, 10**6), "xxwiki")


def test_a_new_partition_costs_one_request_and_one_that_exists_another(out: Output, proxy: Proxy, tmp_path: Path):
    scratch, one = out.location / "scratch", stream(tmp_path)
    repartition.write_partitions(one, scratch, out, 5000)
    count = len(repartition.finished_partitions(one, scratch, out))
    assert count > 10
    (scratch / "00000.json").delete()
    files = (scratch / "00000").files()
    for file in files[::2]:
        file.delete()
    requests(proxy)
    repartition.write_partitions(one, scratch, out, 5000)
    assert requests(proxy) == {
        "list": 2,
        "GET scratch": 1,
        "HEAD 00000": len(files[1::2]),
        "PUT 00000": len(files[::2]),
        "PUT scratch": 1,
    }


def test_progress_of_many_streams_costs_one_listing_a_report(out: Output, proxy: Proxy, tmp_path: Path):
    reports: list[float] = []
    out.reporter = lambda done, *_: reports.append(done)
    scratch, one = out.location / "scratch", stream(tmp_path)
    streams = [one._replace(name=f"{number:05}") for number in range(20)]
    (scratch / "00003/00000-400000.pages").write_bytes(b"")
    (scratch / "00007/00001-900000.pages").write_bytes(b"")
    requests(proxy)
    with repartition.report_progress(streams, scratch, out, 5000):
        pass
    assert requests(proxy) == {"list": 2}
    assert reports == [1.3, 1.3]


def test_reports_of_many_partitions_are_rare(out: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listed: list[int] = []
    monkeypatch.setattr("cloze.pipeline.core.output.progress_period", lambda _, files: listed.append(files) or 1.0)
    dump_of_20_gb = stream(tmp_path)._replace(byte_range=ByteRange(0, 20 * 10**9))
    with repartition.report_progress([dump_of_20_gb], out.location / "scratch", out, 16 << 20):
        pass
    assert listed == [5961]


def test_a_worker_lists_the_finished_parts_once_and_reads_one_record_of_each(
    out: Output, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 20_000)
    (tmp_path / "dump.xml").write_bytes(dump())
    settings = config()
    units = plan_units(settings, {"w": given(tmp_path / "dump.xml")})
    for unit in units[1:]:
        extract.extract_unit(unit, settings, out)
    requests(proxy)
    for unit in units:
        extract._extract_missing(unit, settings, out, "an attempt")
    assert len(units) > 3
    assert requests(proxy) == {"list": 1, "GET parts": len(units) - 1, "PUT documents": 1, "PUT parts": 1}


def test_a_part_without_its_file_is_extracted_though_its_record_is_listed(out: Output, tmp_path: Path):
    (tmp_path / "dump.xml").write_bytes(dump())
    settings = config()
    (unit,) = plan_units(settings, {"w": given(tmp_path / "dump.xml")})
    extract.extract_unit(unit, settings, out)
    (file,) = (out.location / "documents").files()
    file.delete()
    extract._extract_missing(unit, settings, out, "another attempt")
    assert file.is_file()
