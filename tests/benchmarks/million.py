"""Peak memory per process and time of the stages tokens and examples, for a million documents.

The documents are paragraphs of books, repeated with new ids, in shards of 10,000. Peaks are the kernel's (VmHWM), read
twice per second.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa

from cloze.pipeline.extract.document import document, document_table
from tests.benchmarks import _examples, examples
from tests.benchmarks._show import show
from tests.benchmarks.scale import run_with_peaks


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=million", description=__doc__)
    parser.add_argument("--books", default=examples.BOOKS, help="glob of text files")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shard", type=int, default=10_000, help="documents per shard")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = examples.documents(options.books, folder)["text"].to_pylist()
        _examples.prepare(folder, paragraph_shards(texts, options.documents, options.shard))
        peaks = run_with_peaks(["-m", "tests.benchmarks._examples", str(folder), '{"dupe_factor": 1}'])
        counts = _examples.artifact(folder, "examples").manifest.counts
        figures = {
            "documents": counts["documents"],
            "tokens_mb": counts["train_tokens"] / 1e6,
            "examples": counts["train"],
        }
        figures |= peaks._asdict()
    show("tokens and examples", figures, {"benchmark": "million", "shard": options.shard}, "{:,.0f}".format)


def paragraph_shards(texts: list[str], documents: int, shard: int) -> Iterator[pa.Table]:
    paragraphs = (paragraph for text in cycle(texts) for paragraph in text.split("\n\n") if len(paragraph) > 100)
    numbered = enumerate(islice(paragraphs, documents))
    while batch := list(islice(numbered, shard)):
        yield document_table(
            [document([text], doc_id=str(number), source="books", heldout_fraction=0.0) for number, text in batch]
        )
