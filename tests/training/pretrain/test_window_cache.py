"""The workers of a node read each window once and see the same examples, also if one is killed or no file can be
written."""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.training.pretrain import data_loader, window_cache
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.window_cache import WindowCache
from tests.training.loader_workers import CACHE_NAME, WINDOW, batches, context, opened_files, result, start_worker
from tests.training.small_examples import examples_artifact


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """40 examples in 3 files, read in four windows."""
    monkeypatch.setattr(data_loader, "_WINDOW", WINDOW)
    return examples_artifact(tmp_path / "examples", shards=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers store windows."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def read_alone(artifact: Artifact, cache: WindowCache | None = None) -> pa.Table:
    return pa.concat_tables(batches(ExampleDataset(artifact, "train", cache)))


def stored_windows(folder: Path) -> list[Path]:
    return list(folder.rglob("*.arrow"))


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_of_a_node_open_each_file_of_a_window_once_and_see_the_same_batches(
    artifact: Artifact, folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier = context.Barrier(workers)
    processes = [start_worker(artifact, folder, rank, barrier) for rank in range(workers)]
    for process in processes:
        process.join(120)
    opened: list[str] = []
    real = Location.open
    monkeypatch.setattr(Location, "open", lambda file, **options: opened.append(file.uri) or real(file, **options))
    alone = read_alone(artifact)
    assert all(result(folder, rank).equals(alone) for rank in range(workers))
    assert opened_files(folder) == sorted(uri for uri in opened if uri.endswith(".parquet"))
    assert len(opened) > 10  # several windows, with examples of several files
    assert not list(folder.glob("cloze-windows-*"))


def test_another_worker_reads_what_a_killed_one_was_reading(artifact: Artifact, folder: Path) -> None:
    killed = start_worker(artifact, folder, 0, hangs=True)
    wait_for(folder / "opened-0")
    other = start_worker(artifact, folder, 1)
    wait_for(folder / "started-1")
    other.join(1)
    assert not (folder / "opened-1").exists()
    killed.kill()
    other.join(120)
    assert result(folder, 1).equals(read_alone(artifact))
    assert not list(folder.glob("cloze-windows-*"))


def test_the_folder_of_a_killed_group_is_deleted_by_the_next_and_one_in_use_is_not(
    artifact: Artifact, folder: Path
) -> None:
    killed = start_worker(artifact, folder, 0, hangs=True)
    wait_for(folder / "opened-0")
    running, second = WindowCache("running", folder), WindowCache("second", folder)
    assert len(list(folder.glob("cloze-windows-*"))) == 3
    killed.kill()
    killed.join(120)
    WindowCache("next", folder).close()
    assert not (folder / f"cloze-windows-{CACHE_NAME}").exists()
    assert len(list(folder.glob("cloze-windows-*"))) == 2
    running.close()
    second.close()


def test_without_room_for_a_window_each_worker_reads_all_of_them(artifact: Artifact, folder: Path) -> None:
    alone, cache = read_alone(artifact), WindowCache(CACHE_NAME, folder)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # bytes of a file
    try:
        read = read_alone(artifact, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read.equals(alone)
    assert sorted(file.name for file in folder.rglob("*.*")) == ["in_use.lock", "reader.lock"]
    cache.close()


def test_without_a_folder_each_worker_reads_all_windows(artifact: Artifact, folder: Path) -> None:
    (folder / "file").touch()
    cache = WindowCache(CACHE_NAME, folder / "file")
    assert read_alone(artifact, cache).equals(read_alone(artifact))
    cache.close()


def test_three_windows_are_kept_and_a_worker_that_needs_an_earlier_one_reads_it(
    artifact: Artifact, folder: Path
) -> None:
    first, late = WindowCache(CACHE_NAME, folder), WindowCache(CACHE_NAME, folder)
    alone = read_alone(artifact)
    assert read_alone(artifact, first).equals(alone)
    assert len(stored_windows(folder)) == 3
    assert read_alone(artifact, late).equals(alone)
    assert len(stored_windows(folder)) == 3
    first.close()
    assert stored_windows(folder)
    late.close()
    assert not stored_windows(folder)


def test_a_mapped_window_stays_valid_after_its_file_is_deleted(artifact: Artifact, folder: Path) -> None:
    cache, dataset = WindowCache(CACHE_NAME, folder), ExampleDataset(artifact, "train")
    expected = dataset.read(dataset.windows(1, 0)[0])
    cache.get("window", lambda: expected)
    mapped = cache.get("window", lambda: pytest.fail("read twice"))
    cache.close()
    assert not list(folder.iterdir())
    assert mapped.to_table().equals(expected.to_table())


def test_an_error_of_the_reader_is_raised_and_the_next_worker_can_read(artifact: Artifact, folder: Path) -> None:
    first, second = WindowCache(CACHE_NAME, folder), WindowCache(CACHE_NAME, folder)
    dataset = ExampleDataset(artifact, "train")

    def fail() -> Any:
        raise OSError("connection reset")

    with pytest.raises(OSError, match="connection reset"):
        first.get("window", fail)
    assert len(second.get("window", lambda: dataset.read(dataset.windows(1, 0)[0]))) > 0
    first.close()
    second.close()


def test_windows_are_on_the_disk_if_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_cache, "_MIN_FREE_BYTES", 2**60)
    assert window_cache._parent_folder() == Path(tempfile.gettempdir())
