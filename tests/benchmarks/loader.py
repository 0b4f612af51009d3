"""The data loader on books, on one core: masked and labelled tokens per CPU second, compared with transformers.

The comparison is with transformers' DataCollatorForLanguageModeling, which masks and pads lists of ids that are already
in memory; Cloze reads them from Parquet. Both build batches of 64 rows of length 128. `padding_G_M` is the fraction of
padding for global batch size G and micro-batch size M. `node_W` is the examples per CPU second of W workers of one node
together, `node_ratio` the CPU time of four workers relative to that of one. `same_row_group` is how much more often
than in a full shuffle two examples of a batch of 256 come from the same row group of 1,024. `resumed_batch_seconds` is
the time to the first batch after resuming in the middle of the epoch.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.text.masking import mask_rules
from cloze.training.pretrain.data_loader import (
    Batch,
    DynamicMasking,
    ExampleDataset,
    collate,
    worker_micro_batches,
)
from cloze.training.pretrain.example_arrays import ExampleArrays
from cloze.training.pretrain.window_cache import WindowCache
from tests.benchmarks import _examples, examples
from tests.benchmarks._reference import VOCABULARY
from tests.benchmarks._show import show

TEXT_MB = 40.0
BATCHES = 1000
GROUP_BY_LENGTH = 64  # see PretrainConfig
WORKERS = (1, 2, 4)  # of a node
SIZES = ((256, 64), (256, 32), (32, 16))  # global and micro-batch


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=loader", description=__doc__)
    parser.add_argument("--books", default=examples.BOOKS, help="glob of text files")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = examples.megabytes(examples.documents(options.books, folder), 0, TEXT_MB)
        figures = measure(_examples.build_examples(folder, examples.shards(documents), dupe_factor=5), options.repeats)
    show("batches of length 128", figures, {"benchmark": "loader", "cores": os.cpu_count()})


def measure(artifact: Artifact, repeats: int) -> dict[str, float]:
    loader, masking = ExampleDataset(artifact, "train"), dynamic_masking()

    def micro_batches(size: int, micro: int) -> Iterator[Batch]:
        for rows in loader.batches(1, 0, size, GROUP_BY_LENGTH):
            yield from (collate(piece, masking) for piece in worker_micro_batches(rows, 0, 1, micro))

    figures: dict[str, float] = {"examples": len(loader)}
    figures["tokens_per_second"] = median(tokens_per_second(micro_batches(256, 64)) for _ in range(repeats))
    figures["transformers"] = median(tokens_per_second(transformers_batches(loader)) for _ in range(repeats))
    figures["ratio"] = figures["tokens_per_second"] / figures["transformers"]
    for size, micro in SIZES:
        masks = [one.attention_mask for one in islice(micro_batches(size, micro), 50_000 // micro)]
        figures[f"padding_{size}_{micro}"] = 1 - sum(int(mask.sum()) for mask in masks) / sum(m.numel() for m in masks)
    seconds = {workers: median(node_seconds(artifact, workers) for _ in range(repeats)) for workers in WORKERS}
    figures |= {f"node_{workers}": BATCHES * 256 / seconds[workers] for workers in WORKERS}
    figures["node_ratio"] = seconds[4] / seconds[1]
    figures["same_row_group"] = same_row_group(loader)
    for name, position in (("first", 0), ("resumed", len(loader) // 2)):
        figures[f"{name}_batch_seconds"] = median(seconds_to_batch(artifact, position) for _ in range(2 * repeats + 1))
    return figures


def tokens_per_second(batches: Iterator[Batch]) -> float:
    """Returns tokens, without padding, per CPU second."""
    start, tokens = time.process_time(), 0
    for one in islice(batches, BATCHES):
        tokens += int(one.attention_mask.sum())
    return tokens / (time.process_time() - start)


def dynamic_masking() -> DynamicMasking:
    return DynamicMasking(1, mask_rules(VOCABULARY.read_text().split("\n")[:-1], 0.15, 20))


def node_seconds(artifact: Artifact, workers: int) -> float:
    """Returns the CPU time in which all workers of a node build their micro-batches, one process for each worker."""
    context, cache_name = multiprocessing.get_context("spawn"), uuid.uuid4().hex
    barrier, seconds = context.Barrier(workers), context.Queue()
    arguments = [(artifact, cache_name, rank, workers, barrier, seconds) for rank in range(workers)]
    processes = [context.Process(target=run_worker, args=own) for own in arguments]
    for process in processes:
        process.start()
    total = sum(seconds.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def run_worker(artifact: Artifact, cache_name: str, rank: int, workers: int, barrier: Any, seconds: Any) -> None:
    """Build micro-batches of 64 at the same pace as the other workers. Sends the CPU seconds, without the waiting."""
    torch.set_num_threads(1)
    cache, masking, total = WindowCache(cache_name) if workers > 1 else None, dynamic_masking(), 0.0
    batches = ExampleDataset(artifact, "train", cache).batches(1, 0, 256, GROUP_BY_LENGTH)
    for number in range(BATCHES):
        if number % 32 == 0:
            barrier.wait()
        start = time.process_time()
        for rows in worker_micro_batches(next(batches), rank, workers, 64):
            collate(rows, masking)
        total += time.process_time() - start
    if cache:
        cache.close()
    seconds.put(total)


def transformers_batches(loader: ExampleDataset) -> Iterator[Batch]:
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
        collated = collate(lists[start : start + 64])
        empty = torch.empty(0)
        yield Batch(collated["input_ids"], empty, collated["attention_mask"], empty, collated["labels"], empty, empty)


def same_row_group(loader: ExampleDataset) -> float:
    groups = -(-len(loader) // 1024)

    def same_group_fraction(rows: ExampleArrays) -> float:
        counts = np.bincount(rows.index // 1024)
        return float((counts * (counts - 1)).sum()) / (len(rows) * (len(rows) - 1))

    batches = islice(loader.batches(1, 0, 256, GROUP_BY_LENGTH), 200)
    return float(np.mean([same_group_fraction(rows) for rows in batches])) * groups


def seconds_to_batch(artifact: Artifact, position: int) -> float:
    """Returns the wall time to open the examples and read the global batch at `position`."""
    start = time.monotonic()
    next(ExampleDataset(artifact, "train").batches(1, position, 256, GROUP_BY_LENGTH))
    return time.monotonic() - start
