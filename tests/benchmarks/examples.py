"""Examples of length 128 from books: CPU time from document Parquet to example Parquet, compared with BERT's original.

`examples_per_cpu_second` includes all processes (Ray, Parquet) but not start-up: it is computed from the difference
between a large text and a small one (4.7 MB, and five times as much of other books), both with one worker. The original
code is timed on the small text, split into the same sentences. Its time covers building the instances in memory with
masks, and no writing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cloze.pipeline.text.sentences import document_sentences
from tests.benchmarks import _examples
from tests.benchmarks._show import show
from tests.benchmarks.demo import cost

BOOKS = "../shared/data/books/*/*.txt"
SMALL_MB, LARGE_MB = 4.7, 23.5  # of text
SHARD_DOCUMENTS = 400
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"dupe_factor": 5},
    "_dupe10": {"dupe_factor": 10},
    "_stored_masks": {"dupe_factor": 5, "masking": "static"},
}


class Measurement(NamedTuple):
    examples: int
    cpu: float  # seconds


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=examples", description=__doc__)
    parser.add_argument("--books", default=BOOKS, help="text files, by a glob")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        figures = measure(documents(options.books, Path(name)), Path(name), options.repeats)
    show("examples of length 128", figures, {"benchmark": "examples", "cores": os.cpu_count()})


def documents(books: str, folder: Path, heldout_fraction: float = 0.0) -> pa.Table:
    """Returns the output of extract and dedup on books: one document per chapter, without duplicates."""
    source = {"kind": "books", "name": "books", "files": [books], "language": "en"}
    config = {"root": str(folder / "runs"), "extract": {"sources": [source], "heldout_fraction": heldout_fraction}}
    (folder / "books.yaml").write_text(yaml.safe_dump(config))
    command = [
        "-m",
        "cloze.infra.cli",
        "run",
        "configs/quickstart.yaml",
        str(folder / "books.yaml"),
        "--until",
        "dedup",
    ]
    subprocess.run([sys.executable, *command], check=True)
    files = sorted((folder / "runs").glob("dedup/*/documents/*.parquet"))
    return pa.concat_tables(map(pq.read_table, files))


def megabytes(table: pa.Table, start: int, size: float) -> pa.Table:
    """Returns documents from row `start` on with at least `size` million characters, or all remaining rows."""
    total, end, chars = 0.0, start, table["num_chars"].to_pylist()
    while end < len(chars) and total < size:
        total += chars[end] / 1e6
        end += 1
    return table.slice(start, end - start)


def shards(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(table), SHARD_DOCUMENTS):
        yield table.slice(start, SHARD_DOCUMENTS)


def measure(table: pa.Table, folder: Path, repeats: int) -> dict[str, float]:
    small = megabytes(table, 0, SMALL_MB)
    large = megabytes(table, len(small), LARGE_MB)
    text = folder / "sentences.txt"
    text.write_text("\n\n".join("\n".join(document_sentences(one)) for one in small["text"].to_pylist()))
    sizes = {"few_mb": small, "many_mb": large}
    figures = {name: sum(part["num_chars"].to_pylist()) / 1e6 for name, part in sizes.items()}
    originals = {
        dupe: [time_original(text, dupe) for _ in range(repeats)]
        for dupe in sorted({settings["dupe_factor"] for settings in SETTINGS.values()})
    }
    for name, settings in SETTINGS.items():
        costs = [(time_stages(small, folder, settings), time_stages(large, folder, settings)) for _ in range(repeats)]
        speed = median((b.examples - a.examples) / (b.cpu - a.cpu) for a, b in costs)
        original_speed = median(one.examples / one.cpu for one in originals[settings["dupe_factor"]])
        figures |= {
            f"examples_per_cpu_second{name}": speed,
            f"original{name}": original_speed,
            f"ratio{name}": speed / original_speed,
            f"start_up_seconds{name}": median(a.cpu - a.examples / speed for a, _ in costs),
        }
    return figures


def time_stages(table: pa.Table, folder: Path, settings: dict[str, Any]) -> Measurement:
    work = folder / "work"
    _examples.prepare(work, shards(table))
    spent = cost(["-m", "tests.benchmarks._examples", str(work), json.dumps(settings), "--workers", "1"])
    counts = _examples.artifact(work, "examples").manifest.counts
    shutil.rmtree(work)
    return Measurement(counts["train"], spent["cpu_seconds"])


def time_original(text: Path, dupe_factor: int) -> Measurement:
    command = [sys.executable, "-m", "tests.benchmarks._reference", str(text), str(dupe_factor)]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Measurement(result["instances"], result["cpu_seconds"])
