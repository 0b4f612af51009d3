"""The steps of deduplication. Each is divided into items, which can run in any order.

    describe   a shard   -> a descriptor of 64 bytes and a MinHash signature for each document
    partition  a block   -> its descriptors, by bucket of doc_ids
    newest     a bucket  -> the newest revision of each doc_id
    distinct   a bucket  -> one document of each content
    collect    a block   -> its documents that are removed so far, and the bands of the others
    match      a bucket  -> the bands that several documents have
    attach     a block   -> the descriptors and signatures of its documents that have such a band
    compare    a bucket  -> which of the documents that have the same band are near duplicates
    cluster    once      -> one document of each group of near duplicates
    write      a shard   -> its documents that are kept

A block is 65,536 consecutive documents, of one shard or of many. The steps exchange files in scratch: the file of a
block has a content for each bucket, and the file of a bucket one for each block. An exchange takes one request for each
block and bucket: in English Wikipedia (6,000 shards, 7 million documents) 107 blocks, 14
buckets of descriptors and 214 of bands, all exchanges together 12 requests per shard.

Memory: a bucket holds 32 MB of descriptors, or 8 MB of bands with at most 96 MB of signatures and descriptors; a block
13 MB of these and 17 MB of bands; a shard its own text. While they are joined or sorted, there are two copies. Only
`cluster` grows with the input: by 100 bytes for each document that has a near duplicate.
"""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.core.bucket_files import read_bucket, write_buckets
from cloze.pipeline.core.listings import list_once
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.dedup import minhash
from cloze.pipeline.dedup.blocks import Blocks, num_blocks
from cloze.pipeline.dedup.document_shards import kept_documents, read_tables, shard_bytes
from cloze.pipeline.dedup.duplicate_rules import (
    DESCRIPTOR,
    LINK,
    REASONS,
    REMOVED,
    TIE_COLUMNS,
    addresses_of,
    best_of_groups,
    connected_components,
    describe_documents,
    keep_distinct_contents,
    keep_newest_revisions,
    links_to_roots,
    remove_near_duplicates,
    rows_of,
    shards_of,
)
from cloze.pipeline.dedup.record_buckets import read_records, split_records

BUCKET_RECORDS = 1 << 19  # descriptors or bands in a bucket
BLOCK_DOCUMENTS = 1 << 16
SAMPLES = 5  # removed documents of a reason that are shown
_ATTACHED_FILES = 4  # of a block, so that each is at most 50 MB
_FILES_AT_ONCE = 4  # of `compare`, read by `cluster`
_MERGED_BYTES = 32 << 20
_COLUMNS = ["doc_id", "content_hash", "revision", "num_chars", *TIE_COLUMNS]
_BAND = np.dtype([("key", "<u8"), ("address", "<i8")])


class Item(NamedTuple):
    """A part of a step: its number is that of a shard, a block or a bucket."""

    step: str
    number: int

    def __str__(self) -> str:
        kind = {"describe": "shard", "write": "shard", "partition": "block", "collect": "block", "attach": "block"}
        return f"{kind.get(self.step, 'bucket')} {self.number:05} ({self.step})"


