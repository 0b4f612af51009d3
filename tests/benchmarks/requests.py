"""Requests to S3 of the stages from extract to examples, per shard, and what full English Wikipedia would need.

The stages run on a local S3 server behind a proxy that records every request. The document shards have their default
size: each is extracted from 4 MiB of multistream bz2, made of the pages of a real dump with shuffled words (see
`scale`), in files of 32 MiB without an index. There is one sequence length, and dupe_factor is 1.

Requests are counted by stage, operation and folder. Those that depend on time alone, the heartbeats of leases and the
listings for the progress, are counted separately.

- `per_shard_N`, `STAGE_per_shard`, `STAGE_per_gb`: requests per document shard at N shards; of a stage at most shards,
  and there per 10^9 characters of text.
- `growth`: the largest relative difference between the sizes in the requests per shard, of all operations whose number
  depends on the size.
- `full_wikipedia_requests`: at 6,000 shards. Each count is extended linearly from the two largest sizes. Reads of
  exchange files (ranges of files in scratch) are the exception: their number is that of groups of shards, as the stage
  forms them (tokens from shards of the measured sizes), times that of buckets, which is in proportion to the documents
  (dedup), the groups (vocab) or the text (tokens). Requests that depend on time are added at their measured rate, for
  24 hours in each stage.
- `full_wikipedia_serial_minutes`: 20 ms for each request of the longest chain, with 32 worker processes. A chain is a
  sequence of requests of one process of which each begins after the one before has ended, so no sequence of requests
  that wait for each other is longer. A stage takes the driver's longest chain and then that of the worker with the
  longest. The driver's is extended as counts are; a worker's in proportion to its shards. Chains of exchange reads are
  extended as above, but to rounds of 64 groups. Requests that depend on time are left out: nothing waits for them.
- `driver_memory_gb`: the largest peak (VmHWM) of a stage's driver, extended linearly from the two largest sizes;
  `STAGE_driver_mb_N` are the peaks.
"""

import argparse
import bz2
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import boto3
import psutil
import yaml

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.bucket_files import shard_groups
from cloze.pipeline.core.config import load
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.work_units import MULTISTREAM_UNIT_BYTES
from cloze.pipeline.tokens.steps import groups_of_sizes
from tests.benchmarks._show import show
from tests.benchmarks.extract import DEFAULT, read_pages
from tests.benchmarks.scale import BASE, PROCESSES, peak_mb, shuffled_copies
from tests.conftest import free_port, wait_for_port
from tests.s3_proxy import Proxy, Span, s3_proxy

STAGES = ("extract", "dedup", "vocab", "tokens", "examples-128")
FULL_SHARDS, FULL_DOCUMENTS, FULL_WORKERS = 6000, 7_000_000, 32
FULL_HOURS = 24  # for each stage
LATENCY = 0.02  # seconds per request
IN_FLIGHT = 64  # requests of a process
FILE_SHARDS, STREAM_PAGES = 8, 25
FINGERPRINT = re.compile("[0-9a-f]{16}")
ARTIFACT_FILES = ("lease.json", "manifest.json")


class Chain(NamedTuple):
    """The length of the longest chain of a process: of exchange reads, and of other requests."""

    other: float
    exchange: float


class StageRequests(NamedTuple):
    """What a stage needed: requests by operation, those that depend on time per hour, chains, the driver's memory."""

    counts: Counter[str]
    timed_per_hour: float
    driver: Chain
    worker: Chain
    driver_mb: float


class Size(NamedTuple):
    """The measurements at a number of shards, with the documents and characters in them, and the shards' sizes."""

    shards: int
    documents: int
    characters: int
    shard_bytes: list[int]  # of the document shards that tokens reads
    stages: dict[str, StageRequests]

    @property
    def per_shard(self) -> float:
        return sum(stage.counts.total() for stage in self.stages.values()) / self.shards


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=requests", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="the MediaWiki XML dump whose pages are repeated")
    parser.add_argument("--shards", type=int, nargs="+", default=[16, 64], help="two sizes or more, such as 16 64 256")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name)) as proxy:
        sizes = [measure(proxy, Path(options.input), count, options.workers) for count in sorted(options.shards)]
    counts = {name: dict(stage.counts.most_common()) for name, stage in sizes[-1].stages.items()}
    show(
        f"requests to S3, {options.workers} workers",
        figures(sizes, options.workers),
        {"benchmark": "requests", "input": options.input, "counts": counts},
    )


