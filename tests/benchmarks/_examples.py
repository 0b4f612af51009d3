"""Runs the stages tokens and examples on documents written by `prepare`: python -m tests.benchmarks._examples."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer
from tests.benchmarks._reference import VOCABULARY


def prepare(folder: Path, shards: Iterable[pa.Table]) -> None:
    """Writes shards of documents and the published vocabulary as input artifacts of the two stages."""
    documents, vocab = _output(folder, "documents"), _output(folder, "vocab")
    parts = []
    for number, table in enumerate(shards):
        heldout = table["split"].to_pylist().count("heldout")
        counts = {"documents": len(table), "words": sum(table["num_words"].to_pylist()), "heldout": heldout}
        parts.append(documents.commit(f"{number:05}", {f"documents/{number:05}.parquet": parquet_bytes(table)}, counts))
    documents.finish(parts, {}, {})
    pieces = VOCABULARY.read_text()
    tokenizer = build_tokenizer(pieces.split("\n")[:-1]).to_str()
    part = vocab.commit("vocab", {"vocab.txt": pieces.encode(), "tokenizer.json": tokenizer.encode()})
    vocab.finish([part], {}, {})


def build_examples(folder: Path, shards: Iterable[pa.Table], **settings: Any) -> Artifact:
    """Builds the examples of the documents in a separate process."""
    prepare(folder, shards)
    command = [sys.executable, "-m", "tests.benchmarks._examples", str(folder), json.dumps(settings)]
    subprocess.run(command, check=True)
    return artifact(folder, "examples")


def _output(folder: Path, stage: str) -> Output:
    return Output(Location(str(folder / stage)), stage, 1, "0")


def artifact(folder: Path, stage: str) -> Artifact:
    return Artifact(Location(str(folder / stage)), stage, "0")


def main() -> None:
    from cloze.infra.ray_session import ray_session
    from cloze.pipeline.examples import stage as examples
    from cloze.pipeline.tokens import stage as tokens

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", help="JSON: settings of the examples stage that differ from the defaults")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder, settings = options.folder, json.loads(options.settings)
    with ray_session():
        inputs = {name: artifact(folder, name) for name in ("documents", "vocab")}
        tokens.run(tokens.TokensConfig(workers=options.workers), inputs, _output(folder, "tokens"))
        config = examples.LengthConfig.model_validate(
            {"max_seq_length": 128, "max_predictions_per_seq": 20, "workers": options.workers, **settings}
        )
        inputs = {name: artifact(folder, name) for name in ("tokens", "vocab")}
        examples.run(config, inputs, _output(folder, "examples"))


if __name__ == "__main__":
    main()
