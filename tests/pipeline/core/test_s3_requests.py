"""How many requests to S3 the records of an artifact and a Parquet file cost."""

import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.leases import hold_lease, refuse_to_wait
from cloze.pipeline.core.output import Output, progress_period
from cloze.pipeline.core.schema import parquet_bytes, read_table
from cloze.pipeline.core.storage import Location
from tests.s3_proxy import Proxy


@pytest.fixture
def out(s3_bucket: str, proxy: Proxy) -> Output:
    return Output(Location(f"{s3_bucket}/requests-{time.monotonic_ns()}/letters/0"), "letters", 1, "0")


def requests(proxy: Proxy) -> Counter[str]:
    """Counts the requests since the last call: of listings, and of other requests by method and folder."""
    found = Counter[str]()
    for method, path in proxy.requests:
        found["list" if "list-type=2" in path else f"{method} {path.split('/')[-2]}"] += 1
    proxy.requests.clear()
    return found


def test_a_part_is_written_with_a_check_of_the_lease_before_each_write(out: Output, proxy: Proxy) -> None:
    with hold_lease(out.location, refuse_to_wait(out.location)) as out.lease:
        requests(proxy)
        out.commit("a", {"data/a.txt": b"a"})
        assert requests(proxy) == {"GET 0": 2, "PUT data": 1, "PUT parts": 1}
        out.commit("a", {"data/a.txt": b"a"}, counts={"more": 1})
        assert requests(proxy) == {"GET 0": 3, "PUT data": 1, "PUT parts": 2, "GET parts": 2}


def test_whether_there_is_a_file_costs_one_request(out: Output, proxy: Proxy) -> None:
    (out.location / "data/a.txt").write_text("a")
    requests(proxy)
    found = [(out.location / name).is_file() for name in ("data/a.txt", "data/b.txt", "data")]
    assert found == [True, False, False] and not Location("s3://cloze-tests").is_file()
    assert requests(proxy) == {"HEAD data": 2, "HEAD 0": 1}


@pytest.mark.parametrize("number", [2, 20])
def test_finished_parts_cost_a_read_each_and_one_listing(out: Output, proxy: Proxy, number: int) -> None:
    names = [f"{part}" for part in range(number)]
    for name in names:
        out.commit(name, {f"data/{name}.txt": b"1", f"data/{name}.other": b"2"})
    requests(proxy)
    assert len(out.finished_parts(names)) == number
    assert requests(proxy) == {"list": 1, "GET parts": number}


def test_a_part_whose_file_an_outdated_listing_still_contains_is_not_finished(
    out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        out.commit(name, {f"data/{name}.txt": b"text"})
    listed = out.location.sizes()
    (out.location / "data/b.txt").delete()
    monkeypatch.setattr(Location, "sizes", lambda _: listed)
    with pytest.raises(UserError, match=r"parts/b\.json: this part or one of its files is missing"):
        out.require_parts(["a", "b"])


def test_a_file_that_the_listing_omits_is_asked_for(out: Output, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        out.commit(name, {f"data/{name}.txt": name.encode()})
    (out.location / "data/c.txt").delete()
    requests(proxy)
    sizes = Location.sizes
    monkeypatch.setattr(Location, "sizes", lambda folder: {**sizes(folder), "data/a.txt": 99} | {"data/b.txt": 0})
    assert out.finished_parts(["a", "b", "c"]).keys() == {"a", "b"}
    assert requests(proxy)["HEAD data"] == 3


def test_listings_for_progress_cost_the_same_number_of_requests_per_hour(out: Output) -> None:
    hourly = {count: 3600 / progress_period(out.location, count) * -(-count // 1000) for count in (1, 1000, 1001, 6000)}
    assert set(hourly.values()) == {1800.0}


@pytest.mark.parametrize(("number", "reads"), [(10, 1), (1 << 20, 2)])
def test_a_parquet_file_is_opened_by_the_request_that_reads_its_end(
    out: Output, proxy: Proxy, number: int, reads: int
) -> None:
    table = pa.table({"first": np.random.default_rng(0).integers(1 << 62, size=number), "last": np.arange(number)})
    file = out.location / "data/a.parquet"
    file.write_bytes(parquet_bytes(table, row_group_size=1 << 20))
    requests(proxy)
    assert read_table(file) == table
    assert requests(proxy) == {"GET data": reads}


def test_an_empty_parquet_file_is_damaged(out: Output) -> None:
    (out.location / "data/a.parquet").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"a\.parquet: "):
        read_table(out.location / "data/a.parquet")
    with pytest.raises(FileNotFoundError):
        read_table(out.location / "data/b.parquet")