def measure(proxy: Proxy, source: Path, shards: int, workers: int) -> Size:
    """Runs the stages on a corpus of `shards` document shards."""
    bucket = Location(f"s3://cloze-requests-{shards}")
    boto3.client("s3").create_bucket(Bucket=bucket.name)
    write_source(source, shards, bucket)
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "requests.yaml"
        config.write_text(yaml.safe_dump(run_settings(bucket, workers)))
        stages = {stage: measure_stage(proxy, config, stage) for stage in STAGES}
        run = Run(load(RunConfig, config))
        extracted, kept = run.artifact("extract"), run.artifact("dedup")
        assert extracted and kept
        files = extracted.files("documents/")
        assert len(files) == shards, f"{len(files)} shards in place of {shards}"
        characters = sum(sum(read_table(file, ["num_chars"])["num_chars"].to_pylist()) for file in files)
        shard_bytes = [kept.manifest.files[name].bytes for name in sorted(kept.manifest.files)]
        return Size(shards, extracted.manifest.counts["documents"], characters, shard_bytes, stages)


@contextmanager
def s3_server(folder: Path) -> Iterator[Proxy]:
    """A local S3 server behind a proxy. This process and its children use it."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for_port(port)
            with s3_proxy(f"http://127.0.0.1:{port}") as proxy:
                os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
                os.environ |= {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": proxy.url}
                yield proxy
        finally:
            server.terminate()


def write_source(source: Path, shards: int, bucket: Location) -> None:
    """Writes multistream dumps that are extracted into `shards` document shards."""
    header, pages = read_pages(source)
    copies = shuffled_copies(pages, float("inf"))
    for first in range(0, shards, FILE_SHARDS):
        data = bytearray(bz2.compress(header))
        count = min(FILE_SHARDS, shards - first)
        for number in range(count):
            size = (
                MULTISTREAM_UNIT_BYTES if number < count - 1 else MULTISTREAM_UNIT_BYTES * 7 // 8
            )  # and the last stream
            end = len(data) + size
            while len(data) < end:
                data += bz2.compress(b"".join(islice(copies, STREAM_PAGES)))
        data += bz2.compress(b"</mediawiki>\n")
        (bucket / f"dumps/{first:05}.xml.bz2").write_bytes(memoryview(data))


def run_settings(bucket: Location, workers: int) -> dict[str, Any]:
    """The quickstart's settings, with the dumps as its source, one sequence length, and worker processes for Beam."""
    settings = yaml.safe_load(Path(BASE).read_text())
    beam = [*PROCESSES, f"--direct_num_workers={workers}"]
    source = {"name": "wiki", "kind": "wikipedia", "language": "en", "files": [f"{bucket}/dumps/*.bz2"]}
    settings |= {"name": "requests", "root": f"{bucket}/root", "dedup": {"beam": beam}, "tokens": {"workers": workers}}
    settings["extract"] = {"sources": [source], "beam": beam}
    settings["vocab"] |= {"workers": workers}
    settings["examples"] |= {"dupe_factor": 1, "workers": workers}
    settings["pretrain"]["phases"] = [{"max_seq_length": 128, "max_predictions_per_seq": 20, "steps": 600}]
    del settings["finetune"]
    return settings


def measure_stage(proxy: Proxy, config: Path, stage: str) -> StageRequests:
    """Runs a stage in a process of its own, and notes which process opens which connection to the proxy."""
    proxy.spans.clear()
    processes: dict[int, int] = {}  # port -> process
    started, peak = time.monotonic(), 0.0
    with subprocess.Popen([sys.executable, "-m", "tests.benchmarks._requests", str(config), stage]) as driver:
        while driver.poll() is None:
            with suppress(psutil.Error):  # a process has just ended
                for process in (psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)):
                    processes |= {one.laddr.port: process.pid for one in process.net_connections("tcp") if one.raddr}
            peak = max(peak, peak_mb(driver.pid))
            time.sleep(0.5)
    if driver.returncode:
        raise SystemExit(f"{stage}: ended with status {driver.returncode}")
    spans: dict[int, list[Span]] = {driver.pid: []}
    counted = [span for span in proxy.spans if not is_timed(span)]
    for span in counted:
        spans.setdefault(processes.get(span.port, driver.pid), []).append(span)
    of_driver = longest_chain(spans.pop(driver.pid))
    of_worker = max(map(longest_chain, spans.values()), key=sum, default=Chain(0, 0))
    timed_per_hour = (len(proxy.spans) - len(counted)) / (time.monotonic() - started) * 3600
    return StageRequests(Counter(map(operation, counted)), timed_per_hour, of_driver, of_worker, peak)


def operation(span: Span) -> str:
    """The method, or LIST, or EXCHANGE for a read of an exchange file; then the folder, without fingerprints."""
    url = urlsplit(span.path)
    listed = parse_qs(url.query).get("prefix")
    *folders, name = (listed or url.path.split("/", 2)[2:] or [""])[0].split("/")
    place = [folder for folder in folders if folder != "root" and not FINGERPRINT.fullmatch(folder)]
    method = "EXCHANGE" if is_exchange(span) else "LIST" if listed else span.method
    return f"{method} {'/'.join([*place, name] if name in ARTIFACT_FILES else place)}"


def is_exchange(span: Span) -> bool:
    return span.method == "GET" and span.is_range and "/scratch/" in span.path


