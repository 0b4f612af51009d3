"""Peak memory per process of extraction and deduplication, for a dump of any size.

The dump repeats the pages of a real one. Each copy has a new title and id, and its words are shuffled, so that no copy
is a duplicate. Peaks are the kernel's (VmHWM), read twice per second.
"""

import argparse
import bz2
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml

from cloze.pipeline.core.artifacts import read_manifest
from cloze.pipeline.core.storage import Location
from tests.benchmarks._show import show
from tests.benchmarks.extract import DEFAULT, read_pages

WORD = re.compile(rb"(?<= )([A-Za-z]{2,})(?= )")  # a word between spaces, so that markup is unchanged
TITLE = re.compile(rb"<title>([^<]*)</title>")
ID = re.compile(rb"<id>(\d+)</id>")
BASE = "configs/quickstart.yaml"
PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing"]


class Peaks(NamedTuple):
    """Peak MB (10^6 bytes) of the process that started the run and of its largest child process."""

    run_mb: float
    worker_mb: float
    seconds: float


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=scale", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="the MediaWiki XML dump whose pages are repeated")
    parser.add_argument("--gb", type=float, default=0.2, help="size of the XML (10^9 bytes)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--single-stream", action="store_true", help="write a single bz2 stream, not plain XML")
    options = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = folder / ("dump.xml.bz2" if options.single_stream else "dump.xml")
        figures["xml_mb"] = write_dump(Path(options.input), dump, options.gb * 1e9) / 1e6
        beam = [*PROCESSES, f"--direct_num_workers={options.workers}"]
        config = {
            "root": str(folder / "runs"),
            "extract": {"sources": [{"name": "wiki", "kind": "wikipedia", "files": [str(dump)]}], "beam": beam},
            "dedup": {"beam": beam},
        }
        (folder / "scale.yaml").write_text(yaml.safe_dump(config))
        for stage in ("extract", "dedup"):
            peaks = run_with_peaks(["-m", "cloze.infra.cli", "run", BASE, str(folder / "scale.yaml"), "--until", stage])
            figures |= {f"{stage}_{what}": value for what, value in peaks._asdict().items()}
            (artifact,) = (folder / "runs" / stage).iterdir()
            manifest = read_manifest(Location(str(artifact)))
            assert manifest
            figures[f"{stage}_documents"] = manifest.counts["documents"]
    show(
        f"{figures['xml_mb']:,.0f} MB of XML, {options.workers} workers",
        figures,
        {"benchmark": "scale", "input": options.input, "workers": options.workers},
        "{:,.0f}".format,
    )


def write_dump(source: Path, dump: Path, size: float) -> int:
    """Writes a dump with at least `size` bytes of XML and returns the number of bytes."""
    header, pages = read_pages(source)
    written = 0
    with bz2.open(dump, "wb", 1) if dump.suffix == ".bz2" else dump.open("wb") as file:
        for data in itertools.chain([header], shuffled_copies(pages, size), [b"</mediawiki>\n"]):
            written += file.write(data)
    return written


def shuffled_copies(pages: list[bytes], size: float) -> Iterator[bytes]:
    split = [WORD.split(page) for page in pages]
    words = [np.array(parts[1::2], object) for parts in split]
    rng = np.random.default_rng(0)
    written = copy = 0
    while written < size:
        for number, parts in enumerate(split):
            if copy:
                parts[1::2] = rng.permutation(words[number]).tolist()
            page = TITLE.sub(rb"<title>\1 %d</title>" % copy, b"".join(parts), count=1)
            page = ID.sub(b"<id>%d</id>" % (copy * len(pages) + number + 1), page, count=1)
            written += len(page)
            yield page
        copy += 1


def run_with_peaks(command: list[str]) -> Peaks:
    """Runs a Python command and returns the peak memory of its processes."""
    peaks: dict[int, float] = {}
    start = time.monotonic()
    with subprocess.Popen([sys.executable, *command]) as process:
        while process.poll() is None:
            for pid in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
                peaks[pid] = max(peaks.get(pid, 0), peak_mb(pid))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with status {process.returncode}")
    run = peaks.pop(process.pid)
    return Peaks(run, max(peaks.values(), default=0.0), time.monotonic() - start)


def peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # the process has just ended
        return 0.0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
