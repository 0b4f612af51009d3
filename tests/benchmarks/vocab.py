"""The vocabulary of real books: time, CPU and memory of the stage, and how it fares beside the published one.

The books become documents first, which is not timed. `seconds` are the stage's own, `command_seconds` those of the
whole `cloze run --until vocab` with Python's and Ray's start; CPU seconds are of all its processes, read four times a
second. Unknown share and pieces per word are of the held-out documents, for both vocabularies the same words.
"""

import argparse
import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.compute as pc
import yaml

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import run_periodically
from tests.benchmarks._show import show
from tests.benchmarks.scale import BASE, PROCESSES, watched

BOOKS = "../shared/data/books/**/*.txt"
PUBLISHED = "../shared/data/vocab/bert-base-uncased-vocab.txt"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=vocab", description=__doc__)
    parser.add_argument("--books", default=BOOKS, help="a glob of text files")
    parser.add_argument("--mb", type=float, default=float("inf"), help="of the books' files (10^6 bytes), at most")
    parser.add_argument("--published", default=PUBLISHED, help="the vocab.txt or tokenizer.json to compare with")
    parser.add_argument("--size", type=int, default=30522)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    books = list(chosen(options.books, options.mb * 1e6))
    if not books:
        raise SystemExit(f"--books {options.books}: no file matches")
    with tempfile.TemporaryDirectory() as name:
        figures = measure(Path(name), books, options)
    show(
        f"a vocabulary of {options.size:,} from {len(books)} books",
        figures,
        {"benchmark": "vocab", "books": options.books, "cores": os.cpu_count()},
        lambda value: f"{value:,.4g}" if value < 100 else f"{value:,.0f}",
    )


def chosen(pattern: str, size: float) -> Iterator[str]:
    """The pattern's files, in order, of at most `size` bytes together."""
    for book in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 (the pattern may be absolute)
        size -= Path(book).stat().st_size
        if size < 0:
            return
        yield str(Path(book).resolve())


def measure(folder: Path, books: list[str], options: argparse.Namespace) -> dict[str, float]:
    beam = [*PROCESSES, f"--direct_num_workers={options.workers}"]
    config = {
        "root": str(folder / "runs"),
        "extract": {"sources": [{"name": "books", "kind": "books", "files": books, "language": "en"}], "beam": beam},
        "dedup": {"beam": beam},
        "vocab": {"size": options.size, "workers": options.workers, "compare": options.published},
    }
    (folder / "vocab.yaml").write_text(yaml.safe_dump(config))
    command = ["-m", "cloze.infra.cli", "run", BASE, str(folder / "vocab.yaml"), "--until"]
    watched([*command, "dedup"])
    used: dict[int, float] = {}

    def look() -> bool:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
        return True

    with run_periodically(look, 0.25):
        peaks = watched([*command, "vocab"])
    documents, vocab = (made(folder / "runs", stage) for stage in ("dedup", "vocab"))
    sizes = [pc.sum(pc.binary_length(read_table(file, ["text"])["text"])).as_py() for file in documents.files("doc")]
    facts, counts = vocab.manifest.facts, vocab.manifest.counts
    ours, published = facts["heldout"], facts["compared"]
    return {
        "text_mb": sum(sizes) / 1e6,
        "documents": counts["documents"],
        "distinct_words": counts["distinct_words"],
        "pieces": facts["size"],
        "seconds": vocab.manifest.seconds,
        "command_seconds": peaks.seconds,
        "cpu_seconds": sum(used.values()),
        "driver_peak_mb": peaks.run_mb,
        "worker_peak_mb": peaks.worker_mb,
        "heldout_words": ours["words"],
        "unknown_share": ours["unknown_share"],
        "pieces_per_word": ours["pieces_per_word"],
        "published_pieces": published["size"],
        "published_unknown_share": published["unknown_share"],
        "published_pieces_per_word": published["pieces_per_word"],
    }


def made(root: Path, stage: str) -> Artifact:
    (folder,) = (root / stage).iterdir()
    return Artifact(Location(str(folder)), stage, folder.name)
