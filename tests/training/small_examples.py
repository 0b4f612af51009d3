"""Small training artifacts: random examples with static masks in a few shards, and a vocabulary of their ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import IGNORE_INDEX, example_schema, parquet_bytes
from cloze.pipeline.core.storage import Location

VOCAB_SIZE = 97  # a prime: no number of workers divides it
CLS, SEP, MASK = 2, 3, 4
_ROW_GROUP = 4


PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"piece{number}" for number in range(VOCAB_SIZE - 5)))


def vocab_artifact(root: Path) -> Artifact:
    return _artifact(root, "vocab", {"vocab.txt": "".join(f"{piece}\n" for piece in PIECES).encode()})


def examples_artifact(
    root: Path,
    train: int = 40,
    heldout: int = 12,
    length: int = 16,
    shards: int = 2,
    masked: bool = True,
    objective: str = "mlm+nsp",
) -> Artifact:
    """`train` and `heldout` examples of 8 to `length` pieces, each with one to three masked positions.

    Unless `masked`, training examples are stored without masks. With objective mlm they have no label.
    """
    files = {}
    counts = {}
    for split, count in (("train", train), ("heldout", heldout)):
        for shard, numbers in enumerate(np.array_split(np.arange(count), shards)):
            rows = [_example(split, int(number), length) for number in numbers]
            if objective == "mlm":
                rows = [row | {"next_sentence_label": IGNORE_INDEX} for row in rows]
            stored = masked or split == "heldout"
            table = pa.Table.from_pylist(
                rows if stored else [_unmasked(row) for row in rows], schema=example_schema(VOCAB_SIZE, stored)
            )
            path = f"{split}/{shard:05d}.parquet"
            files[path], counts[path] = parquet_bytes(table, row_group_size=_ROW_GROUP), len(rows)
    rules = {"masked_lm_prob": 0.15, "max_predictions_per_seq": 3, "mask_unit": "token"}
    config = {**rules, "masking": "static" if masked else "dynamic", "objective": objective}
    return _artifact(root, f"examples-{length}", files, config, {"rows": counts, "row_group_size": _ROW_GROUP})


def _example(split: str, number: int, length: int) -> dict[str, Any]:
    """The second piece is 5 plus the example's number modulo 90, so that a batch shows which examples it contains."""
    draw = np.random.default_rng([number, split == "train"])
    size = int(draw.integers(8, length + 1))
    ids = draw.integers(5, VOCAB_SIZE, size)
    ids[0], ids[1], ids[4], ids[-1] = CLS, 5 + number % 90, SEP, SEP
    masked = np.sort(draw.choice([2, 3, 5, 6], int(draw.integers(1, 4)), replace=False))
    labels = ids[masked].copy()
    ids[masked] = MASK
    return {
        "input_ids": ids.tolist(),
        "segment_b": 5,
        "next_sentence_label": number % 2,
        "masked_lm_positions": masked.tolist(),
        "masked_lm_labels": labels.tolist(),
    }


def _unmasked(row: dict[str, Any]) -> dict[str, Any]:
    ids = list(row["input_ids"])
    for position, label in zip(row["masked_lm_positions"], row["masked_lm_labels"], strict=True):
        ids[position] = label
    return {"input_ids": ids, "segment_b": row["segment_b"], "next_sentence_label": row["next_sentence_label"]}


def _artifact(
    root: Path,
    stage: str,
    files: dict[str, bytes],
    config: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> Artifact:
    out = Output(Location(str(root / stage / "0")), stage, 1, "0")
    part = out.commit("all", files)
    out.finish([part], config or {}, {}, facts=facts)
    return Artifact(out.location, stage, "0")
