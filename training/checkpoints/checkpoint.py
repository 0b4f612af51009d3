"""Weights, moments and training state <-> a verified folder that any ZeRO stage and number of workers can load.

A checkpoint is a folder of an artifact, such as checkpoints/step-000100-1f0c9a2b/. It contains safetensors files keyed
by parameter name, config.json (what is needed to build the model), state.json (the training state) and manifest.json
with the SHA-256 of each file. The manifest is written last: a folder without one is not a checkpoint. The end of the
folder's name is derived from these digests, so two runs that write the same step at once write either the same bytes
or two folders.

Two sources say which checkpoints exist: a listing of the folder, which may be stale or incomplete on object stores, and
known.json in it, which a second run may just have overwritten. The names of both are combined.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from cloze.pipeline.core.artifacts import FileRecord, matches_record
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.cluster.collectives import AllGather, run_together, single_worker_gather
from cloze.training.model.architectures import ModelConfig

Tensors = dict[str, dict[str, Tensor]]  # kind -> parameter name -> fp32 tensor on the CPU

KINDS = ("model", "exp_avg", "exp_avg_sq")  # the weights and Adam's two moments
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)-[0-9a-f]{8}")
_MANIFEST, _DAMAGED, _KNOWN = "manifest.json", "damaged.json", "known.json"
_DIGESTED_FILES = ("config.json", "model.safetensors")  # the files that a checkpoint's digest covers
_BLOCK = 1 << 20


class SavedConfig(Config):
    """config.json: what is needed to build the model."""

    model: ModelConfig
    """The configuration of the encoder."""
    vocab_size: int
    """The number of pieces in the vocabulary."""
    nsp: bool = True
    """Whether the model has a pooler and a head for segment pairs."""


class Heldout(Config):
    """The held-out loss of a checkpoint. Each phase has its own held-out examples, so compare losses of one phase."""

    phase: int
    loss: float


class CheckpointPayload(NamedTuple):
    """The content of a checkpoint apart from its tensors. Worker 0 writes it."""

    config: SavedConfig
    state: Mapping[str, Any]
    heldout: Heldout | None = None  # if the model was evaluated at this step
    done: bool = False  # whether training ends with this checkpoint


class CheckpointManifest(Config):
    """manifest.json of a checkpoint."""

    step: int
    digest: str
    files: dict[str, FileRecord]
    heldout: Heldout | None = None
    done: bool = False


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint and its digest, which covers weights and configuration and is the input of fine-tuning.

    Every file is verified when it is read: UserError names a file that has changed since it was written.
    """

    location: Location
    digest: str
    step: int

    def config(self) -> SavedConfig:
        return SavedConfig.model_validate_json(self._read("config.json"))

    def state(self) -> dict[str, Any]:
        return json.loads(self._read("state.json"))

    def manifest(self) -> CheckpointManifest:
        return _read_manifest(self.location)

    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> fp32 weights."""
        return self._load_tensors("model")["model"]

    def tensors(self) -> Tensors:
        """Weights and moments."""
        return self._load_tensors(*KINDS)

    def _load_tensors(self, *kinds: str) -> Tensors:
        from safetensors.torch import load

        files, names = self.manifest().files, {kind: f"{kind}.safetensors" for kind in kinds}
        return {
            kind: load(_read_verified(self.location / name, files[name]))
            for kind, name in names.items()
            if name in files
        }

    def _read(self, name: str) -> bytes:
        return _read_verified(self.location / name, self.manifest().files[name])


def save_checkpoint(
    artifact: Location,
    step: int,
    tensors: Tensors,
    payload: CheckpointPayload | None,
    all_gather: AllGather = single_worker_gather,
    confirm: Callable[[], object] = lambda: None,
) -> CheckpointRef:
    """Write a checkpoint under the artifact's folder. It is valid once its manifest, the last file, is written.

    All workers must call it together. Each writes its `tensors`; worker 0 also has the `payload` and writes the
    manifest. Raises OSError in every worker when the disk or S3 fails in one, except for the manifest: only worker 0
    sees that error. `confirm` is called directly before each write and deletion, and may raise.
    """
    from safetensors.torch import save

    files = dict[str, bytes]()

    def serialize() -> dict[str, FileRecord]:
        files.update({f"{kind}.safetensors": save(named) for kind, named in tensors.items()})
        if payload:
            files["config.json"] = payload.config.model_dump_json(indent=1).encode()
            files["state.json"] = json.dumps(payload.state).encode()
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {name: FileRecord(sha256=digests[name], bytes=len(data)) for name, data in files.items()}

    worker_records = run_together(all_gather, serialize)
    records = dict(sorted((name, record) for records in worker_records for name, record in records.items()))
    digest, manifest = _digest(records, _DIGESTED_FILES), None
    if payload:
        heldout, done = payload.heldout, payload.done
        manifest = CheckpointManifest(step=step, digest=digest, files=records, heldout=heldout, done=done)
    folder = artifact / FOLDER / f"step-{step:06d}-{_digest(records, list(records))[:8]}"
    _write(artifact, folder, files, manifest, all_gather, confirm)
    return CheckpointRef(folder, digest, step)


def _write(
    artifact: Location,
    folder: Location,
    files: Mapping[str, bytes],
    manifest: CheckpointManifest | None,
    all_gather: AllGather,
    confirm: Callable[[], object],
) -> None:
    """Write this worker's files and, once all workers have written theirs, the manifest. Raises OSError."""

    def is_written() -> bool:
        return manifest is not None and (folder / _MANIFEST).exists()

    def write_files() -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data, confirm)

    if any(run_together(all_gather, is_written)):  # by an earlier attempt that failed in a later operation
        return
    try:
        run_together(all_gather, write_files)
        if manifest:
            confirm()
            _write_known([*_folders(artifact), folder], artifact)
            (folder / _MANIFEST).write_bytes(manifest.model_dump_json(indent=1).encode(), confirm)
    except OSError:
        if manifest:
            with suppress(OSError):  # free the space: the disk may be full
                confirm()
                (folder / _MANIFEST).delete()
                confirm()
                folder.delete()
        raise


