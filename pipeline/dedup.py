"""documents -> documents without duplicates (Beam).

What the documents say stays on disk. Each shard sends a narrow table (id, content, revision, where) through Beam, cut
into buckets; a bucket decides alone which of its documents stay: first the newest revision of each doc_id, then one
document of each content. Last, every shard is written again with what stays of it.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.beam import carried, pipeline
from pipeline.config import Compute, Config
from pipeline.schema import parquet_bytes, read_table
from pipeline.storage import Location

VERSION = 1

_BUCKETS = 64  # what one worker holds at once is this part of the narrow table
_SAMPLES = 5

#: What travels: one row a document. `row` counts from 0 in the shard.
_NARROW = pa.schema(
    [
        ("doc_id", pa.string()),
        ("content", pa.binary(16)),
        ("revision", pa.int64()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)


class Rows(NamedTuple):
    """Rows of a shard: those that are the newest of their doc_id, and those of them that stay."""

    newest: list[int]
    staying: list[int]


class DedupConfig(Config):
    beam: Annotated[list[str], Compute] = Field(default=["--runner=FnApiRunner"])


def narrow(shard: int, location: Location) -> pa.Table:
    """What decides about a shard's documents."""
    table = read_table(location, ["doc_id", "content_hash", "revision"])
    content = [bytes.fromhex(digest[:32]) for digest in table["content_hash"].to_pylist()]
    return pa.table(
        {
            "doc_id": table["doc_id"],
            "content": pa.array(content, pa.binary(16)),
            "revision": table["revision"],
            "shard": pa.repeat(pa.scalar(shard, pa.int32()), len(table)),
            "row": pa.array(range(len(table)), pa.int32()),
        },
        schema=_NARROW,
    )


def buckets(table: pa.Table, key: str) -> Iterator[tuple[int, bytes]]:
    """Cut a narrow table by a column's value: equal values meet in one bucket, wherever they come from."""
    if key == "content":
        numbers = [content[0] % _BUCKETS for content in table["content"].to_pylist()]
    else:
        numbers = [_bucket(doc_id) for doc_id in table["doc_id"].to_pylist()]
    column = np.array(numbers)
    for number in sorted(set(numbers)):
        yield number, _packed(table.filter(pa.array(column == number)))


def _bucket(doc_id: str) -> int:
    return zlib.crc32(doc_id.encode()) % _BUCKETS


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpacked(packed: Iterable[bytes]) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_stream(data).read_all() for data in packed])


def kept(table: pa.Table, key: str) -> pa.Table:
    """Of the rows with one value of `key` the best, in an order that depends on nothing but the rows.

    The newest revision is best; then the smallest doc_id and content; then the first place.
    """
    table = table.sort_by(
        [
            (key, "ascending"),
            ("revision", "descending"),
            ("doc_id", "ascending"),
            ("content", "ascending"),
            ("shard", "ascending"),
            ("row", "ascending"),
        ]
    )
    values = table[key].to_pylist()
    first = [number == 0 or values[number - 1] != value for number, value in enumerate(values)]
    return table.filter(pa.array(first, pa.bool_()))


def _read(numbered: tuple[int, Location]) -> Iterator[tuple[int, bytes]]:
    with carried():
        yield from buckets(narrow(*numbered), "doc_id")


def _newest(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
    yield from buckets(kept(_unpacked(bucket[1]), "doc_id"), "content")


def _distinct(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, Rows]]:
    newest = _unpacked(bucket[1])
    found: defaultdict[int, Rows] = defaultdict(lambda: Rows([], []))
    for shard, row in _places(newest):
        found[shard].newest.append(row)
    for shard, row in _places(kept(newest, "content")):
        found[shard].staying.append(row)
    yield from found.items()


def _places(table: pa.Table) -> Iterator[tuple[int, int]]:
    return zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)


def write(found: tuple[int, Iterable[Rows]], shards: Mapping[int, Location], out: Output) -> None:
    """Write what stays of one shard and commit it; a shard of which nothing stays has a record without a file."""
    with carried(f"shard {found[0]:05}"):
        number, parts = found
        name = f"{number:05}"
        if out.part(name):
            return
        table = read_table(shards[number])
        lists = list(parts)
        staying = {row for part in lists for row in part.staying}
        newest = {row for part in lists for row in part.newest}
        result = _rows(table, staying)
        gone = {"same doc_id": set(range(len(table))) - newest, "duplicate": newest - staying}
        gone = {reason: rows for reason, rows in gone.items() if rows}
        shown = {reason: _shown(table, rows) for reason, rows in gone.items()}
        counts = Counter(
            records=len(table),
            documents=len(result),
            words=sum(result["num_words"].to_pylist()),
            heldout=result["split"].to_pylist().count("heldout"),
        )
        files = {f"documents/{name}.parquet": parquet_bytes(result)} if len(result) else {}
        out.commit(name, files, counts, {reason: len(rows) for reason, rows in gone.items()}, {"samples": shown})


def _rows(table: pa.Table, rows: Iterable[int]) -> pa.Table:
    return table.take(pa.array(sorted(rows), pa.int64()))


def _shown(table: pa.Table, rows: Iterable[int]) -> list[dict[str, str]]:
    return _rows(table, sorted(rows)[:_SAMPLES]).select(["doc_id", "title", "source"]).to_pylist()


def run(config: DedupConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs["documents"]` is extract's artifact."""
    documents = inputs["documents"]
    shards = dict(enumerate(documents.files("documents/")))
    if any(out.part(f"{number:05}") is None for number in shards):
        with out.watch(len(shards), "shards"), pipeline(config.beam) as running:
            import apache_beam as beam

            staying = (
                running
                | "Shards" >> beam.Create(list(shards.items())).with_output_types(Any)
                | "Spread" >> beam.Reshuffle()
                | "Read" >> beam.FlatMap(_read)
                | "ById" >> beam.GroupByKey()
                | "Newest" >> beam.FlatMap(_newest)
                | "ByContent" >> beam.GroupByKey()
                | "Distinct" >> beam.FlatMap(_distinct)
            )
            everywhere = running | "Every" >> beam.Create([(number, Rows([], [])) for number in shards])
            _ = (
                (staying, everywhere)
                | "Together" >> beam.Flatten()
                | "ByShard" >> beam.GroupByKey()
                | "Write" >> beam.Map(write, shards, out)
            )
    samples: dict[str, list[dict[str, str]]] = {}
    for part in out.parts():
        for reason, shown in part.facts["samples"].items():
            samples[reason] = [*samples.get(reason, []), *shown][:_SAMPLES]
    return out.finish(config.model_dump(mode="json"), {"documents": documents.fingerprint}, facts={"samples": samples})
