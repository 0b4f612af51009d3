"""Checkpoints: what is read is what was written, or it is set aside; on a disk and on S3."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze.pipeline.core.errors import UserError
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


def test_what_is_read_is_what_was_written(artifact: Location) -> None:
    write(artifact, 2)
    written = write(artifact, 10, loss=0.1)
    found = newest_checkpoint(artifact)
    assert found == written
    assert (found.state(), found.config()) == ({"step": 10, "loss": 0.1}, CONFIG)
    for kind, named in tensors(10).items():
        assert all(torch.equal(value, found.tensors()[kind][name]) for name, value in named.items())
    assert found.weights().keys() == tensors(10)["model"].keys()


def test_there_is_none_before_the_first(artifact: Location) -> None:
    assert newest_checkpoint(artifact) is None


@pytest.mark.parametrize("file", ["model.safetensors", "exp_avg.safetensors", "state.json", "config.json"])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_used(artifact: Location, file: str) -> None:
    before, damaged = write(artifact, 2), write(artifact, 10)
    data = bytearray((damaged.location / file).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged.location / file).write_bytes(bytes(data))
    assert newest_checkpoint(artifact) == before
    assert file in json.loads((damaged.location / "damaged.json").read_bytes())["damaged"]
    assert newest_checkpoint(artifact) == before  # and it stays aside
    with pytest.raises(UserError, match=r"manifest.json: is missing"):
        verified_checkpoint(damaged.location)


def test_a_missing_file_and_a_truncated_manifest_are_damage(artifact: Location) -> None:
    before, missing, truncated = write(artifact, 2), write(artifact, 4), write(artifact, 6)
    (missing.location / "exp_avg_sq.safetensors").delete()
    manifest = truncated.location / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert newest_checkpoint(artifact) == before


@pytest.mark.parametrize("written", range(6))  # of six files, the manifest last
def test_killed_in_the_middle_of_saving_the_one_before_is_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    artifact = Location(str(tmp_path))
    before = write(artifact, 2)
    real, left = Location.write_bytes, [written]

    def fail(file: Location, data: bytes) -> None:
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
    more = CheckpointPayload(CONFIG.model_copy(update={"vocab_size": 10}), {})
    wider = save_checkpoint(Location(str(tmp_path / "d")), 2, tensors(2), more)
    assert first.digest == timed.digest
    assert len({first.digest, other.digest, wider.digest}) == 3


def test_two_runs_that_save_one_step_at_once_do_not_spoil_one_another(artifact: Location) -> None:
    first, second = write(artifact, 2, seconds=1.0), write(artifact, 2, seconds=2.0)
    assert verified_checkpoint(first.location).digest == verified_checkpoint(second.location).digest


def folders(artifact: Location) -> set[str]:
    return {name.split("/")[0] for name in (artifact / FOLDER).sizes()} - {"known.json"}


def test_pruning_keeps_the_newest_and_removes_what_was_half_written_before_them(artifact: Location) -> None:
    refs = [write(artifact, step) for step in (2, 4, 6, 8)]
    (refs[1].location / "manifest.json").delete()  # as a kill leaves it
    killed = artifact / FOLDER / "step-000003-0123abcd/.model.safetensors.0f.tmp"  # in its first file
    killed.write_bytes(b"half")
    prune_checkpoints(artifact, keep=2)
    assert not killed.exists()
    assert folders(artifact) == {refs[2].location.name, refs[3].location.name}
    assert newest_checkpoint(artifact) == refs[3]


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_a_listing_that_leaves_checkpoints_out_or_shows_pruned_ones_changes_nothing(
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


def test_one_that_is_finished_while_another_run_looks_at_it_is_not_damaged(
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
            manifest.write_bytes(data)  # by the run whose checkpoint it is

    monkeypatch.setattr(checkpoint, "_read_manifest", late)
    assert newest_checkpoint(artifact) in (before, new)
    assert newest_checkpoint(artifact) == new and not (new.location / "damaged.json").exists()


def test_a_list_of_checkpoints_that_is_lost_or_damaged_leaves_the_listing(artifact: Location) -> None:
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
def test_a_damaged_best_gives_way_to_the_next_and_does_not_shield_itself(artifact: Location, flipped: bool) -> None:
    damaged, good = evaluated(artifact, 2, 1.0), evaluated(artifact, 4, 2.0)
    newer = evaluated(artifact, 6, 3.0)
    file = damaged.location / "model.safetensors"
    if flipped:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert best_checkpoint(artifact) == good  # the damaged one is set aside by it
        assert (damaged.location / "damaged.json").exists()
    else:
        file.delete()
    prune_checkpoints(artifact, keep=1)
    assert best_checkpoint(artifact) == good and newest_checkpoint(artifact) == newer
    assert bool(damaged.location.files()) == flipped


def test_weights_are_read_as_they_were_written_or_not_at_all(artifact: Location) -> None:
    ref = write(artifact, 2)
    for kind in KINDS:
        file = ref.location / f"{kind}.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{kind}\.safetensors: is missing or damaged; use another checkpoint"):
            ref.weights() if kind == "model" else ref.tensors()
        file.write_bytes(data)
    (ref.location / "model.safetensors").delete()
    with pytest.raises(UserError, match=r"model\.safetensors: is missing"):
        ref.weights()


def test_what_ends_a_training_stays_though_another_run_has_gone_further(artifact: Location) -> None:
    """Two runs of one time budget, of which one is the faster."""
    assert finished_checkpoint(artifact) is None
    ended = save_checkpoint(artifact, 4, tensors(4), CheckpointPayload(CONFIG, {"step": 4}, done=True))
    for step in (6, 8, 10):
        write(artifact, step)
        prune_checkpoints(artifact, keep=2)
    assert finished_checkpoint(artifact) == ended and newest_checkpoint(artifact) != ended
    later = save_checkpoint(artifact, 12, tensors(12), CheckpointPayload(CONFIG, {"step": 12}, done=True))
    assert finished_checkpoint(artifact) == later


def test_saving_again_what_is_whole_writes_nothing_and_takes_nothing_away(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a save that succeeded and metrics that did not fit on the disk."""
    written = write(artifact, 2)

    def full(file: Location, data: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Location, "write_bytes", full)
    assert write(artifact, 2) == written == newest_checkpoint(artifact)