@dataclass(frozen=True)
class Steps:
    """Runs the items of the steps. An item is finished when its last file, <step>/<number>, exists.

    An item that runs twice writes the same bytes.
    """

    shards: list[Location]
    out: Output
    scratch: Location
    threshold: float
    num_documents: int
    num_buckets: int
    num_band_buckets: int
    block_documents: int
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)

    def item_counts(self) -> dict[str, int]:
        """The steps in their order, and the number of items of each."""
        shards, blocks = len(self.shards), num_blocks(self.num_documents, self.block_documents)
        near = {"match": self.num_band_buckets, "attach": blocks, "compare": self.num_band_buckets, "cluster": 1}
        exact = {"partition": blocks, "newest": self.num_buckets, "distinct": self.num_buckets, "collect": blocks}
        return {"describe": shards, **exact, **(near if self.threshold else {}), "write": shards}

    @property
    def blocks(self) -> Blocks:
        """The blocks, once `describe` is finished."""
        counts = _count_documents_once(
            self.scratch / "describe", len(self.shards), self._described.itemsize, self.attempt
        )
        assert sum(counts) == self.num_documents, f"{sum(counts)} documents in place of {self.num_documents}"
        return Blocks(counts, self.block_documents)

    def run_item(self, item: Item) -> None:
        if not self._is_finished(item):
            getattr(self, item.step)(item.number)
            pa.default_memory_pool().release_unused()

    def _is_finished(self, item: Item) -> bool:
        """Returns whether an earlier attempt or a worker that is lost has finished the item.

        A process lists the files once, as it costs too many requests to look up those of each item. A listing may be
        outdated: an item that it omits runs again, and one that it contains is confirmed.
        """
        name = f"{item.number:05}"
        if item.step == "write":
            is_listed = f"{name}.json" in list_once(self.out.location / "parts", self.attempt)
            return is_listed and self.out.finished_part(name) is not None
        return f"{item.step}/{name}" in list_once(self.scratch, self.attempt) and self._file(*item).is_file()

    def describe(self, shard: int) -> None:
        described = [np.zeros(0, self._described)]
        first = addresses_of(shard, 0)
        for table in read_tables(self.shards[shard], _COLUMNS):
            documents = np.zeros(len(table), self._described)
            documents["descriptor"] = describe_documents(table, first)
            if self.threshold:
                documents["signature"] = minhash.compute_signatures(table["text"].to_pylist())
            described.append(documents)
            first += len(table)
        self._file("describe", shard).write_bytes(np.concatenate(described).tobytes())

    def partition(self, block: int) -> None:
        descriptors = self._read_described(block)["descriptor"]
        buckets = descriptors["id"] % self.num_buckets
        write_buckets(self._file("partition", block), split_records(descriptors, buckets, self.num_buckets))

    def newest(self, bucket: int) -> None:
        files = self._files("partition", len(self.blocks))
        kept, older = keep_newest_revisions(read_records(files, DESCRIPTOR, self.num_buckets, bucket))
        # Duplicates are removed here as well, so that a bucket of contents has at most one of each from each item.
        kept, equal = keep_distinct_contents(kept)
        by_content = split_records(kept, kept["content"] % self.num_buckets, self.num_buckets)
        removed = self._split_by_block(np.concatenate([older, equal]))
        write_buckets(self._file("newest", bucket), [*by_content, *removed])

    def distinct(self, bucket: int) -> None:
        files, contents = self._files("newest", self.num_buckets), self.num_buckets + len(self.blocks)
        _, removed = keep_distinct_contents(read_records(files, DESCRIPTOR, contents, bucket))
        write_buckets(self._file("distinct", bucket), self._split_by_block(removed))

    def collect(self, block: int) -> None:
        newest, distinct = (self._files(step, self.num_buckets) for step in ("newest", "distinct"))
        older = read_records(newest, REMOVED, self.num_buckets + len(self.blocks), self.num_buckets + block)
        removed = np.concatenate([older, read_records(distinct, REMOVED, len(self.blocks), block)])
        shards = self.blocks.shards_of_block(block)
        by_shard = split_records(removed, shards_of(removed["address"]) - shards.start, len(shards))
        write_buckets(self.scratch / f"removed-by-shard/{block:05}", by_shard)
        bands = self._bands(block, removed["address"]) if self.threshold else np.zeros(0, _BAND)
        by_key = split_records(bands, bands["key"] % max(self.num_band_buckets, 1), self.num_band_buckets)
        write_buckets(self._file("collect", block), by_key)

    def _bands(self, block: int, removed: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Returns the bands of the documents that have a signature and are not removed."""
        described = self._read_described(block)
        kept = np.asarray(described["signature"].any(axis=1))
        kept[self.blocks.rows_in_block(removed, block)] = False
        bands = np.zeros((int(kept.sum()), minhash.NUM_BANDS), _BAND)
        bands["key"] = minhash.band_keys(described["signature"][kept])
        bands["address"] = described["descriptor"]["address"][kept, None]
        return bands.ravel()

    def match(self, bucket: int) -> None:
        bands = read_records(self._files("collect", len(self.blocks)), _BAND, self.num_band_buckets, bucket)
        _, number, count = np.unique(bands["key"], return_inverse=True, return_counts=True)
        bands = bands[count[number] > 1]
        needed = self._split_by_block(np.unique(bands["address"]).view([("address", "<i8")]))
        write_buckets(self._file("match", bucket), [*needed, bands.tobytes()])

    def attach(self, block: int) -> None:
        contents = read_bucket(self._files("match", self.num_band_buckets), len(self.blocks) + 1, block)
        described = self._read_described(block) if any(contents) else np.zeros(0, self._described)
        rows = [self.blocks.rows_in_block(np.frombuffer(content, np.int64), block) for content in contents]
        for number in range(min(_ATTACHED_FILES, self.num_band_buckets)):
            attached = [described[needed].tobytes() for needed in rows[number::_ATTACHED_FILES]]
            write_buckets(self.scratch / f"attached/{block:05}-{number}", attached)
        self._file("attach", block).write_bytes(b"")

    def compare(self, bucket: int) -> None:
        bands = read_records([self._file("match", bucket)], _BAND, len(self.blocks) + 1, len(self.blocks))
        addresses, owners = np.unique(bands["address"], return_inverse=True)
        position, number = divmod(bucket, _ATTACHED_FILES)
        files = [self.scratch / f"attached/{block:05}-{number}" for block in range(len(self.blocks))]
        num_contents = len(range(number, self.num_band_buckets, _ATTACHED_FILES))
        described = read_records(files, self._described, num_contents, position)
        assert np.array_equal(described["descriptor"]["address"], addresses)
        signatures = np.ascontiguousarray(described["signature"])
        roots = minhash.group_near_duplicates(bands["key"], owners, signatures, self.threshold)
        links = links_to_roots(addresses, roots)
        linked = np.isin(addresses, [links["address"], links["other"]])
        write_buckets(self._file("compare", bucket), [links.tobytes(), described["descriptor"][linked].tobytes()])

    def cluster(self, number: int) -> None:
        links = self._merge_compared(LINK, 0, connected_components)
        addresses = np.unique(np.concatenate([links["address"], links["other"]]))
        group = np.arange(len(addresses))
        group[np.searchsorted(addresses, links["address"])] = np.searchsorted(addresses, links["other"])

        def group_of(descriptors: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
            return group[np.searchsorted(addresses, descriptors["address"])]

        best = self._merge_compared(DESCRIPTOR, 1, lambda documents: best_of_groups(documents, group_of(documents)))
        kept = addresses.copy()
        kept[group_of(best)] = best["address"]
        removed = remove_near_duplicates(addresses, kept[group])
        by_shard = split_records(removed, shards_of(removed["address"]), len(self.shards))
        write_buckets(self._file("cluster", number), by_shard)

    def _merge_compared(
        self, dtype: np.dtype[Any], content: int, merge: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Returns `merge` of a content of all files of `compare`, of which a few are read at a time.

        It is called when at least as many records are waiting as it has returned last, so that its total time does not
        grow with the square of the input.
        """
        files = self._files("compare", self.num_band_buckets)
        merged, waiting = np.zeros(0, dtype), []
        for start in range(0, len(files), _FILES_AT_ONCE):
            waiting.append(read_records(files[start : start + _FILES_AT_ONCE], dtype, 2, content))
            if sum(some.nbytes for some in waiting) >= max(merged.nbytes, _MERGED_BYTES):
                merged, waiting = merge(np.concatenate([merged, *waiting])), []
        return merge(np.concatenate([merged, *waiting]))

    def write(self, shard: int) -> None:
        """Write the kept documents of a shard and commit them. Without any, the part has no file."""
        name = f"{shard:05}"
        removed = self.removed_documents(shard)
        counts = Counter(records=0)
        data = shard_bytes(kept_documents(self.shards[shard], rows_of(removed["address"]), counts))
        files = {f"documents/{name}.parquet": data} if counts["documents"] else {}
        drops = {reason: int((removed["reason"] == number).sum()) for number, reason in enumerate(REASONS)}
        samples = [removed[removed["reason"] == number][:SAMPLES] for number in range(len(REASONS))]
        facts = {"gone": [record for some in samples for record in some.tolist()]}
        self.out.commit(name, files, counts, {reason: count for reason, count in drops.items() if count}, facts)

    def removed_documents(self, shard: int) -> npt.NDArray[Any]:
        """Returns the REMOVED documents of a shard, in the order of its rows."""
        removed = [np.zeros(0, REMOVED)]
        for block in self.blocks.blocks_of_shard(shard):
            shards = self.blocks.shards_of_block(block)
            file = self.scratch / f"removed-by-shard/{block:05}"
            removed.append(read_records([file], REMOVED, len(shards), shard - shards.start))
        if self.threshold:
            removed.append(read_records(self._files("cluster", 1), REMOVED, len(self.shards), shard))
        joined = np.concatenate(removed)
        return joined[np.argsort(joined["address"])]

    @property
    def _described(self) -> np.dtype[Any]:
        """A document's descriptor and signature; the signature is empty if near duplicates are kept."""
        width = minhash.NUM_PERMUTATIONS if self.threshold else 0
        return np.dtype([("descriptor", DESCRIPTOR), ("signature", "u1", (width,))])

    def _read_described(self, block: int) -> npt.NDArray[Any]:
        """Returns the descriptors and signatures of the documents of a block."""

        def read(shard: int) -> npt.NDArray[Any]:
            file = self._file("describe", shard)
            if file.local_path and file.size():
                return np.memmap(file.local_path, self._described, "r")[self.blocks.rows(block, shard)]
            return np.frombuffer(file.read_bytes(), self._described)[self.blocks.rows(block, shard)]

        found = map_in_threads(read, self.blocks.shards_of_block(block))
        return np.concatenate([np.zeros(0, self._described), *found])

    def _split_by_block(self, records: npt.NDArray[Any]) -> list[memoryview]:
        return split_records(records, self.blocks.block_of(records["address"]), len(self.blocks))

    def _file(self, step: str, number: int) -> Location:
        return self.scratch / f"{step}/{number:05}"

    def _files(self, step: str, count: int) -> list[Location]:
        return [self._file(step, number) for number in range(count)]


@lru_cache(8)
def _count_documents_once(described: Location, shards: int, record_bytes: int, _attempt: str) -> tuple[int, ...]:
    """Returns the number of documents in each shard, from the files of `describe`, of which a process lists the sizes
    once in an attempt."""
    sizes = described.sizes()

    def size(name: str) -> int:  # a listing may omit a file
        return sizes[name] if name in sizes else (described / name).size()

    names = [f"{shard:05}" for shard in range(shards)]
    return tuple(size // record_bytes for size in map_in_threads(size, names))
