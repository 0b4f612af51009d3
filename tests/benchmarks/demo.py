"""The quickstart, stage by stage: seconds of wall time, CPU seconds and peak memory of all its processes.

Each stage runs as a `cloze run --until STAGE` of its own, so every row includes its start-up (Python, Dagster and, from
vocab on, Ray); the last row is the same run whole, on a fresh root.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

import psutil
from rich.console import Console
from rich.table import Table


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=demo", description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    options = parser.parse_args(arguments)

    from cloze.infra.run_config import RunConfig
    from cloze.infra.stages import stages
    from cloze.pipeline.core.config import load

    names = [stage.name for stage in stages(load(RunConfig, options.config))]
    figures = {}
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            figures[name] = measure(options.config, f"root={root}/staged", "--until", name)
        figures["skip"] = measure(options.config, f"root={root}/staged")
        figures["whole"] = measure(options.config, f"root={root}/whole")
    table = Table("stage", "seconds", "CPU seconds", "peak MB", title="quickstart")
    for name, row in figures.items():
        table.add_row(name, *(f"{value:,.1f}" for value in row.values()))
    Console().print(table)
    print(json.dumps({"benchmark": "demo", "cores": os.cpu_count(), "stages": figures}))


def measure(*arguments: str) -> dict[str, float]:
    """What one `cloze run` costs."""
    return cost(["-m", "cloze.infra.cli", "run", *arguments])


def cost(command: list[str]) -> dict[str, float]:
    """A Python command's wall seconds, CPU seconds and peak resident memory in MB, of its whole tree of processes."""
    peak, cpu, stop = [0.0], {}, threading.Event()
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command])

    def look() -> None:
        while not stop.wait(0.25):
            resident = 0
            for child in tree(process.pid):
                try:
                    times = child.cpu_times()
                    cpu[child.pid] = times.user + times.system
                    resident += child.memory_info().rss - child.memory_info().shared
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], resident / 1e6)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    status = process.wait()
    stop.set()
    watcher.join()
    if status:
        raise SystemExit(status)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(sum(cpu.values()), 2),
        "peak_mb": round(peak[0]),
    }


def tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
