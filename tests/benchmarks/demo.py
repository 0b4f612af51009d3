"""The quickstart by stage: wall seconds, CPU seconds and peak memory, summed over all processes.

Each stage runs in its own `cloze run --until STAGE`, so every row includes start-up (Python, Dagster and, from vocab
on, Ray). `skip` is a run in which every stage is finished, `whole` a complete run on a new root.
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
    """Returns the cost of one `cloze run`."""
    return cost(["-m", "cloze.infra.cli", "run", *arguments])


def cost(command: list[str]) -> dict[str, float]:
    """Returns wall seconds, CPU seconds and peak unshared memory in MB of a Python command with all child processes."""
    peak, cpu, stop = [0.0], {}, threading.Event()
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command])

    def sample() -> None:
        while not stop.wait(0.25):
            resident = 0
            for child in process_tree(process.pid):
                try:
                    times = child.cpu_times()
                    cpu[child.pid] = times.user + times.system
                    resident += child.memory_info().rss - child.memory_info().shared
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], resident / 1e6)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    status = process.wait()
    stop.set()
    sampler.join()
    if status:
        raise SystemExit(status)
    return {
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(sum(cpu.values()), 2),
        "peak_mb": round(peak[0]),
    }


def process_tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
