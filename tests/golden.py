"""The output of BERT's original code for a known text (tests/data/golden), and that text as artifacts."""

import hashlib
import lzma
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from cloze.pipeline.core.artifacts import Artifact, Part
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import Document, document, document_table
from cloze.pipeline.text.tokenizer import build_tokenizer
from tests.paths import DATA, REPOSITORY

_FOLDER = DATA / "golden"
_VOCABULARY = REPOSITORY / "configs/vocab/bert-base-uncased.txt"


@cache
def unpack(name: str) -> str:
    return lzma.decompress((_FOLDER / f"{name}.xz").read_bytes()).decode()


@cache
def published_vocabulary() -> list[str]:
    """bert-base-uncased's."""
    return _VOCABULARY.read_text().split("\n")[:-1]


def golden_documents(heldout_fraction: float = 0.2) -> list[Document]:
    """45 documents, a paragraph of each ten sentences."""
    return [
        document(
            [" ".join(lines[i : i + 10]) for i in range(0, len(lines), 10)],
            doc_id=f"golden:{number}",
            source="golden",
            heldout_fraction=heldout_fraction,
        )
        for number, lines in enumerate(text.strip().split("\n") for text in unpack("sentences.txt").split("\n\n"))
    ]


def output(root: Path | str, stage: str) -> Output:
    return Output(Location(f"{root}/{stage}"), stage, 1, "0")


def finished(out: Output) -> Artifact:
    return Artifact(out.location, out.stage, out.fingerprint)


def documents_artifact(root: Path | str, documents: Sequence[Document], shards: int = 3) -> Artifact:
    """What dedup writes, with the counts on which later stages rely."""
    out, parts = output(root, "documents"), list[Part]()
    for number, indices in enumerate(np.array_split(np.arange(len(documents)), shards)):
        table = document_table([documents[index] for index in indices])
        words, heldout = sum(table["num_words"].to_pylist()), table["split"].to_pylist().count("heldout")
        counts = {"documents": len(table), "words": words, "heldout": heldout}
        parts.append(out.commit(f"{number:05}", {f"documents/{number:05}.parquet": parquet_bytes(table)}, counts))
    out.finish(parts, {}, {})
    return finished(out)


def vocab_artifact(root: Path | str) -> Artifact:
    """The published vocabulary."""
    out = output(root, "vocab")
    pieces = published_vocabulary()
    lines = "".join(f"{piece}\n" for piece in pieces)
    files = {"vocab.txt": lines.encode(), "tokenizer.json": build_tokenizer(pieces).to_str().encode()}
    out.finish([out.commit("vocab", files)], {}, {})
    return finished(out)


def digest(artifact: Artifact) -> str:
    """12 hex digits over the names and bytes of all files: when they change, the stage's VERSION has to."""
    records = sorted((name, record.sha256) for name, record in artifact.manifest.files.items())
    return hashlib.sha256(repr(records).encode()).hexdigest()[:12]
