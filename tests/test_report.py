"""The page about a run: made from artifacts that go through the real Output, looked at as text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra import report
from infra.report import figures
from infra.report.stages import Stages, StageView
from pipeline.artifacts import Artifact, Output
from pipeline.schema import document, document_table, parquet_bytes
from pipeline.storage import Location
from pipeline.tokenizer import SPECIAL_TOKENS

WORDS = "the sea was calm and old captain looked at his ship once more before night fell over quiet town".split()
PIECES = [*SPECIAL_TOKENS, *sorted(set(WORDS)), "##s", "##ing", ".", ",", "<", ">"]
DIGEST = "ab" * 32


def output(root: Path, stage: str, fingerprint: str) -> Output:
    return Output(Location(str(root / stage / fingerprint)), stage, 1, fingerprint)


def finished(out: Output) -> Artifact:
    return Artifact(out.location, out.stage, out.fingerprint)


def documents(count: int) -> bytes:
    made = [
        document(
            [f"The captain looked at his ship number {i}. The sea was calm and the old town was quiet before the night fell."],
            doc_id=f"enwiki:{i}",
            source="wiki",
            heldout_fraction=0.3,
            language="en",
            title=f"Page {i}",
        )
        for i in range(count)
    ]
    return parquet_bytes(document_table(made))


def extract(root: Path) -> Artifact:
    out = output(root, "extract", "e" * 16)
    cached = {"uri": "dumps/enwiki.xml.bz2", "sha256": DIGEST, "bytes": 905631}
    (Location(str(root)) / "sources/1.json").write_text(json.dumps(cached))
    samples = {"redirect": [{"record": "<script>alert(1)</script>", "text": "#REDIRECT [[Sea]]"}]}
    counts = {"records": 61, "documents": 41, "words": 9017, "heldout": 11}
    drops = {"redirect": 13, "no prose": 7}
    out.commit("00000", {"documents/00000-00.parquet": documents(41)}, counts, drops)
    facts = {"sources": {"wiki": counts, "books": {"records": 0}}, "samples": samples}
    out.finish({"heldout_fraction": 0.25}, {"wiki/enwiki.xml.bz2": DIGEST}, facts=facts)
    return finished(out)


def dedup(root: Path) -> Artifact:
    out = output(root, "dedup", "d" * 16)
    counts = {"records": 41, "documents": 38, "words": 8714, "heldout": 10}
    out.commit("00000", {"documents/00000.parquet": documents(38)}, counts, {"duplicate": 3})
    samples = {"duplicate": [{"doc_id": "enwiki:7", "title": "Sea & ship", "source": "wiki"}]}
    out.finish({}, {"documents": "e" * 16}, facts={"samples": samples})
    return finished(out)


def vocab(root: Path) -> Artifact:
    from pipeline.tokenizer import build

    out = output(root, "vocab", "a" * 16)
    files = {"vocab.txt": "".join(piece + "\n" for piece in PIECES), "tokenizer.json": build(PIECES).to_str()}
    out.commit("vocab", {name: text.encode() for name, text in files.items()})
    out.finish({"size": len(PIECES)}, {"documents": "d" * 16}, counts={"pieces": len(PIECES)})
    return finished(out)


def tokens(root: Path) -> Artifact:
    out = output(root, "tokens", "b" * 16)
    out.finish({}, {"documents": "d" * 16, "vocab": "a" * 16}, counts={"documents": 38, "tokens": 10231})
    return finished(out)


def example(label: int) -> dict[str, Any]:
    """Sea is hidden, was left as it is, fell replaced by night."""
    ids = [PIECES.index(piece) for piece in "[CLS] the [MASK] was calm [SEP] night town [SEP]".split()]
    labels = [PIECES.index(piece) for piece in ("sea", "was", "fell")]
    masks = {"masked_lm_positions": [2, 3, 6], "masked_lm_labels": labels}
    return {"input_ids": ids, "segment_b": 6, "next_sentence_label": label, **masks}


def examples(root: Path) -> Artifact:
    out = output(root, "examples-32", "c" * 16)
    shard = parquet_bytes(pa.Table.from_pylist([example(0), example(1)]))
    counts = {"train": 517, "heldout": 83, "train_tokens": 12408, "train_random_next": 260}
    out.commit("00000", {"train/00000.parquet": shard, "heldout/00000.parquet": shard}, counts)
    out.finish({"max_seq_length": 32, "dupe_factor": 5}, {"tokens": "b" * 16, "vocab": "a" * 16})
    return finished(out)


def metric_rows() -> list[dict[str, Any]]:
    rows = []
    for step in range(10, 101, 10):
        means = {"loss": 4 - step / 100, "mlm_loss": 3.3 - step / 100, "nsp_loss": 0.7, "mlm_accuracy": step / 1000, "nsp_accuracy": 0.52}
        rates = {"learning_rate": 1e-4 * (1 - step / 110), "grad_norm": 1.0, "sequences_per_second": 200.0, "tokens_per_second": 5e3}
        rows.append({"split": "train", "step": step, **means, **rates, "seconds": 3.0})
        if step % 50 == 0:
            rows.append({"split": "heldout", "step": step, **means, "examples": 64})
    return rows


def pretrain(root: Path, complete: bool = True) -> Artifact:
    from training.checkpoint import SavedConfig, save
    from training.model import BertConfig, BertForPreTraining

    out = output(root, "pretrain", "f" * 16)
    lines = "".join(json.dumps(row) + "\n" for row in metric_rows()).encode()
    if not complete:
        (out.location / "metrics.jsonl").write_bytes(lines)
        return finished(out)
    shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(shape, len(PIECES))
    ref = save(out.location, 100, {"model": model.state_dict()}, SavedConfig(model=shape, vocab_size=len(PIECES)), {})
    out.commit("checkpoint", {"metrics.jsonl": lines})
    path = ref.location.uri.removeprefix(out.location.uri + "/")
    facts = {"checkpoint": {"path": path, "digest": ref.digest, "step": 100}, "workers": 2, "precision": "fp32", "processor": "a test's"}
    inputs = {"vocab": "a" * 16, "examples-32": "c" * 16}
    out.finish({"model": shape.model_dump(), "global_batch_size": 32}, inputs, counts={"steps": 100}, facts=facts)
    return finished(out)


def finetune(root: Path, checkpoint: str, pretrained: tuple[int, int], random: tuple[int, int]) -> Artifact:
    from training.metrics import wilson

    def scored(right: int, total: int) -> dict[str, Any]:
        return {"accuracy": right / total, "interval": wilson(right, total), "macro_f1": 0.5, "matthews": 0.4}

    curve = {"loss": [(1, 1.1), (2, 0.9)], "dev_accuracy": [0.5, 0.6], "dev_loss": [1.0, 0.9], "best_epoch": 2}
    trial = {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2}
    predictions = [("Austen", "Austen"), ("Austen", "Melville"), ("Melville", "Melville")]
    rows = [{"row": i, "label": label, "predicted": said} for i, (label, said) in enumerate(predictions)]
    out = output(root, "finetune-authors", "9" * 16)
    out.commit("pretrained", {"predictions/pretrained.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()})
    facts = {
        "labels": {"train": {"Austen": 5, "Melville": 4}},
        "scores": {"pretrained": scored(*pretrained), "random": scored(*random), "majority": scored(30, 100)},
        "variants": {"pretrained": {"trial": trial, **curve}, "random": {"trial": trial, **curve}},
        "examples": [{"text": "It is a truth <b>", "label": "Austen", "predicted": "Melville"}],
    }
    inputs = {"checkpoint": checkpoint, "vocab": "a" * 16, "data": DIGEST + ".jsonl"}
    out.finish({"name": "authors"}, inputs, counts={"train": 9, "dev": 3, "test": 100}, facts=facts)
    return finished(out)


def whole_run(root: Path, pretrained: tuple[int, int] = (60, 100), random: tuple[int, int] = (55, 100)) -> dict[str, Artifact]:
    made = [extract(root), dedup(root), vocab(root), tokens(root), examples(root), pretrain(root)]
    digest = made[-1].manifest.facts["checkpoint"]["digest"]
    made.append(finetune(root, digest, pretrained, random))
    return {artifact.stage: artifact for artifact in made}
