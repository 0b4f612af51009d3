"""Training a vocabulary on books: time, CPU and memory of the stage, and its quality compared with BERT's vocabulary.

Extraction and deduplication run first and are not timed. `seconds` is the time of the stage, `command_seconds` the time
of `cloze run --until vocab` with the start of Python and Ray. CPU seconds are summed over all processes, read four
times per second. Unknown share and pieces per word are measured on the held-out documents, with the same words for
both vocabularies.
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
from tests.benchmarks.scale import BASE, PROCESSES, run_with_peaks

BOOKS = "../shared/data/books/**/*.txt"
PUBLISHED = "../shared/data/vocab/bert-base-uncased-vocab.txt"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=vocab", description=__doc__)
    parser.add_argument("--books", default=BOOKS, help="glob of text files")
    parser.add_argument("--mb", type=float, default=float("inf"), help="maximum size of the books (10^6 bytes)")
    parser.add_argument("--published", default=PUBLISHED, help="vocab.txt or tokenizer.json to compare with")
    parser.add_argument("--size", type=int, default=30522)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    books = list(select_books(options.books, options.mb * 1e6))
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


def select_books(pattern: str, size: float) -> Iterator[str]:
    """Yields the first files of the pattern with at most `size` bytes in total."""
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
    run_with_peaks([*command, "dedup"])
    used: dict[int, float] = {}

    def sample() -> bool:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # the process has just ended
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
        return True

    with run_periodically(sample, 0.25):
        peaks = run_with_peaks([*command, "vocab"])
    documents, vocab = (only_artifact(folder / "runs", stage) for stage in ("dedup", "vocab"))
    sizes = [pc.sum(pc.binary_length(read_table(file, ["text"])["text"])).as_py() for file in documents.files("doc")]
    facts, counts = vocab.manifest.facts, vocab.manifest.counts
    trained, published = facts["heldout"], facts["compared"]
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
        "heldout_words": trained["words"],
        "unknown_share": trained["unknown_share"],
        "pieces_per_word": trained["pieces_per_word"],
        "published_pieces": published["size"],
        "published_unknown_share": published["unknown_share"],
        "published_pieces_per_word": published["pieces_per_word"],
    }


def only_artifact(root: Path, stage: str) -> Artifact:
    (folder,) = (root / stage).iterdir()
    return Artifact(Location(str(folder)), stage, folder.name)
