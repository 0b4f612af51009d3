"""Loader workers of one node, each in its own process."""

import multiprocessing
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.training.pretrain import data_loader
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.window_cache import WindowCache

WINDOW = 12  # examples
CACHE_NAME = "group"

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])  # imports torch once for all workers


def batches(dataset: ExampleDataset) -> Iterator[pa.Table]:
    """Twenty batches of seven examples, from the middle of the first window on."""
    return (batch.to_table() for batch in islice(dataset.batches(3, 5, 7, group_size=2), 20))


def start_worker(artifact: Artifact, folder: Path, rank: int, barrier: Any = None, hangs: bool = False) -> BaseProcess:
    """A worker whose windows are in `folder`. It writes there which Parquet files it opens, and its batches.

    It waits at the `barrier` before each batch. If it `hangs`, it does so when it opens the first of these files.
    """
    process = context.Process(target=_run, args=(artifact, folder, rank, barrier, hangs))
    process.start()
    return process


def opened_files(folder: Path) -> list[str]:
    """The Parquet files that all workers have opened, in sorted order; a file is repeated if it was opened again."""
    return sorted(name for log in folder.glob("opened-*") for name in log.read_text().split())


def result(folder: Path, rank: int) -> pa.Table:
    return feather.read_table(folder / f"batches-{rank}")


def _run(artifact: Artifact, folder: Path, rank: int, barrier: Any, hangs: bool) -> None:
    data_loader._WINDOW = WINDOW
    real = Location.open

    def recorded(file: Location, **options: Any) -> Any:
        if file.suffix == ".parquet":
            with (folder / f"opened-{rank}").open("a") as log:
                log.write(f"{file.uri}\n")
            if hangs:
                time.sleep(60)
        return real(file, **options)

    Location.open = recorded
    cache = WindowCache(CACHE_NAME, folder)
    (folder / f"started-{rank}").touch()
    tables = []
    for table in batches(ExampleDataset(artifact, "train", cache)):
        if barrier:
            barrier.wait(120)
        tables.append(table)
    cache.close()
    feather.write_feather(pa.concat_tables(tables), folder / f"batches-{rank}")
