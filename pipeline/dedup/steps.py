"""The steps of deduplication. Each is divided into items, one for each shard or bucket, which can run in any order.

    describe  a shard   -> a descriptor of 64 bytes and a MinHash signature for each document
    newest    a bucket  -> the newest revision of each doc_id
    distinct  a bucket  -> one document of each content
    collect   a shard   -> its documents that are removed so far, and the bands of the others
    compare   a bucket  -> which of the documents that share a band are near duplicates
    cluster   once      -> one document of each group of near duplicates
    write     a shard   -> its documents that are kept

The steps exchange files in scratch. Their records are sorted into buckets; an item reads its bucket of every file of
the previous step, whose names it knows.

Memory: a bucket holds 32 MB of descriptors, or 8 MB of bands with at most 64 MB of signatures; a shard its own text.
Only `cluster` grows with the input: by 100 bytes for each document that has a near duplicate.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.core.artifacts import Output, Part
from cloze.pipeline.core.manifest_facts import DedupFacts, DroppedDocument
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import minhash
from cloze.pipeline.dedup.bucket_files import read_bucket, write_buckets
from cloze.pipeline.dedup.document_shards import read_tables, shard_bytes
from cloze.pipeline.dedup.duplicate_rules import (
    DESCRIPTOR,
    LINK,
    REASONS,
    REMOVED,
    TIE_COLUMNS,
    addresses_of,
    connected_components,
    describe_documents,
    keep_distinct_contents,
    keep_newest_revisions,
    links_to_roots,
    remove_near_duplicates,
    rows_of,
    shards_of,
)

BUCKET_RECORDS = 1 << 19  # descriptors or bands in a bucket
_BANDS_FILE_DOCUMENTS = 1 << 16  # documents whose bands are in one file
_SAMPLES = 5
_COLUMNS = ["doc_id", "content_hash", "revision", "num_chars", *TIE_COLUMNS]
_BAND = np.dtype([("key", "<u8"), ("address", "<i8")])

#: A step's name and the number of an item of it.
Item = tuple[str, int]


@dataclass(frozen=True)
class Steps:
    """Runs the items of the steps. An item writes its files whole, and is skipped once it is finished."""

    shards: list[Location]
    out: Output
    scratch: Location
    threshold: float
    num_buckets: int
    num_band_buckets: int

    def item_counts(self) -> dict[str, int]:
        """The steps in their order, and the number of items of each."""
        near = {"compare": self.num_band_buckets, "cluster": 1} if self.threshold else {}
        exact = {"describe": len(self.shards), "newest": self.num_buckets, "distinct": self.num_buckets}
        return {**exact, "collect": len(self.shards), **near, "write": len(self.shards)}

    @staticmethod
    def item_name(item: Item) -> str:
        step, number = item
        return f"{'shard' if step in ('describe', 'collect', 'write') else 'bucket'} {number:05} ({step})"

    def run_item(self, item: Item) -> None:
        step, number = item
        done = self.scratch / f"finished/{step}/{number:05}.done"
        if step == "write":
            self.write(number)
        elif not done.exists():
            getattr(self, step)(number)
            done.write_bytes(b"")
        pa.default_memory_pool().release_unused()

    def finished_items(self) -> int:
        """The number of items that are finished, on all workers."""
        committed = len((self.out.location / "parts").files())
        return sum(name.endswith(".done") for name in self.scratch.sizes()) + committed

    def describe(self, shard: int) -> None:
        described, signatures = [np.zeros(0, DESCRIPTOR)], [np.zeros((0, minhash.NUM_PERMUTATIONS), np.uint8)]
        for table in read_tables(self.shards[shard], _COLUMNS):
            described.append(describe_documents(table, addresses_of(shard, sum(map(len, described)))))
            if self.threshold:
                signatures.append(minhash.compute_signatures(table["text"].to_pylist()))
        if self.threshold:
            (self.scratch / f"signatures/{shard:05}").write_bytes(np.concatenate(signatures).tobytes())
        descriptors = np.concatenate(described)
        buckets = descriptors["id"] % self.num_buckets
        write_buckets(self.scratch / f"descriptors/{shard:05}", descriptors, buckets, self.num_buckets)

    def newest(self, bucket: int) -> None:
        descriptors = self._bucket(self._shard_files("descriptors"), DESCRIPTOR, self.num_buckets, bucket)
        kept, older = keep_newest_revisions(descriptors)
        # Duplicates go here as well, so that a bucket of contents has no content more often than there are buckets.
        kept, equal = keep_distinct_contents(kept)
        self._write_removed(f"removed/id-{bucket:05}", np.concatenate([older, equal]))
        buckets = kept["content"] % self.num_buckets
        write_buckets(self.scratch / f"contents/{bucket:05}", kept, buckets, self.num_buckets)

    def distinct(self, bucket: int) -> None:
        descriptors = self._bucket(self._bucket_files("contents/"), DESCRIPTOR, self.num_buckets, bucket)
        _, removed = keep_distinct_contents(descriptors)
        self._write_removed(f"removed/content-{bucket:05}", removed)

    def collect(self, shard: int) -> None:
        names = [*self._bucket_files("removed/id-"), *self._bucket_files("removed/content-")]
        removed = self._bucket(names, REMOVED, len(self.shards), shard)
        (self.scratch / f"collected/{shard:05}").write_bytes(removed.tobytes())
        if not self.threshold:
            return
        signatures = self._signatures(shard)
        kept = np.asarray(signatures.any(axis=1))
        kept[rows_of(removed["address"])] = False
        rows = np.flatnonzero(kept)
        for start in range(0, len(rows) + 1, _BANDS_FILE_DOCUMENTS):  # a file that is not full is a shard's last
            some = rows[start : start + _BANDS_FILE_DOCUMENTS]
            bands = np.zeros((len(some), minhash.NUM_BANDS), _BAND)
            bands["key"] = minhash.band_keys(signatures[some])
            bands["address"] = addresses_of(shard, some)[:, None]
            bands = bands.ravel()
            file = self.scratch / f"bands/{shard:05}-{start // _BANDS_FILE_DOCUMENTS:05}"
            write_buckets(file, bands, bands["key"] % self.num_band_buckets, self.num_band_buckets)

    def compare(self, bucket: int) -> None:
        found = [bands for shard in range(len(self.shards)) for bands in self._bands(shard, bucket)]
        bands = np.concatenate([np.zeros(0, _BAND), *found])
        _, number, count = np.unique(bands["key"], return_inverse=True, return_counts=True)
        bands = bands[count[number] > 1]
        addresses, owners = np.unique(bands["address"], return_inverse=True)
        signatures = np.zeros((len(addresses), minhash.NUM_PERMUTATIONS), np.uint8)
        for shard, in_shard in _by_shard(addresses):
            signatures[in_shard] = self._signatures(shard)[rows_of(addresses[in_shard])]
        roots = minhash.group_near_duplicates(bands["key"], owners, signatures, self.threshold)
        (self.scratch / f"links/{bucket:05}").write_bytes(links_to_roots(addresses, roots).tobytes())

    def cluster(self, number: int) -> None:
        links = np.zeros(0, LINK)
        for bucket in range(self.num_band_buckets):
            found = np.frombuffer((self.scratch / f"links/{bucket:05}").read_bytes(), LINK)
            links = connected_components(np.concatenate([links, found]))
        addresses = np.unique(np.concatenate([links["address"], links["other"]]))
        group = addresses.copy()
        group[np.searchsorted(addresses, links["address"])] = links["other"]
        batches = 1 + len(addresses) // BUCKET_RECORDS
        removed = [np.zeros(0, REMOVED)]
        for batch in range(batches):
            some = group % batches == batch
            removed.append(remove_near_duplicates(self._descriptors(addresses[some]), group[some]))
        self._write_removed(f"near/{number:05}", np.concatenate(removed))

    def write(self, shard: int) -> None:
        """Write the kept documents of a shard and commit them. Without any, the part has no file."""
        name = f"{shard:05}"
        if self.out.finished_part(name):
            return
        removed = self._removed(shard)
        counts = Counter(records=0)
        data = shard_bytes(_kept_documents(self.shards[shard], rows_of(removed["address"]), counts))
        files = {f"documents/{name}.parquet": data} if counts["documents"] else {}
        drops = {reason: int((removed["reason"] == number).sum()) for number, reason in enumerate(REASONS)}
        samples = [removed[removed["reason"] == number][:_SAMPLES] for number in range(len(REASONS))]
        facts = {"gone": [record for some in samples for record in some.tolist()]}
        self.out.commit(name, files, counts, {reason: count for reason, count in drops.items() if count}, facts)

    def samples(self, parts: Iterable[Part]) -> DedupFacts:
        """For every reason the first documents that were removed, each with the one that was kept in the end."""
        found: dict[str, list[DroppedDocument]] = {}
        for part in parts:
            for address, kept, reason in part.facts.get("gone", []):
                if len(shown := found.setdefault(REASONS[reason], [])) < _SAMPLES:
                    kept_sample = DroppedDocument(**self._sample(self._finally_kept(kept)))
                    shown.append(DroppedDocument(**self._sample(address), kept=kept_sample))
        return DedupFacts(samples={reason: found[reason] for reason in REASONS if reason in found})

    def _finally_kept(self, address: int) -> int:
        """Follow a document that was kept first, and removed by a later step, to the one that was kept instead."""
        removed = self._removed(shards_of(address))
        while len(found := removed[removed["address"] == address]):
            address = int(found["kept"][0])
            removed = self._removed(shards_of(address))
        return address

    def _sample(self, address: int) -> dict[str, Any]:
        row = int(rows_of(address))
        for table in read_tables(self.shards[shards_of(address)], ["doc_id", "title", "source", "text"]):
            if row < len(table):
                shown = table.slice(row, 1).to_pylist()[0]
                return {**shown, "text": shown["text"][:300]}
            row -= len(table)
        raise AssertionError(f"no document at {address}")

    def _bucket(self, names: Iterable[str], dtype: np.dtype[Any], num_buckets: int, bucket: int) -> npt.NDArray[Any]:
        """The records of a bucket from all these files."""
        found = [read_bucket(self.scratch / name, dtype, num_buckets, bucket)[0] for name in names]
        return np.concatenate([np.zeros(0, dtype), *found])

    def _shard_files(self, folder: str) -> list[str]:
        return [f"{folder}/{shard:05}" for shard in range(len(self.shards))]

    def _bucket_files(self, prefix: str) -> list[str]:
        return [f"{prefix}{bucket:05}" for bucket in range(self.num_buckets)]

    def _bands(self, shard: int, bucket: int) -> Iterator[npt.NDArray[Any]]:
        """The bands of a bucket from each of a shard's files."""
        full = _BANDS_FILE_DOCUMENTS * minhash.NUM_BANDS
        for number in itertools.count():
            file = self.scratch / f"bands/{shard:05}-{number:05}"
            bands, size = read_bucket(file, _BAND, self.num_band_buckets, bucket)
            yield bands
            if size < full:
                return

    def _signatures(self, shard: int) -> npt.NDArray[np.uint8]:
        file = self.scratch / f"signatures/{shard:05}"
        if file.local_path and file.size():
            return np.memmap(file.local_path, np.uint8, "r").reshape(-1, minhash.NUM_PERMUTATIONS)
        return np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, minhash.NUM_PERMUTATIONS)

    def _descriptors(self, addresses: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        descriptors = np.zeros(len(addresses), DESCRIPTOR)
        for shard, in_shard in _by_shard(addresses):
            whole, _ = read_bucket(self.scratch / f"descriptors/{shard:05}", DESCRIPTOR, self.num_buckets)
            descriptors[in_shard] = whole[np.argsort(whole["address"])[rows_of(addresses[in_shard])]]
        return descriptors

    def _write_removed(self, name: str, removed: npt.NDArray[Any]) -> None:
        write_buckets(self.scratch / name, removed, shards_of(removed["address"]), len(self.shards))

    def _removed(self, shard: int) -> npt.NDArray[Any]:
        """The REMOVED documents of a shard, in the order of its rows."""
        collected = np.frombuffer((self.scratch / f"collected/{shard:05}").read_bytes(), REMOVED)
        near = ["near/00000"] if self.threshold else []
        removed = np.concatenate([collected, self._bucket(near, REMOVED, len(self.shards), shard)])
        return removed[np.argsort(removed["address"])]


def _kept_documents(shard: Location, removed: npt.NDArray[np.int64], counts: Counter[str]) -> Iterator[pa.Table]:
    """A shard's documents without the removed rows, a few at a time. Adds to `counts`."""
    for table in read_tables(shard):
        rows = np.arange(counts["records"], counts["records"] + len(table))
        kept = table.filter(pa.array(~np.isin(rows, removed)))
        heldout = kept["split"].to_pylist().count("heldout")
        words = int(kept["num_words"].to_numpy().sum())
        counts.update(records=len(table), documents=len(kept), words=words, heldout=heldout)
        yield kept


def _by_shard(addresses: npt.NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Sorted addresses -> the number of each shard, and which of the addresses are in it."""
    shards, starts = np.unique(shards_of(addresses), return_index=True)
    ends = [*starts.tolist(), len(addresses)][1:]
    for shard, start, end in zip(shards.tolist(), starts, ends, strict=True):
        yield shard, slice(start, end)
