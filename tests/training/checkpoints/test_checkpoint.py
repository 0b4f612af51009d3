"""Checkpoints are read as they were written, or disabled; on a disk and on S3."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.leases import LeaseLost
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints import checkpoint
from cloze.training.checkpoints.checkpoint import (
    FOLDER,
    KINDS,
    CheckpointManifest,
    CheckpointPayload,
    CheckpointRef,
    Heldout,
    SavedConfig,
    best_checkpoint,
    finished_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verified_checkpoint,
)
from cloze.training.cluster.collectives import AllGather
from cloze.training.model.bert import BertConfig
from cloze.training.pretrain import async_save
from cloze.training.pretrain.async_save import AsyncSaver

CONFIG = SavedConfig(
    model=BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8), vocab_size=9
)


@pytest.fixture
def artifact(folder: str) -> Location:
    return Location(folder)


def tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    names = {"bert.pooler.weight": (4, 4), "mlm.bias": (9,)}
    return {
        kind: {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
        for kind in ("model", "exp_avg", "exp_avg_sq")
    }


def write(artifact: Location, step: int, **state: Any) -> CheckpointRef:
    return save_checkpoint(artifact, step, tensors(step), CheckpointPayload(CONFIG, {"step": step, **state}))


def test_a_checkpoint_is_read_as_it_was_written(artifact: Location) -> None:
    write(artifact, 2)
    written = write(artifact, 10, loss=0.1)
    found = newest_checkpoint(artifact)
    assert found == written
    assert (found.state(), found.config()) == ({"step": 10, "loss": 0.1}, CONFIG)
    for kind, named in tensors(10).items():
        assert all(torch.equal(value, found.tensors()[kind][name]) for name, value in named.items())
    assert found.weights().keys() == tensors(10)["model"].keys()


def test_without_a_checkpoint_newest_is_none(artifact: Location) -> None:
    assert newest_checkpoint(artifact) is None


@pytest.mark.parametrize("file", ["model.safetensors", "exp_avg.safetensors", "state.json", "config.json"])
def test_a_damaged_checkpoint_is_disabled_and_the_previous_one_is_used(artifact: Location, file: str) -> None:
    before, damaged = write(artifact, 2), write(artifact, 10)
    data = bytearray((damaged.location / file).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged.location / file).write_bytes(bytes(data))
    assert newest_checkpoint(artifact) == before
    assert file in json.loads((damaged.location / "damaged.json").read_bytes())["damaged"]
    assert newest_checkpoint(artifact) == before  # and it stays disabled
    with pytest.raises(UserError, match=r"manifest.json: is missing"):
        verified_checkpoint(damaged.location)


def test_a_missing_file_and_a_truncated_manifest_are_damage(artifact: Location) -> None:
    before, missing, truncated = write(artifact, 2), write(artifact, 4), write(artifact, 6)
    (missing.location / "exp_avg_sq.safetensors").delete()
    manifest = truncated.location / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert newest_checkpoint(artifact) == before


@pytest.mark.parametrize("written", range(6))  # of six files, the manifest last
def test_killed_in_the_middle_of_saving_the_previous_one_is_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    artifact = Location(str(tmp_path))
    before = write(artifact, 2)
    real, left = Location.write_bytes, [written]

    def fail(file: Location, data: bytes, *confirm: Any) -> None:
        if not left[0]:
            raise OSError("No space left on device")
        left[0] -= 1
        real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", fail)
        with pytest.raises(OSError, match="No space left"):
            write(artifact, 10)
    assert newest_checkpoint(artifact) == before
    after = write(artifact, 10)
    assert newest_checkpoint(artifact) == after


def test_the_digest_covers_weights_and_configuration_and_nothing_else(tmp_path: Path) -> None:
    first = write(Location(str(tmp_path / "a")), 2, seconds=1.0)
    timed = write(Location(str(tmp_path / "b")), 2, seconds=2.0)
    other = write(Location(str(tmp_path / "c")), 3, seconds=1.0)
    payload = CheckpointPayload(CONFIG.model_copy(update={"vocab_size": 10}), {})
    wider = save_checkpoint(Location(str(tmp_path / "d")), 2, tensors(2), payload)
    assert first.digest == timed.digest
    assert len({first.digest, other.digest, wider.digest}) == 3


def test_two_runs_that_save_the_same_step_do_not_damage_each_others_checkpoint(artifact: Location) -> None:
    first, second = write(artifact, 2, seconds=1.0), write(artifact, 2, seconds=2.0)
    assert verified_checkpoint(first.location).digest == verified_checkpoint(second.location).digest


def folders(artifact: Location) -> set[str]:
    return {name.split("/")[0] for name in (artifact / FOLDER).sizes()} - {"known.json"}


def test_pruning_keeps_the_newest_and_removes_older_incomplete_ones(artifact: Location) -> None:
    refs = [write(artifact, step) for step in (2, 4, 6, 8)]
    (refs[1].location / "manifest.json").delete()  # as after a kill
    killed = artifact / FOLDER / "step-000003-0123abcd/.model.safetensors.0f.tmp"  # killed while writing the first file
    killed.write_bytes(b"half")
    prune_checkpoints(artifact, keep=2)
    assert not killed.exists()
    assert folders(artifact) == {refs[2].location.name, refs[3].location.name}
    assert newest_checkpoint(artifact) == refs[3]


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_listing_that_omits_checkpoints_or_shows_pruned_ones_changes_nothing(
    artifact: Location, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    refs = [evaluated(artifact, step, loss) for step, loss in ((2, 9.0), (4, 1.0), (6, 8.0), (8, 7.0))]
    real = Location.folders
    with monkeypatch.context() as patch:
        patch.setattr(Location, "folders", lambda folder: real(folder)[:left])
        patch.setattr(Location, "sizes", lambda _: {})
        assert newest_checkpoint(artifact) == refs[3] and best_checkpoint(artifact) == refs[1]
        prune_checkpoints(artifact, keep=2)
        assert newest_checkpoint(artifact) == refs[3] and best_checkpoint(artifact) == refs[1]
    assert folders(artifact) == {ref.location.name for ref in refs[1:]}
    stale = [ref.location for ref in refs]
    with monkeypatch.context() as patch:
        patch.setattr(Location, "folders", lambda _: stale)
        assert newest_checkpoint(artifact) == refs[3] and best_checkpoint(artifact) == refs[1]
        prune_checkpoints(artifact, keep=2)
    assert folders(artifact) == {ref.location.name for ref in refs[1:]}


def test_a_checkpoint_completed_while_another_run_checks_it_is_not_damaged(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, new = write(artifact, 2), write(artifact, 4)
    manifest = new.location / "manifest.json"
    data = manifest.read_bytes()
    manifest.delete()
    read = checkpoint._read_manifest

    def late(folder: Location) -> CheckpointManifest:
        try:
            return read(folder)
        finally:
            manifest.write_bytes(data)  # by the run that writes the checkpoint

    monkeypatch.setattr(checkpoint, "_read_manifest", late)
    assert newest_checkpoint(artifact) in (before, new)
    assert newest_checkpoint(artifact) == new and not (new.location / "damaged.json").exists()


def test_without_a_valid_known_json_the_listing_is_used(artifact: Location) -> None:
    refs = [write(artifact, step) for step in (2, 4)]
    (artifact / FOLDER / "known.json").write_text("[")
    assert newest_checkpoint(artifact) == refs[1]
    (artifact / FOLDER / "known.json").delete()
    assert newest_checkpoint(artifact) == refs[1]


def evaluated(artifact: Location, step: int, loss: float, phase: int = 0) -> CheckpointRef:
    return save_checkpoint(
        artifact, step, tensors(step), CheckpointPayload(CONFIG, {"step": step}, Heldout(phase=phase, loss=loss))
    )


def test_the_best_is_the_lowest_held_out_loss_of_the_last_phase_and_is_not_pruned(artifact: Location) -> None:
    assert best_checkpoint(artifact) is None
    evaluated(artifact, 2, 1.0)
    good = evaluated(artifact, 4, 3.0, phase=1)
    evaluated(artifact, 6, 4.0, phase=1)
    write(artifact, 8)  # never evaluated
    newer = evaluated(artifact, 10, 5.0, phase=1)
    assert best_checkpoint(artifact) == good
    prune_checkpoints(artifact, keep=1)
    assert folders(artifact) == {good.location.name, newer.location.name}
    better = evaluated(artifact, 12, 2.0, phase=1)
    prune_checkpoints(artifact, keep=1)
    assert best_checkpoint(artifact) == better and not good.location.files()


@pytest.mark.parametrize("flipped", [False, True])
def test_a_damaged_best_checkpoint_is_replaced_by_the_next_best_and_pruned(artifact: Location, flipped: bool) -> None:
    damaged, good = evaluated(artifact, 2, 1.0), evaluated(artifact, 4, 2.0)
    newer = evaluated(artifact, 6, 3.0)
    file = damaged.location / "model.safetensors"
    if flipped:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert best_checkpoint(artifact) == good  # which disables the damaged one
        assert (damaged.location / "damaged.json").exists()
    else:
        file.delete()
    prune_checkpoints(artifact, keep=1)
    assert best_checkpoint(artifact) == good and newest_checkpoint(artifact) == newer
    assert bool(damaged.location.files()) == flipped


def test_damaged_weights_are_never_returned(artifact: Location) -> None:
    ref = write(artifact, 2)
    for kind in KINDS:
        file = ref.location / f"{kind}.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{kind}\.safetensors: is damaged: .*; use another checkpoint, or delete"):
            ref.weights() if kind == "model" else ref.tensors()
        file.write_bytes(data)
    (ref.location / "model.safetensors").delete()
    with pytest.raises(UserError, match=r"model\.safetensors: is missing"):
        ref.weights()


def test_a_checkpoint_that_ends_the_training_is_kept_when_another_run_continues(artifact: Location) -> None:
    """Two runs with the same time budget, one of them faster."""
    assert finished_checkpoint(artifact) is None
    ended = save_checkpoint(artifact, 4, tensors(4), CheckpointPayload(CONFIG, {"step": 4}, done=True))
    for step in (6, 8, 10):
        write(artifact, step)
        prune_checkpoints(artifact, keep=2)
    assert finished_checkpoint(artifact) == ended and newest_checkpoint(artifact) != ended
    later = save_checkpoint(artifact, 12, tensors(12), CheckpointPayload(CONFIG, {"step": 12}, done=True))
    assert finished_checkpoint(artifact) == later


def test_saving_a_complete_checkpoint_again_writes_and_deletes_nothing(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a save that succeeded before the metrics failed on a full disk."""
    written = write(artifact, 2)

    def full(file: Location, data: bytes, *confirm: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Location, "write_bytes", full)
    assert write(artifact, 2) == written == newest_checkpoint(artifact)


