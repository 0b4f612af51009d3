"""The CPU seconds of the data stages that `cloze run` estimates at its start, next to those that they took.

Three inputs: the quickstart's sources, a dump with books, and books alone. Each is run in a folder of its own up to the
examples, after a calibration of this machine. `INPUT_ratio` is estimated over taken, of all data stages
together; `INPUT_STAGE` the two figures. Anything else that runs on the machine makes CPU seconds longer.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks._show import show
from tests.benchmarks.examples import BOOKS
from tests.benchmarks.extract import DEFAULT

BASE = "configs/quickstart.yaml"
STAGES = ("extract", "dedup", "vocab", "tokens", "examples-64", "examples-128")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=estimate", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="a MediaWiki XML dump")
    parser.add_argument("--books", default=BOOKS, help="text files, by a glob")
    parser.add_argument("--mb", type=float, nargs=2, default=[10.0, 60.0], help="of books, in the two larger inputs")
    options = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"CLOZE_HOME": str(folder / "home"), "DAGSTER_HOME": str(folder / "dagster")}
        cloze("plan", BASE, "--calibrate", f"root={folder}/quickstart")
        books = [Path(book) for book in sorted(glob.glob(options.books))]  # noqa: PTH207 (a pattern)
        wiki = {"kind": "wikipedia", "name": "wiki", "language": "en", "files": [str(Path(options.input).absolute())]}
        few, many = (copied(books, folder / f"books-{size:g}", size * 1e6) for size in options.mb)
        inputs = {"quickstart": None, "mixed": [wiki, few], "books": [many]}
        for input_name, sources in inputs.items():
            figures |= measure(folder / input_name, input_name, sources)
    show("estimated over taken", figures, {"benchmark": "estimate", "input": options.input, "mb": options.mb})


def copied(books: Sequence[Path], folder: Path, size: float) -> dict[str, Any]:
    """A source with the first books, of `size` bytes together."""
    folder.mkdir()
    written = 0
    for number, book in enumerate(books):
        if written >= size:
            break
        written += (folder / f"{number:04}.txt").write_bytes(book.read_bytes())
    return {"kind": "books", "name": "books", "language": "en", "files": [f"{folder}/*.txt"]}


def measure(root: Path, name: str, sources: Sequence[dict[str, Any]] | None) -> dict[str, float]:
    """Run the data stages, and compare."""
    given = [f"extract.sources={json.dumps(sources)}"] if sources else []
    cloze("run", BASE, f"root={root}", "finetune=[]", "--until", STAGES[-1], *given)
    estimates = json.loads((root / "runs/quickstart.estimate.json").read_text())
    taken = {stage: cpu_seconds(root, stage) for stage in STAGES}
    estimated = {stage: estimates[stage]["cpu_seconds"] for stage in STAGES}
    figures = {f"{name}_ratio": sum(estimated.values()) / sum(taken.values())}
    for stage in STAGES:
        figures |= {f"{name}_{stage}_estimated": estimated[stage], f"{name}_{stage}_taken": taken[stage]}
    return figures


def cpu_seconds(root: Path, stage: str) -> float:
    [file] = (root / stage).glob("*/manifest.json")
    return json.loads(file.read_text())["cpu_seconds"]


def cloze(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "cloze.infra.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(sys.argv[1:])
