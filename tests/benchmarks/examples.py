"""Examples of length 128 from books: CPU time from document Parquet to example Parquet, beside BERT's original code.

`examples_per_cpu_second` counts the time of all processes, Ray's and Parquet's in it, and leaves start-up out: it is
what many books cost less what some cost (4.7 MB of text, and five times as much of other books), with one worker, so
that both start as many processes. The original is timed on the smaller text, cut into the same sentences, up to its
instances in memory: it draws masks and writes nothing.
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
FEW, MANY = 4.7, 23.5  # MB of text
SHARD = 400  # documents
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"dupe_factor": 5},
    "_dupe10": {"dupe_factor": 10},
    "_stored_masks": {"dupe_factor": 5, "masking": "static"},
}


class Measured(NamedTuple):
    examples: int
    cpu: float


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=examples", description=__doc__)
    parser.add_argument("--books", default=BOOKS, help="text files, by a glob")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        figures = measure(documents(options.books, Path(name)), Path(name), options.repeats)
    show("examples of length 128", figures, {"benchmark": "examples", "cores": os.cpu_count()})


def documents(books: str, folder: Path, heldout_fraction: float = 0.0) -> pa.Table:
    """The documents of books as the first stages leave them: a chapter each, without duplicates."""
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
    """So many MB (10^6 characters) of the documents from `start` on, or all there are."""
    total, end, chars = 0.0, start, table["num_chars"].to_pylist()
    while end < len(chars) and total < size:
        total += chars[end] / 1e6
        end += 1
    return table.slice(start, end - start)


def shards(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, len(table), SHARD):
        yield table.slice(start, SHARD)


def measure(table: pa.Table, folder: Path, repeats: int) -> dict[str, float]:
    few = megabytes(table, 0, FEW)
    many = megabytes(table, len(few), MANY)
    text = folder / "sentences.txt"
    text.write_text("\n\n".join("\n".join(document_sentences(one)) for one in few["text"].to_pylist()))
    figures = {"few_mb": sum(few["num_chars"].to_pylist()) / 1e6, "many_mb": sum(many["num_chars"].to_pylist()) / 1e6}
    theirs = {
        dupe: [reference(text, dupe) for _ in range(repeats)]
        for dupe in sorted({settings["dupe_factor"] for settings in SETTINGS.values()})
    }
    for name, settings in SETTINGS.items():
        costs = [(ours(few, folder, settings), ours(many, folder, settings)) for _ in range(repeats)]
        speed = median((b.examples - a.examples) / (b.cpu - a.cpu) for a, b in costs)
        their_speed = median(one.examples / one.cpu for one in theirs[settings["dupe_factor"]])
        figures |= {
            f"examples_per_cpu_second{name}": speed,
            f"original{name}": their_speed,
            f"ratio{name}": speed / their_speed,
            f"start_up_seconds{name}": median(a.cpu - a.examples / speed for a, _ in costs),
        }
    return figures


def ours(table: pa.Table, folder: Path, settings: dict[str, Any]) -> Measured:
    work = folder / "work"
    _examples.prepare(work, shards(table))
    spent = cost(["-m", "tests.benchmarks._examples", str(work), json.dumps(settings), "--workers", "1"])
    counts = _examples.artifact(work, "examples").manifest.counts
    shutil.rmtree(work)
    return Measured(counts["train"], spent["cpu_seconds"])


def reference(text: Path, dupe_factor: int) -> Measured:
    command = [sys.executable, "-m", "tests.benchmarks._reference", str(text), str(dupe_factor)]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return Measured(said["instances"], said["cpu_seconds"])