def newest_checkpoint(artifact: Location) -> CheckpointRef | None:
    """The undamaged checkpoint with the highest step.

    Damaged checkpoints with a higher step are disabled: damaged.json, with the reason, replaces their manifest.
    """
    return next(filter(None, map(_verified_or_none, reversed(_folders(artifact)))), None)


def finished_checkpoint(artifact: Location) -> CheckpointRef | None:
    """The newest checkpoint that ends the training. Two runs with a time budget may each have written one."""
    finished = [folder for folder, manifest in _manifests(_folders(artifact)).items() if manifest.done]
    return next(filter(None, map(_verified_or_none, reversed(finished))), None)


def best_checkpoint(artifact: Location) -> CheckpointRef | None:
    """The undamaged checkpoint with the lowest held-out loss of the last phase that was evaluated."""
    return next(filter(None, map(_verified_or_none, _best_first(_manifests(_folders(artifact))))), None)


def _verified_or_none(folder: Location) -> CheckpointRef | None:
    """A checkpoint, or None if it is damaged, or if another run of the same fingerprint is writing or has pruned it."""
    if not (folder / _MANIFEST).is_file():  # checked first: a checkpoint that is being written is not damaged
        return None
    try:
        return verified_checkpoint(folder)
    except UserError as error:
        if (folder / _MANIFEST).exists():
            (folder / _DAMAGED).write_text(json.dumps({"damaged": str(error)}))
            (folder / _MANIFEST).delete()
        return None


def checkpoint_ref(folder: Location) -> CheckpointRef:
    """A checkpoint's folder -> its reference. Raises UserError when the folder is not a checkpoint."""
    manifest = _read_manifest(folder)
    return CheckpointRef(folder, manifest.digest, manifest.step)


def verified_checkpoint(folder: Location) -> CheckpointRef:
    """A checkpoint's folder -> its reference. Raises UserError that names a missing or damaged file.

    An OSError of the disk or S3 is not damage: it is raised unchanged.
    """
    manifest = _read_manifest(folder)
    for name, record in manifest.files.items():
        file = folder / name
        # read twice: the bytes may have changed on the way
        if not file.is_file() or (_sha256(file) != record.sha256 and _sha256(file) != record.sha256):
            raise _damaged_error(file, record)
    return CheckpointRef(folder, manifest.digest, manifest.step)


