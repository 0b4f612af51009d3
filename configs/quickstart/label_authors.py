"""The quickstart's documents -> authors.jsonl.gz: paragraphs of three novels, each with its author.

    python configs/quickstart/label_authors.py runs/dedup/FINGERPRINT

Parts are made by chapter: `test` is every paragraph of the held-out chapters, which pretraining has not seen; of the
other chapters every sixth is `dev` and the rest `train`.
"""

import gzip
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

AUTHORS = {
    "NORTHANGER ABBEY": "Jane Austen",
    "A PRINCESS OF MARS": "Edgar Rice Burroughs",
    "THE LAIR OF THE WHITE WORM": "Bram Stoker",
}
FILE = Path(__file__).with_name("authors.jsonl.gz")
_MIN_WORDS = 30  # shorter paragraphs are mostly a line of talk
_DEV_EVERY = 6


def labelled(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of the document schema -> rows {text, label, split}, in the order of the documents."""
    rows = []
    for document in documents:
        author = AUTHORS.get(document["title"].partition(":")[0])
        if author is None:
            continue
        chapter = int(document["doc_id"].rpartition(":")[2])
        seen = "dev" if chapter % _DEV_EVERY == 0 else "train"
        split = "test" if document["split"] == "heldout" else seen
        rows += [
            {"text": paragraph, "label": author, "split": split}
            for paragraph in document["text"].split("\n\n")
            if len(paragraph.split()) >= _MIN_WORDS
        ]
    return rows


def read() -> list[dict[str, str]]:
    """The committed rows."""
    with gzip.open(FILE, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main(folder: str) -> None:
    files = sorted(Path(folder, "documents").glob("*.parquet"))
    rows = labelled(row for file in files for row in pq.read_table(file).to_pylist())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    FILE.write_bytes(gzip.compress(lines.encode(), mtime=0))
    print(f"{FILE}: {len(rows):,} paragraphs")


if __name__ == "__main__":
    main(sys.argv[1])