def test_a_failed_save_deletes_nothing_of_a_run_that_has_taken_over(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, of_other = Location.write_bytes, list[CheckpointRef]()

    def check_lease() -> None:
        if of_other:
            raise LeaseLost("another run took over")

    def write_bytes(file: Location, data: bytes, *confirm: Any) -> None:
        if confirm == (check_lease,) and file.name.startswith("exp_avg."):
            of_other.append(write(artifact, 2))
            raise OSError("S3 does not answer")
        real(file, data, *confirm)

    monkeypatch.setattr(Location, "write_bytes", write_bytes)
    payload = CheckpointPayload(CONFIG, {"step": 2})
    with pytest.raises(LeaseLost):
        save_checkpoint(artifact, 2, tensors(2), payload, confirm=check_lease)
    assert newest_checkpoint(artifact) == of_other[0]


def run_in_threads(workers: int, save_as: Callable[[int, AllGather], object]) -> list[object]:
    """What each of several workers, here threads, returns or raises."""
    barrier, values = threading.Barrier(workers, timeout=30), dict[int, Any]()

    def as_worker(rank: int) -> object:
        def all_gather(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            found = [values[other] for other in range(workers)]
            barrier.wait()
            return found

        try:
            return save_as(rank, all_gather)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(as_worker, range(workers)))


def save_part(artifact: Location, rank: int, workers: int, all_gather: AllGather) -> CheckpointRef:
    own = {kind: tensors(2)[kind] for kind in KINDS[rank::workers]}
    return save_checkpoint(artifact, 2, own, CheckpointPayload(CONFIG, {"step": 2}) if rank == 0 else None, all_gather)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_several_workers_write_the_checkpoint_that_one_writes(artifact: Location, workers: int) -> None:
    parts = run_in_threads(workers, lambda rank, all_gather: save_part(artifact / "parts", rank, workers, all_gather))
    whole = write(artifact / "whole", 2)
    assert parts == [CheckpointRef(artifact / "parts" / FOLDER / whole.location.name, whole.digest, 2)] * workers
    assert newest_checkpoint(artifact / "parts") == parts[0]
    assert {f.name: f.read_bytes() for f in parts[0].location.files()} == {
        f.name: f.read_bytes() for f in whole.location.files()
    }


def test_a_complete_checkpoint_survives_later_failures_of_the_same_save(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 fails after the checkpoint is written, and again when the second attempt checks the manifest."""
    attempts: list[int] = []
    real = Location.exists
    monkeypatch.setattr(async_save, "_RETRY_SECONDS", 0.0)

    def exists(file: Location) -> bool:
        if file.name == "manifest.json" and len(attempts) == 2:
            raise OSError("S3 does not answer")
        return real(file)

    monkeypatch.setattr(Location, "exists", exists)

    def save_and_prune() -> None:
        attempts.append(1)
        write(artifact, 2)
        if len(attempts) == 1:
            raise OSError("S3 does not answer")

    saver = AsyncSaver(artifact, 2, lambda note: found.append(newest_checkpoint(artifact)))
    whole = write(artifact / "reference", 2)
    found: list[CheckpointRef | None] = []
    saver.start(2, save_and_prune)
    saver.wait()
    assert len(attempts) == 3 and saver.failure == ""
    assert [ref and ref.digest for ref in [*found, newest_checkpoint(artifact)]] == [whole.digest] * 3


def test_an_error_that_a_retry_cannot_fix_ends_every_worker(artifact: Location) -> None:
    def as_worker(rank: int, all_gather: AllGather) -> str:
        def work() -> None:
            if rank == 1:
                raise UserError("the folder cannot be created")

        saver = AsyncSaver(artifact, 2, lambda note: None, all_gather)
        saver.start(2, work)
        with pytest.raises((UserError, RuntimeError)) as error:
            saver.wait()
        return f"{error.type.__name__}: {error.value}"

    assert run_in_threads(2, as_worker) == [
        f"{kind}: the folder cannot be created" for kind in ("RuntimeError", "UserError")
    ]


@pytest.mark.parametrize("failing", ["model", "exp_avg", "exp_avg_sq", "state", "manifest"])
def test_when_the_disk_of_one_worker_fails_all_workers_try_again(
    artifact: Location, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real, broken = Location.write_bytes, [True]

    def write_bytes(file: Location, data: bytes, *confirm: Any) -> None:
        if file.name.startswith(f"{failing}.") and broken and broken.pop():
            raise OSError("No space left on device")
        real(file, data)

    monkeypatch.setattr(Location, "write_bytes", write_bytes)
    shown: list[str] = []
    monkeypatch.setattr(async_save, "_RETRY_SECONDS", 0.0)

    def as_worker(rank: int, all_gather: AllGather) -> str:
        saver = AsyncSaver(artifact, 2, shown.append, all_gather)
        saver.start(2, lambda: save_part(artifact, rank, 2, all_gather))
        saver.wait()
        return saver.failure

    assert run_in_threads(2, as_worker) == ["", ""]
    assert shown == ["checkpoint at step 2 not written (No space left on device), attempt 1"] * 2
    found = newest_checkpoint(artifact)
    assert found and found.tensors().keys() == set(KINDS)
