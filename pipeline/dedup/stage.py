"""documents -> documents without duplicates (Beam).

Only numbers travel through Beam. What decides lies in files of its own in scratch, whose rows are cut into buckets: a
step reads its bucket of every file of the step before, which it knows by name.

    describe  a shard   -> a row of 64 bytes and a MinHash signature for each document
    newest    a bucket  -> of each doc_id the newest revision
    distinct  a bucket  -> of each content one document
    judge     a shard   -> which of its documents are gone so far; the bands of the others
    compare   a bucket  -> of those that share a band, which are near duplicates
    join      once      -> of each chain of near duplicates one document
    write     a shard   -> its documents that stay

Every rule orders by what the documents hold, never by where they lie: first the newest revision of a doc_id (then the
longest); of equal contents, and of near duplicates, the longest (then the newest revision); a draw by the digest of
doc_id where that is equal, and at last by the digest of all else, where in its source's files it is from included.

Memory: a bucket holds 32 MB of rows, or 8 MB of bands with at most 64 MB of signatures; a shard its own text. `join`
alone grows with the input: by 100 bytes for each document that has a near duplicate, and nothing for the others.
"""

import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output, Part
from cloze.pipeline.core.beam import pipeline, serialized_errors
from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.core.facts import DedupFacts, DroppedDocument
from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.schema import DOCUMENT, parquet_errors
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import minhash
from cloze.pipeline.dedup.rules import (
    GONE,
    PAIR,
    REASONS,
    ROW,
    TIES,
    by_content,
    by_group,
    by_id,
    described,
    forest,
    tied,
)

VERSION = 3

_ROWS = 1 << 19  # in a bucket: documents, or bands
_AT_ONCE = 1 << 16  # documents whose bands are written at once
_SAMPLES = 5
_SAMPLES_PART = "samples"
_READ = 4 << 20  # bytes of documents read at once
_GROUP, _GROUP_BYTES = 1024, 8 << 20  # documents in a row group at most, and bytes but for the last one's
_COLUMNS = ["doc_id", "content_hash", "revision", "num_chars", *TIES]
_BAND = np.dtype([("key", "<u8"), ("place", "<i8")])


class DedupConfig(Config):
    """`near_threshold`: documents that resemble one another as much are near duplicates; 0 keeps them all."""

    near_threshold: float = Field(default=0.8, ge=0, le=1)
    beam: Annotated[list[str], Compute] = Field(default=["--runner=FnApiRunner"])

    @field_validator("near_threshold")
    @classmethod
    def _within_reach(cls, threshold: float) -> float:
        if 0 < threshold < 0.7:
            raise ValueError("the bands find too few pairs below 0.7; give 0.7 to 1, or 0 to keep near duplicates")
        return threshold


def write_cut(file: Location, rows: npt.NDArray[Any], bucket: npt.NDArray[Any], buckets: int) -> None:
    """Write rows so that those of a bucket can be read alone: offsets, and the rows in the order of their buckets."""
    order = np.argsort(bucket, kind="stable")
    offsets = offsets_of(np.bincount(bucket.astype(np.int64), minlength=buckets))
    file.write_bytes(offsets.tobytes() + rows[order].tobytes())


def read_cut(
    file: Location, dtype: np.dtype[Any], buckets: int, bucket: int | None = None
) -> tuple[npt.NDArray[Any], int]:
    """The rows of a bucket, or all; and how many rows there are in all."""
    with file.open() as opened:
        offsets = np.frombuffer(opened.read(8 * (buckets + 1)), np.int64)
        start, end = (0, offsets[-1]) if bucket is None else offsets[bucket : bucket + 2]
        opened.seek(8 * (buckets + 1) + int(start) * dtype.itemsize)
        return np.frombuffer(opened.read(int(end - start) * dtype.itemsize), dtype), int(offsets[-1])


