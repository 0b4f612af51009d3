"""CPU seconds of extract per 10^6 bytes of JSON lines (`documents`), of lines of a sentence each, and of books.

All three have the same text: the chapters of books. One process, without Ray and Beam; the fastest of several rounds.
The figures are rates of infra/estimate/rates.yaml.
"""

import argparse
import glob
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.stage import extract_unit
from cloze.pipeline.extract.work_units import plan_units
from cloze.pipeline.text.sentences import document_sentences
from tests.benchmarks._show import show
from tests.benchmarks.examples import BOOKS


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=own_texts", description=__doc__)
    parser.add_argument("--books", default=BOOKS, help="text files, by a glob")
    parser.add_argument("--mb", type=float, default=10.0, help="of books")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "books").mkdir()
        written = 0
        for number, book in enumerate(sorted(glob.glob(options.books))):  # noqa: PTH207 (a pattern)
            if written < options.mb * 1e6:
                written += (folder / f"books/{number:04}.txt").write_bytes(Path(book).read_bytes())
        figures["books"] = seconds_per_mb(folder, "books", options.rounds)
        shards = sorted((folder / "out-books").glob("extract/0/documents/*.parquet"))
        texts = [text for shard in shards for text in read_table(Location(str(shard))).column("text").to_pylist()]
        for kind in ("documents", "sentences"):
            (folder / kind).mkdir()
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / "documents/all.jsonl").write_text("".join(rows), encoding="utf-8")
        lines = "\n\n".join("\n".join(document_sentences(text)) for text in texts)
        (folder / "sentences/all.txt").write_text(lines, encoding="utf-8")
        for kind in ("documents", "sentences"):
            figures[kind] = seconds_per_mb(folder, kind, options.rounds)
    show("CPU seconds per 10^6 bytes", figures, {"benchmark": "own_texts", "mb": options.mb, "rounds": options.rounds})


def seconds_per_mb(folder: Path, kind: str, rounds: int) -> float:
    """Extract all files of a folder, as the stage's workers do."""
    paths = sorted((folder / kind).iterdir())
    source: dict[str, Any] = {"kind": kind, "name": kind, "language": "en", "files": [str(path) for path in paths]}
    config = ExtractConfig.model_validate({"sources": [source]})
    files = [SourceFile(str(path), f"{number:064x}", path.stat().st_size) for number, path in enumerate(paths)]
    seconds = []
    for _ in range(rounds):
        out = Output(Location(str(folder / f"out-{kind}/extract/0")), "extract", 0, "0")
        start = time.process_time()
        for unit in plan_units(config, {kind: files}):
            extract_unit(unit, config, out)
        seconds.append(time.process_time() - start)
    return min(seconds) / (sum(file.bytes for file in files) / 1e6)


if __name__ == "__main__":
    main(sys.argv[1:])
