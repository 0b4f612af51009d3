"""The data stages on a Ray cluster of two nodes, compared with one node. Each node is pinned to a core of this machine.

Seconds are wall time, with the start of the workers; a ratio is the time of one node over that of two. Ray's own
processes and the run share the two cores, so the machine must have nothing else to do. `ceiling` is what the machine
gives without Ray: two extractions at once, each pinned to a core, relative to one alone; the cores of a virtual machine
share caches, memory and perhaps more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks._show import show
from tests.benchmarks.extract import DEFAULT
from tests.benchmarks.scale import write_dump


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=cluster", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="the MediaWiki XML dump whose pages are repeated")
    parser.add_argument("--mb", type=float, default=400.0, help="size of the XML (10^6 bytes)")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    one, two = (seconds(nodes, Path(options.input), options.mb) for nodes in (1, 2))
    figures = {f"{stage}_seconds_{nodes}": found[stage] for stage in one for nodes, found in ((1, one), (2, two))}
    figures |= {f"{stage}_ratio": one[stage] / two[stage] for stage in one}
    figures["ceiling"] = ceiling(Path(options.input))
    about = {"benchmark": "cluster", "input": options.input, "mb": options.mb, "load": load}
    show(f"two nodes of one core on {options.mb:,.0f} MB of XML", figures, about)


def seconds(nodes: int, source: Path, mb: float) -> dict[str, float]:
    """Returns the seconds of each stage on a cluster of this many nodes."""
    with tempfile.TemporaryDirectory() as name:
        write_dump(source, Path(name, "dump.xml"), mb * 1e6)
        command = [sys.executable, "-m", "tests.benchmarks._cluster", name, str(nodes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ceiling(source: Path, mb: float = 100.0) -> float:
    """Returns how many times as much two pinned processes extract in the same time as one."""
    with tempfile.TemporaryDirectory() as name:
        dump = Path(name, "dump.xml")
        write_dump(source, dump, mb * 1e6)
        command = [sys.executable, "-m", "tests.benchmarks._extract", str(dump), "--direct_running_mode=in_memory"]

        def extract_on(cores: list[int]) -> float:
            start = time.monotonic()
            processes = [subprocess.Popen(["taskset", "--cpu-list", str(core), *command]) for core in cores]
            statuses = [process.wait() for process in processes]
            if any(statuses):
                raise RuntimeError("an extraction has failed")
            return time.monotonic() - start

        extract_on([1])  # the first run reads files from the disk
        return 2 * extract_on([0]) / extract_on([0, 1])
