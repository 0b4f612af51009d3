"""documents -> documents without duplicates (Beam).

What the documents say stays on disk. Each shard sends a narrow table (id, content, revision, where) through Beam, cut
into buckets; a bucket decides alone which of its documents stay: first the newest revision of each doc_id, then one
document of each content. Last, every shard is written again with what stays of it.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.beam import carried, pipeline
from pipeline.config import Compute, Config
from pipeline.schema import DOCUMENT, parquet_bytes
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


class DedupConfig(Config):
    beam: Annotated[list[str], Compute] = Field(default=["--runner=FnApiRunner"])


def narrow(shard: int, location: Location) -> pa.Table:
    """What decides about a shard's documents."""
    with location.open() as file:
        table = pq.read_table(file, columns=["doc_id", "content_hash", "revision"])
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


def _distinct(bucket: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, list[int]]]:
    table = kept(_unpacked(bucket[1]), "content")
    staying: defaultdict[int, list[int]] = defaultdict(list)
    for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True):
        staying[shard].append(row)
    yield from staying.items()


def write(staying: tuple[int, Iterable[list[int]]], shards: Mapping[int, Location], out: Output) -> None:
    """Write what stays of one shard and commit it; a shard of which nothing stays has a record without a file."""
    with carried():
        number, lists = staying
        name = f"{number:05}"
        if out.part(name):
            return
        with shards[number].open() as file:
            table = pq.read_table(file, schema=DOCUMENT)
        rows = sorted(row for part in lists for row in part)
        result = table.take(pa.array(rows, pa.int64()))
        gone = sorted(set(range(len(table))) - set(rows))
        shown = table.take(pa.array(gone[:_SAMPLES], pa.int64())).select(["doc_id", "title", "source"]).to_pylist()
        counts = Counter(
            records=len(table),
            documents=len(result),
            words=sum(result["num_words"].to_pylist()),
            heldout=result["split"].to_pylist().count("heldout"),
        )
        files = {f"documents/{name}.parquet": parquet_bytes(result)} if len(result) else {}
        out.commit(name, files, counts, {"duplicate": len(gone)} if gone else {}, {"duplicates": shown})


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
            everywhere = running | "Every" >> beam.Create([(number, []) for number in shards])
            _ = (
                (staying, everywhere)
                | "Together" >> beam.Flatten()
                | "ByShard" >> beam.GroupByKey()
                | "Write" >> beam.Map(write, shards, out)
            )
    samples = [shown for part in out.parts() for shown in part.facts["duplicates"]][:_SAMPLES]
    return out.finish(
        config.model_dump(mode="json"), {"documents": documents.fingerprint}, facts={"samples": {"duplicate": samples}}
    )