def _read_verified(file: Location, record: FileRecord) -> bytes:
    """Read a file of a checkpoint. Raises UserError when it differs from its record."""
    for _ in range(2):  # the bytes may have changed on the way
        data = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(data).hexdigest() == record.sha256:
            return data
    raise _damaged_error(file, record)


def _read_manifest(folder: Location) -> CheckpointManifest:
    try:
        return CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise _damaged_error(folder / _MANIFEST) from error


def _damaged_error(file: Location, record: FileRecord | None = None) -> DamagedFile:
    if not file.is_file():
        problem = "is missing"
    elif record and file.size() != record.bytes:
        problem = f"is damaged: it has {file.size()} of {record.bytes} bytes"
    else:
        problem = "is damaged: its SHA-256 is not the recorded one" if record else "is damaged"
    folder = file.uri.rpartition("/")[0]
    return DamagedFile(
        f"{file}: {problem}; use another checkpoint, or delete {folder} and run its pretraining again, which continues "
        "from an earlier one"
    )


def prune_checkpoints(artifact: Location, keep: int) -> None:
    """Delete checkpoints except the `keep` newest, the best and those that end a training.

    Incomplete folders of earlier steps are deleted as well. Raises OSError when the disk or S3 fails.
    """
    folders = _folders(artifact)
    manifests = _manifests(folders)
    newest = list(manifests)[-keep:]
    finished = (folder for folder, manifest in manifests.items() if manifest.done)
    kept = {*newest, *_best_first(manifests)[:1], *finished}
    deleted = set[Location]()
    for folder in folders:
        if folder in kept or not newest or (folder / _DAMAGED).is_file():
            continue
        if _sort_key(folder) < _sort_key(newest[0]):
            (folder / _MANIFEST).delete()
            folder.delete()
            deleted.add(folder)
    if deleted:
        _write_known([folder for folder in folders if folder not in deleted], artifact)


def _best_first(manifests: Mapping[Location, CheckpointManifest]) -> list[Location]:
    """The folders of evaluated checkpoints, the best first; of equally good ones, the newer first."""
    newest_first = reversed(list(manifests.items()))
    evaluated = [
        (-manifest.heldout.phase, manifest.heldout.loss, folder)
        for folder, manifest in newest_first
        if manifest.heldout
    ]
    return [folder for *_, folder in sorted(evaluated, key=lambda entry: entry[:2])]


def _manifests(folders: Sequence[Location]) -> dict[Location, CheckpointManifest]:
    """The manifests of complete checkpoints: every file exists and has the recorded size."""

    def read(folder: Location) -> CheckpointManifest | None:
        with suppress(UserError):  # incomplete, damaged, or just pruned by another run
            manifest = _read_manifest(folder)
            if all(matches_record(folder / name, record) for name, record in manifest.files.items()):
                return manifest
        return None

    manifests = zip(folders, map_in_threads(read, folders), strict=True)
    return {folder: manifest for folder, manifest in manifests if manifest}


def _folders(artifact: Location) -> list[Location]:
    """The folders of checkpoints in the order of their steps, including incomplete ones."""
    root = artifact / FOLDER
    names = {folder.name for folder in root.folders()}
    with suppress(FileNotFoundError, ValueError):  # known.json does not exist yet or is damaged: use the listing only
        names |= set(json.loads((root / _KNOWN).read_bytes()))
    return sorted((root / name for name in names if _NAME.fullmatch(name)), key=_sort_key)


def _write_known(folders: Iterable[Location], artifact: Location) -> None:
    names = sorted({folder.name for folder in folders})
    (artifact / FOLDER / _KNOWN).write_text(json.dumps(names))


def _sort_key(folder: Location) -> tuple[int, str]:
    match = _NAME.fullmatch(folder.name)
    assert match
    return int(match[1]), folder.name


def _digest(records: Mapping[str, FileRecord], names: tuple[str, ...] | list[str]) -> str:
    lines = "".join(f"{records[name].sha256}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(file: Location) -> str:
    digest = hashlib.sha256()
    with file.open() as source:
        while block := source.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