def is_timed(span: Span) -> bool:
    """Returns whether a request is a heartbeat of the lease, or a listing for the progress."""
    is_heartbeat = span.method == "PUT" and span.path.endswith("/lease.json")
    return is_heartbeat or ("list-type" in span.path and ("parts%2F" in span.path or "scratch%2F" in span.path))


def longest_chain(spans: Sequence[Span]) -> Chain:
    """Returns the largest number of a process's requests of which each begins after the one before has ended."""
    length, end = [0, 0], [0.0, 0.0]
    for span in sorted(spans, key=lambda span: span.end):
        kind = is_exchange(span)
        if span.start >= end[kind]:
            length[kind], end[kind] = length[kind] + 1, span.end
    return Chain(*length)


def figures(sizes: Sequence[Size], workers: int) -> dict[str, float]:
    last = sizes[-1]
    found = {f"per_shard_{size.shards}": size.per_shard for size in sizes}
    for stage, measured in last.stages.items():
        found[f"{stage}_per_shard"] = measured.counts.total() / last.shards
        found[f"{stage}_per_gb"] = measured.counts.total() / (last.characters / 1e9)
        found[f"{stage}_full_wikipedia_requests"] = full_requests(sizes, stage)
        found[f"{stage}_serial_minutes"] = full_chain(sizes, stage, workers) * LATENCY / 60
        found |= {f"{stage}_driver_mb_{size.shards}": size.stages[stage].driver_mb for size in sizes}
    found["growth"] = growth(sizes)
    found["full_wikipedia_requests"] = sum(full_requests(sizes, stage) for stage in STAGES)
    found["full_wikipedia_serial_minutes"] = sum(full_chain(sizes, stage, workers) for stage in STAGES) * LATENCY / 60
    found["driver_memory_gb"] = (
        max(extended(sizes, lambda size, stage=stage: size.stages[stage].driver_mb) for stage in STAGES) / 1e3
    )
    return found


def growth(sizes: Sequence[Size]) -> float:
    """Returns the largest relative difference of the requests per shard that depend on the number of shards."""
    counts = [
        Counter({(stage, name): number for stage in STAGES for name, number in size.stages[stage].counts.items()})
        for size in sizes
    ]
    varying = {name for name in set().union(*counts) if len({count[name] for count in counts}) > 1}
    per_shard = [sum(count[name] for name in varying) / size.shards for count, size in zip(counts, sizes, strict=True)]
    return max(per_shard) / min(per_shard) - 1


def extended(sizes: Sequence[Size], value: Callable[[Size], float]) -> float:
    """Extends a value linearly to full Wikipedia. What falls with the shards is taken to stay as it is."""
    before, last = sizes[-2:]
    slope = (value(last) - value(before)) / (last.shards - before.shards)
    return value(last) + max(slope, 0.0) * (FULL_SHARDS - last.shards)


def num_groups(sizes: Sequence[int], stage: str) -> int:
    """How many groups of shards of these sizes in bytes a stage has."""
    return len(groups_of_sizes(sizes)) if stage == "tokens" else len(shard_groups(len(sizes)))


def full_shards(size: Size) -> list[int]:
    """The sizes of the shards of full Wikipedia, in which the measured ones are repeated."""
    return list(islice(cycle(size.shard_bytes), FULL_SHARDS))


def groups_factor(size: Size, stage: str) -> float:
    """How many times as many groups of shards a stage has for full Wikipedia."""
    return num_groups(full_shards(size), stage) / num_groups(size.shard_bytes, stage)


def buckets_factor(size: Size, stage: str) -> float:
    """How many times as many buckets a stage has for full Wikipedia."""
    if stage == "dedup":
        return FULL_DOCUMENTS / size.documents
    return groups_factor(size, stage) if stage == "vocab" else FULL_SHARDS / size.shards


def full_requests(sizes: Sequence[Size], stage: str) -> float:
    last = sizes[-1]
    total = last.stages[stage].timed_per_hour * FULL_HOURS
    for name, count in last.stages[stage].counts.items():
        if name.startswith("EXCHANGE"):
            total += count * groups_factor(last, stage) * buckets_factor(last, stage)
        else:
            total += extended(sizes, lambda size, name=name: size.stages[stage].counts[name])
    return total


def full_chain(sizes: Sequence[Size], stage: str, workers: int) -> float:
    """Returns the requests of the longest chain of a stage."""
    last = sizes[-1]
    driver, worker = last.stages[stage].driver, last.stages[stage].worker
    full, measured = (num_groups(shards, stage) for shards in (full_shards(last), last.shard_bytes))
    rounds = ceil(full / IN_FLIGHT) / ceil(measured / IN_FLIGHT)
    exchanges = (driver.exchange + worker.exchange * workers / FULL_WORKERS) * buckets_factor(last, stage) * rounds
    others = worker.other * workers / FULL_WORKERS * FULL_SHARDS / last.shards
    return extended(sizes, lambda size: size.stages[stage].driver.other) + others + exchanges