@dataclass(frozen=True)
class Steps:
    """The stage's steps. Each is known by a number, writes its files whole and does nothing where they are there."""

    shards: list[Location]
    out: Output
    scratch: Location
    threshold: float
    buckets: int
    band_buckets: int

    def plan(self) -> dict[str, int]:
        """The steps in their order, and how many pieces each has."""
        near = {"compare": self.band_buckets, "join": 1} if self.threshold else {}
        pieces = {"describe": len(self.shards), "newest": self.buckets, "distinct": self.buckets}
        return {**pieces, "judge": len(self.shards), **near, "write": len(self.shards)}

    def do(self, piece: tuple[str, int]) -> None:
        """Do a piece of a step."""
        step, number = piece
        with serialized_errors(
            f"{'shard' if step in ('describe', 'judge', 'write') else 'bucket'} {number:05} ({step})"
        ):
            done = self.scratch / f"{step}/{number:05}.done"
            if step == "write":
                self.write(number)
            elif not done.exists():
                getattr(self, step)(number)
                done.write_bytes(b"")
        pa.default_memory_pool().release_unused()

    def _bucket(self, names: Iterable[str], dtype: np.dtype[Any], buckets: int, bucket: int) -> npt.NDArray[Any]:
        """The rows of a bucket of all these files."""
        found = [read_cut(self.scratch / name, dtype, buckets, bucket)[0] for name in names]
        return np.concatenate([np.zeros(0, dtype), *found])

    def _of_shards(self, folder: str) -> list[str]:
        return [f"{folder}/{shard:05}" for shard in range(len(self.shards))]

    def _of_buckets(self, folder: str) -> list[str]:
        return [f"{folder}{bucket:05}" for bucket in range(self.buckets)]

    def describe(self, shard: int) -> None:
        rows, signed = [], [np.zeros((0, minhash.VALUES), np.uint8)]
        for table in _tables(self.shards[shard], _COLUMNS):
            rows.append(described(table, (shard << 32) + sum(map(len, rows))))
            if self.threshold:
                signed.append(minhash.signatures(table["text"].to_pylist()))
        if self.threshold:
            (self.scratch / f"signatures/{shard:05}").write_bytes(np.concatenate(signed).tobytes())
        every = np.concatenate([np.zeros(0, ROW), *rows])
        write_cut(self.scratch / f"rows/{shard:05}", every, every["id"] % self.buckets, self.buckets)

    def newest(self, bucket: int) -> None:
        rows, older = by_id(self._bucket(self._of_shards("rows"), ROW, self.buckets, bucket))
        rows, equal = by_content(rows)  # so that no bucket of contents holds one more often than there are buckets
        self._write_gone(f"gone/id-{bucket:05}", np.concatenate([older, equal]))
        write_cut(self.scratch / f"contents/{bucket:05}", rows, rows["content"] % self.buckets, self.buckets)

    def distinct(self, bucket: int) -> None:
        _, gone = by_content(self._bucket(self._of_buckets("contents/"), ROW, self.buckets, bucket))
        self._write_gone(f"gone/content-{bucket:05}", gone)

    def _write_gone(self, name: str, gone: npt.NDArray[Any]) -> None:
        write_cut(self.scratch / name, gone, gone["place"] >> 32, len(self.shards))

    def judge(self, shard: int) -> None:
        names = [*self._of_buckets("gone/id-"), *self._of_buckets("gone/content-")]
        gone = self._bucket(names, GONE, len(self.shards), shard)
        (self.scratch / f"judged/{shard:05}").write_bytes(gone.tobytes())
        if not self.threshold:
            return
        signed = self._signatures(shard)
        stays = np.asarray(signed.any(axis=1))
        stays[_row(gone["place"])] = False
        staying = np.flatnonzero(stays)
        for start in range(0, len(staying) + 1, _AT_ONCE):  # a file that is not full is a shard's last
            some = staying[start : start + _AT_ONCE]
            bands = np.zeros((len(some), minhash.BANDS), _BAND)
            bands["key"] = minhash.bands(signed[some])
            bands["place"] = ((shard << 32) + some)[:, None]
            file = self.scratch / f"bands/{shard:05}-{start // _AT_ONCE:05}"
            write_cut(file, bands.ravel(), bands["key"].ravel() % self.band_buckets, self.band_buckets)

    def _signatures(self, shard: int) -> npt.NDArray[np.uint8]:
        file = self.scratch / f"signatures/{shard:05}"
        if file.local_path and file.size():
            return np.memmap(file.local_path, np.uint8, "r").reshape(-1, minhash.VALUES)
        return np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, minhash.VALUES)

    def compare(self, bucket: int) -> None:
        found = [bands for shard in range(len(self.shards)) for bands in self._bands(shard, bucket)]
        bands = np.concatenate([np.zeros(0, _BAND), *found])
        _, number, count = np.unique(bands["key"], return_inverse=True, return_counts=True)
        bands = bands[count[number] > 1]
        places, owners = np.unique(bands["place"], return_inverse=True)
        signed = np.zeros((len(places), minhash.VALUES), np.uint8)
        for shard, own in _by_shard(places):
            signed[own] = self._signatures(shard)[_row(places[own])]
        root = minhash.groups(bands["key"], owners, signed, self.threshold)
        (self.scratch / f"pairs/{bucket:05}").write_bytes(tied(places, root).tobytes())

    def _bands(self, shard: int, bucket: int) -> Iterator[npt.NDArray[Any]]:
        """The bands of a bucket from each of a shard's files."""
        full = _AT_ONCE * minhash.BANDS
        for number in itertools.count():
            bands, size = read_cut(self.scratch / f"bands/{shard:05}-{number:05}", _BAND, self.band_buckets, bucket)
            yield bands
            if size < full:
                return

    def join(self, number: int) -> None:
        pairs = np.zeros(0, PAIR)
        for bucket in range(self.band_buckets):
            found = np.frombuffer((self.scratch / f"pairs/{bucket:05}").read_bytes(), PAIR)
            pairs = forest(np.concatenate([pairs, found]))
        places = np.unique(np.concatenate([pairs["place"], pairs["other"]]))
        group = places.copy()
        group[np.searchsorted(places, pairs["place"])] = pairs["other"]
        parts = 1 + len(places) // _ROWS
        gone = [np.zeros(0, GONE)]
        for part in range(parts):
            some = group % parts == part
            gone.append(by_group(self._rows(places[some]), group[some]))
        found = np.concatenate(gone)
        write_cut(self.scratch / f"near/{number:05}", found, found["place"] >> 32, len(self.shards))

    def _rows(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        rows = np.zeros(len(places), ROW)
        for shard, own in _by_shard(places):
            every, _ = read_cut(self.scratch / f"rows/{shard:05}", ROW, self.buckets)
            rows[own] = every[np.argsort(every["place"])[_row(places[own])]]
        return rows

    def gone(self, shard: int) -> npt.NDArray[Any]:
        """What a shard loses, in the order of its rows."""
        judged = np.frombuffer((self.scratch / f"judged/{shard:05}").read_bytes(), GONE)
        near = ["near/00000"] if self.threshold else []
        gone = np.concatenate([judged, self._bucket(near, GONE, len(self.shards), shard)])
        return gone[np.argsort(gone["place"])]

    def write(self, shard: int) -> None:
        """Write what stays of one shard and commit it; a shard of which nothing stays has a record without a file."""
        name = f"{shard:05}"
        if self.out.finished_part(name):
            return
        gone = self.gone(shard)
        counts = Counter(records=0)
        data = _parquet(_staying(self.shards[shard], _row(gone["place"]), counts))
        files = {f"documents/{name}.parquet": data} if counts["documents"] else {}
        drops = {reason: int((gone["reason"] == number).sum()) for number, reason in enumerate(REASONS)}
        shown = [gone[gone["reason"] == number][:_SAMPLES] for number in range(len(REASONS))]
        facts = {"gone": [row for some in shown for row in some.tolist()]}
        self.out.commit(name, files, counts, {reason: count for reason, count in drops.items() if count}, facts)

    def samples(self, parts: Iterable[Part]) -> DedupFacts:
        """Of every reason the first documents that went for it, each with the one that stays."""
        found: dict[str, list[DroppedDocument]] = {}
        for part in parts:
            for place, kept, reason in part.facts.get("gone", []):
                if len(shown := found.setdefault(REASONS[reason], [])) < _SAMPLES:
                    kept_one = DroppedDocument(**self._shown(self._final(kept)))
                    shown.append(DroppedDocument(**self._shown(place), kept=kept_one))
        return DedupFacts(samples={reason: found[reason] for reason in REASONS if reason in found})

    def _final(self, place: int) -> int:
        gone = self.gone(place >> 32)
        while len(next_one := gone[gone["place"] == place]):
            place = int(next_one["kept"][0])
            gone = self.gone(place >> 32)
        return place

    def _shown(self, place: int) -> dict[str, Any]:
        row = int(_row(place))
        for table in _tables(self.shards[place >> 32], ["doc_id", "title", "source", "text"]):
            if row < len(table):
                shown = table.slice(row, 1).to_pylist()[0]
                return {**shown, "text": shown["text"][:300]}
            row -= len(table)
        raise AssertionError(f"no document at {place}")


def _row(place: Any) -> Any:
    return place & 0xFFFFFFFF


def _staying(shard: Location, gone: npt.NDArray[np.int64], counts: Counter[str]) -> Iterator[pa.Table]:
    """A shard's documents without some rows, a few at a time; counts them."""
    for table in _tables(shard):
        stays = ~np.isin(np.arange(counts["records"], counts["records"] + len(table)), gone)
        staying = table.filter(pa.array(stays))
        heldout = staying["split"].to_pylist().count("heldout")
        words = int(staying["num_words"].to_numpy().sum())
        counts.update(records=len(table), documents=len(staying), words=words, heldout=heldout)
        yield staying


def _parquet(tables: Iterator[pa.Table]) -> bytes:
    """The bytes of a Parquet file in row groups of a thousand documents, or fewer where they are long."""
    sink, waiting = io.BytesIO(), []
    with pq.ParquetWriter(sink, DOCUMENT, compression="zstd", write_page_index=True, write_batch_size=16) as writer:
        for table in tables:
            waiting.append(table)
            if sum(map(len, waiting)) >= _GROUP or sum(some.nbytes for some in waiting) >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if any(map(len, waiting)):
            writer.write_table(pa.concat_tables(waiting))
    return sink.getvalue()


def _by_shard(places: npt.NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Sorted places -> each shard's number and which of them lie there."""
    shards, starts = np.unique(places >> 32, return_index=True)
    ends = [*starts.tolist(), len(places)][1:]
    for shard, start, end in zip(shards.tolist(), starts, ends, strict=True):
        yield shard, slice(start, end)


def _tables(shard: Location, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A shard's documents, a few at a time. Raises UserError where it is damaged."""
    with (
        parquet_errors(shard),
        shard.open() as file,
        pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet,
    ):
        bytes_each = 1 + _size(parquet.metadata) // max(parquet.metadata.num_rows, 1)
        for batch in parquet.iter_batches(min(max(_READ // bytes_each, 1), _GROUP), columns=columns):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(parquet.schema_arrow.metadata)


def _size(metadata: pq.FileMetaData) -> int:
    return sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))


def _watch(steps: Steps) -> AbstractContextManager[None]:
    """While inside, show as progress how many pieces of all steps are done, wherever the workers are."""
    records = steps.out.location / "parts"

    def done() -> int:
        return sum(name.endswith(".done") for name in steps.scratch.sizes()) + len(records.files())

    return steps.out.reporting_progress(done, sum(steps.plan().values()), "pieces")


def run(config: DedupConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs["documents"]` is extract's artifact."""
    documents = inputs["documents"]
    shards = documents.files("documents/")
    of_shards = [f"{number:05}" for number in range(len(shards))]
    names = [*of_shards, _SAMPLES_PART]
    count = documents.manifest.counts.get("documents", 0)
    buckets, band_buckets = 1 + count // _ROWS, 1 + count * minhash.BANDS // _ROWS
    with scratch_folder(
        out.location
    ) as folder:  # also where nothing is left to do: an attempt killed at its end left its own
        if len(out.finished_parts(names)) < len(names):
            steps = Steps(shards, out, folder, config.near_threshold, buckets, band_buckets)
            _do_all(steps, config)
            out.commit(_SAMPLES_PART, {}, facts=steps.samples(out.require_parts(of_shards)).plain)
    parts = out.require_parts(names)
    facts = DedupFacts(**next(part.facts for part in parts if part.name == _SAMPLES_PART))
    return out.finish(parts, config.model_dump(mode="json"), {"documents": documents.fingerprint}, facts=facts)


def _do_all(steps: Steps, config: DedupConfig) -> None:
    """Every piece of every step, each step after the one before is done."""
    with _watch(steps), pipeline(config.beam) as running:
        import apache_beam as beam

        done: Any = running | "Start" >> beam.Create([0])
        for step, pieces in steps.plan().items():
            work = [(step, number) for number in range(pieces)]
            done = (
                done
                | f"After all, {step}" >> beam.GroupBy(lambda _: 0)
                | f"Pieces to {step}" >> beam.FlatMap(lambda _, pieces: pieces, work)
                | f"Spread to {step}" >> beam.Reshuffle()
                | step.capitalize() >> beam.Map(steps.do)
            )
