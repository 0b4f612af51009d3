"""Blocks, buckets and requests: deduplication does not depend on the shards, and costs the same for each of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import steps
from cloze.pipeline.dedup.blocks import Blocks
from cloze.pipeline.dedup.duplicate_rules import addresses_of
from cloze.pipeline.dedup.progress import FinishedItems
from cloze.pipeline.dedup.record_buckets import split_records
from cloze.pipeline.dedup.stage import VERSION, DedupConfig, run
from cloze.pipeline.dedup.steps import Item, Steps
from tests.pipeline.dedup.test_dedup import artifact, dedup, doc, prose
from tests.s3_proxy import Proxy

SHARD_DOCUMENTS = [2, 0, 7, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 99])
def test_every_document_is_in_one_block_of_its_shard(size: int) -> None:
    blocks = Blocks(SHARD_DOCUMENTS, size)
    found = []
    for block in range(len(blocks)):
        for shard in blocks.shards_of_block(block):
            addresses = addresses_of(shard, np.arange(SHARD_DOCUMENTS[shard])[blocks.rows(block, shard)])
            assert set(blocks.block_of(addresses)) <= {block}
            assert blocks.rows_in_block(addresses, block).tolist() == [
                n + len(found) % size for n in range(len(addresses))
            ]
            assert len(addresses) == 0 or block in blocks.blocks_of_shard(shard)
            found += addresses.tolist()
    assert found == [int(addresses_of(s, n)) for s, count in enumerate(SHARD_DOCUMENTS) for n in range(count)]
    assert sum(len(blocks.blocks_of_shard(shard)) for shard in (1, 4)) == 0


def test_a_corpus_without_documents_is_deduplicated(tmp_path: Path) -> None:
    manifest, kept = dedup(tmp_path, [], [])
    assert kept == [] and manifest.counts["records"] == 0 and manifest.drops == {}


def test_records_keep_their_order_in_a_bucket() -> None:
    contents = split_records(np.arange(6, dtype=np.int64), np.array([2, 0, 2, 0, 2, 0]), 4)
    assert [np.frombuffer(content, np.int64).tolist() for content in contents] == [[1, 3, 5], [], [0, 2, 4], []]


@pytest.mark.parametrize("threshold", [0.8, 0.0])
def test_the_same_documents_stay_for_any_shards_blocks_and_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    documents = [doc(f"d{n % 50}", prose(n % 17, 40) + " and on" * (n % 3), n) for n in range(80)]
    manifest, kept = dedup(tmp_path, documents, name="one", near_threshold=threshold)
    monkeypatch.setattr(steps, "BLOCK_DOCUMENTS", 7)
    monkeypatch.setattr(steps, "BUCKET_RECORDS", 30)
    divided = [documents[start : start + 2] for start in range(0, 80, 2)]
    again, rows = dedup(tmp_path, *divided, name="forty", near_threshold=threshold)
    assert rows == kept and again.counts == manifest.counts
    assert sum(again.drops.values()) == sum(manifest.drops.values()) == 80 - len(kept)


def test_an_item_that_an_earlier_attempt_has_finished_does_not_run_again(tmp_path: Path) -> None:
    shards = artifact(tmp_path / "in", [doc("a", "Some words.")]).files("documents/")
    out = Output(Location(str(tmp_path / "out")), "dedup", VERSION, "e" * 16)
    work = Steps(shards, out, out.location / "scratch", 0.0, 1, 1, 1, 9)
    file = work.scratch / "describe/00000"
    work.run_item(Item("describe", 0))
    stamp = file.info().mtime_ns
    replace(work, attempt="next").run_item(Item("describe", 0))
    assert file.info().mtime_ns == stamp
    file.delete()
    replace(work, attempt="next").run_item(Item("describe", 0))
    assert file.is_file()


def test_progress_makes_about_one_request_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch/describe").mkdir(parents=True)
    for number in range(2500):
        (tmp_path / f"scratch/describe/{number:05}").touch()
    listings: list[Location] = []
    list_files = Location.files
    monkeypatch.setattr(Location, "files", lambda folder: listings.append(folder) or list_files(folder))
    out = Output(Location(str(tmp_path)), "dedup", VERSION, "e" * 16)
    finished = FinishedItems(Steps([], out, out.location / "scratch", 0.8, 0, 1, 1, 9), {"describe": 3000, "newest": 1})
    assert [finished() for _ in range(7)] == [2500] * 7
    assert len(listings) == 3  # of three requests each
    finished.complete()
    assert finished() == 3001 and len(listings) == 3


def test_progress_can_be_completed_while_another_thread_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch/describe").mkdir(parents=True)
    (tmp_path / "scratch/describe/00000").touch()
    out = Output(Location(str(tmp_path)), "dedup", VERSION, "e" * 16)
    finished = FinishedItems(Steps([], out, out.location / "scratch", 0.8, 0, 1, 1, 9), {"describe": 1})
    list_files = Location.files

    def list_and_complete(folder: Location) -> list[Location]:
        files = list_files(folder)
        finished.complete()
        return files

    monkeypatch.setattr(Location, "files", list_and_complete)
    assert [finished(), finished()] == [1, 1]


def test_each_further_shard_costs_the_same_number_of_requests(
    s3_bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "BUCKET_RECORDS", 800)  # up to five buckets of bands, as of 150,000 documents
    counts = []
    for shards in (8, 24, 40):
        documents = [[doc(f"d{s}-{n}", prose(s * 5 + n % 4, 20)) for n in range(5)] for s in range(shards)]
        extracted = artifact(Location(f"{s3_bucket}/{tmp_path.name}/in-{shards}"), *documents)
        out = Output(Location(f"{s3_bucket}/{tmp_path.name}/{shards}"), "dedup", VERSION, "e" * 16)
        proxy.requests.clear()
        assert run(DedupConfig(), {"documents": extracted}, out).drops == {"duplicate": shards}
        counts.append(sum("list-type=2" not in path for _, path in proxy.requests))  # listings show progress
    assert counts[2] - counts[1] < 1.1 * (counts[1] - counts[0])
    assert counts[2] / 40 < counts[0] / 8