def together(workers: int, save_as: Callable[[int, AllGather], object]) -> list[object]:
    """What each of several workers, here threads, returns or raises."""
    meeting, brought = threading.Barrier(workers, timeout=30), dict[int, Any]()

    def as_worker(rank: int) -> object:
        def exchange(value: Any) -> list[Any]:
            brought[rank] = value
            meeting.wait()
            found = [brought[other] for other in range(workers)]
            meeting.wait()
            return found

        try:
            return save_as(rank, exchange)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(as_worker, range(workers)))


def save_part(artifact: Location, rank: int, workers: int, exchange: AllGather) -> CheckpointRef:
    mine = {kind: tensors(2)[kind] for kind in KINDS[rank::workers]}
    return save_checkpoint(artifact, 2, mine, CheckpointPayload(CONFIG, {"step": 2}) if rank == 0 else None, exchange)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_several_workers_write_the_checkpoint_that_one_writes(artifact: Location, workers: int) -> None:
    parts = together(workers, lambda rank, exchange: save_part(artifact / "parts", rank, workers, exchange))
    whole = write(artifact / "whole", 2)
    assert parts == [CheckpointRef(artifact / "parts" / FOLDER / whole.location.name, whole.digest, 2)] * workers
    assert newest_checkpoint(artifact / "parts") == parts[0]
    assert {f.name: f.read_bytes() for f in parts[0].location.files()} == {
        f.name: f.read_bytes() for f in whole.location.files()
    }


def test_a_checkpoint_that_is_whole_outlives_whatever_fails_after_it(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 fails while what comes after is written, and again when the second attempt looks for the manifest."""
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
    whole = write(artifact / "beside", 2)
    found: list[CheckpointRef | None] = []
    saver.start(2, save_and_prune)
    saver.wait()
    assert len(attempts) == 3 and saver.failure == ""
    assert [ref and ref.digest for ref in [*found, newest_checkpoint(artifact)]] == [whole.digest] * 3


def test_what_no_new_attempt_would_mend_ends_every_worker(artifact: Location) -> None:
    def as_worker(rank: int, exchange: AllGather) -> str:
        def work() -> None:
            if rank == 1:
                raise UserError("the folder cannot be made")

        saver = AsyncSaver(artifact, 2, lambda note: None, exchange)
        saver.start(2, work)
        with pytest.raises((UserError, RuntimeError)) as error:
            saver.wait()
        return f"{error.type.__name__}: {error.value}"

    assert together(2, as_worker) == [f"{kind}: the folder cannot be made" for kind in ("RuntimeError", "UserError")]


@pytest.mark.parametrize("failing", ["model", "exp_avg", "exp_avg_sq", "state", "manifest"])
def test_when_one_workers_disk_fails_there_is_no_checkpoint_and_all_try_again(
    artifact: Location, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real, broken = Location.write_bytes, [True]

    def write_bytes(file: Location, data: bytes) -> None:
        if file.name.startswith(f"{failing}.") and broken and broken.pop():
            raise OSError("No space left on device")
        real(file, data)

    monkeypatch.setattr(Location, "write_bytes", write_bytes)
    shown: list[str] = []
    monkeypatch.setattr(async_save, "_RETRY_SECONDS", 0.0)

    def as_worker(rank: int, exchange: AllGather) -> str:
        saver = AsyncSaver(artifact, 2, shown.append, exchange)
        saver.start(2, lambda: save_part(artifact, rank, 2, exchange))
        saver.wait()
        return saver.failure

    assert together(2, as_worker) == ["", ""]
    assert shown == ["checkpoint at step 2 not written (No space left on device), attempt 1"] * 2
    found = newest_checkpoint(artifact)
    assert found and found.tensors().keys() == set(KINDS)
