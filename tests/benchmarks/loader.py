"""Batches of length 128 from books, on one core: tokens a second with masks drawn and labels made, beside transformers.

The peer is transformers' DataCollatorForLanguageModeling, which masks and pads lists of ids that are in memory already;
Cloze reads its from Parquet. Both make batches of 64. `padding` is the share of what is computed, by the sizes of the
global and the micro-batch; `same_row_group` is how many times as often as in a full shuffle two examples of a batch of
256 come from one row group of 1,024; a position deep in the epoch is resumed at the cost of the first batch.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.text.masking import mask_rules
from cloze.training.pretrain.data_loader import Batch, Examples, Masking, Rows, batch, share
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCABULARY
from tests.benchmarks._show import show

MB = 40.0  # of text
BATCHES = 1000
GROUP = 64  # as PretrainConfig.group_by_length
SIZES = ((256, 64), (256, 32), (32, 16))  # global and micro-batch


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=loader", description=__doc__)
    parser.add_argument("--books", default=examples.BOOKS, help="text files, by a glob")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = examples.megabytes(examples.documents(options.books, folder), 0, MB)
        figures = measure(_examples.made(folder, examples.shards(given), dupe_factor=5), options.repeats)
    show("batches of length 128", figures, {"benchmark": "loader", "cores": os.cpu_count()})


def measure(artifact: Artifact, repeats: int) -> dict[str, float]:
    loader = Examples(artifact, "train")
    masking = Masking(1, mask_rules(VOCABULARY.read_text().split("\n")[:-1], 0.15, 20))

    def made(size: int, micro: int) -> Iterator[Batch]:
        for rows in loader.batches(1, 0, size, GROUP):
            yield from (batch(piece, masking) for piece in share(rows, 0, 1, micro))

    figures: dict[str, float] = {"examples": len(loader)}
    figures["tokens_per_second"] = median(speed(made(256, 64)) for _ in range(repeats))
    figures["transformers"] = median(speed(collated(loader)) for _ in range(repeats))
    figures["ratio"] = figures["tokens_per_second"] / figures["transformers"]
    for size, micro in SIZES:
        masks = [one.attention_mask for one in islice(made(size, micro), 50_000 // micro)]
        figures[f"padding_{size}_{micro}"] = 1 - sum(int(mask.sum()) for mask in masks) / sum(m.numel() for m in masks)
    figures["same_row_group"] = same_row_group(loader)
    for name, position in (("first", 0), ("resumed", len(loader) // 2)):
        figures[f"{name}_batch_seconds"] = median(seconds(artifact, position) for _ in range(2 * repeats + 1))
    return figures


def speed(batches: Iterator[Batch]) -> float:
    """Real tokens a CPU second."""
    start, tokens = time.process_time(), 0
    for one in islice(batches, BATCHES):
        tokens += int(one.attention_mask.sum())
    return tokens / (time.process_time() - start)


def collated(loader: Examples) -> Iterator[Batch]:
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    with tempfile.TemporaryDirectory() as folder:
        from cloze.pipeline.text.tokenizer import build_tokenizer, tokenizer_config_json

        (Path(folder) / "tokenizer.json").write_text(build_tokenizer(VOCABULARY.read_text().split("\n")[:-1]).to_str())
        (Path(folder) / "tokenizer_config.json").write_text(tokenizer_config_json())
        collate: Callable[..., dict[str, torch.Tensor]] = DataCollatorForLanguageModeling(
            AutoTokenizer.from_pretrained(folder)
        )
    rows = next(loader.batches(1, 0, 64 * min(BATCHES, len(loader) // 64)))
    lists = [{"input_ids": ids.tolist()} for ids in np.split(rows.input_ids.values, rows.input_ids.offsets[1:-1])]
    for start in range(0, len(lists), 64):
        made = collate(lists[start : start + 64])
        nothing = torch.empty(0)
        yield Batch(made["input_ids"], nothing, made["attention_mask"], nothing, made["labels"], nothing, nothing)


def same_row_group(loader: Examples) -> float:
    groups = -(-len(loader) // 1024)

    def share_of_pairs(rows: Rows) -> float:
        counts = np.bincount(rows.index // 1024)
        return float((counts * (counts - 1)).sum()) / (len(rows) * (len(rows) - 1))

    return float(np.mean([share_of_pairs(rows) for rows in islice(loader.batches(1, 0, 256, GROUP), 200)])) * groups


def seconds(artifact: Artifact, position: int) -> float:
    """From nothing to the first global batch after so many examples, wall time."""
    start = time.monotonic()
    next(Examples(artifact, "train").batches(1, position, 256, GROUP))
    return time.monotonic() - start
