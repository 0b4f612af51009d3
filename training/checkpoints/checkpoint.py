"""weights, moments and a state <-> a verified folder; any ZeRO stage and number of workers can read it.

A checkpoint is the folder checkpoints/step-000100-1f0c9a2b/ of an artifact: safetensors files keyed by the names of the
parameters, config.json (what is needed to build the model), state.json (where training stands) and, written last,
manifest.json with the SHA-256 of each. No manifest, no checkpoint. The end of its name comes from those digests, so two
runs that write the same step at once write either the same bytes or two folders.

Which checkpoints there are say two witnesses: a listing of the folder, which may lag or leave one out, and known.json
in it, which a second run may just have written over. What either names is read by its name.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from cloze.pipeline.core.artifacts import FileRecord, matches_record
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.cluster.collectives import Exchange, alone, together
from cloze.training.model.architectures import ModelConfig

Tensors = dict[str, dict[str, Tensor]]  # a kind -> name of a parameter -> fp32, on the CPU

KINDS = ("model", "exp_avg", "exp_avg_sq")
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)-[0-9a-f]{8}")
_MANIFEST, _DAMAGED, _KNOWN = "manifest.json", "damaged.json", "known.json"
_NAMED_BY = ("config.json", "model.safetensors")  # the files whose bytes make the digest
_BLOCK = 1 << 20


class SavedConfig(Config):
    """config.json: what is needed to build the model."""

    model: ModelConfig
    vocab_size: int
    nsp: bool = True  # whether there are a head for pairs and the pooler beneath it


class Heldout(Config):
    """How good a checkpoint is; losses of one phase alone compare, as each has its own held-out examples."""

    phase: int
    loss: float


class Standing(NamedTuple):
    """What a checkpoint holds beside its tensors, which worker 0 writes."""

    config: SavedConfig
    state: Mapping[str, Any]
    heldout: Heldout | None = None  # where it was evaluated at this step
    done: bool = False  # whether it ends the training


class CheckpointManifest(Config):
    """manifest.json: what a checkpoint promises."""

    step: int
    digest: str
    files: dict[str, FileRecord]
    heldout: Heldout | None = None
    done: bool = False


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint by its digest, which covers weights and configuration: what fine-tuning hangs on.

    What is read of it is as it was written: else UserError names the file.
    """

    location: Location
    digest: str
    step: int

    def config(self) -> SavedConfig:
        return SavedConfig.model_validate_json(self._bytes("config.json"))

    def state(self) -> dict[str, Any]:
        return json.loads(self._bytes("state.json"))

    def manifest(self) -> CheckpointManifest:
        return _manifest(self.location)

    def weights(self) -> dict[str, Tensor]:
        """Name of a parameter -> fp32."""
        return self._tensors("model")["model"]

    def tensors(self) -> Tensors:
        """Weights and moments."""
        return self._tensors(*KINDS)

    def _tensors(self, *kinds: str) -> Tensors:
        from safetensors.torch import load

        files, names = self.manifest().files, {kind: f"{kind}.safetensors" for kind in kinds}
        return {kind: load(_bytes(self.location / name, files[name])) for kind, name in names.items() if name in files}

    def _bytes(self, name: str) -> bytes:
        return _bytes(self.location / name, self.manifest().files[name])


def save(
    artifact: Location, step: int, tensors: Tensors, standing: Standing | None, exchange: Exchange = alone
) -> CheckpointRef:
    """Write a checkpoint under the artifact's folder; it is one once its manifest, the last file, is there.

    Each of several workers writes the tensors that it gives, worker 0 its `standing` and the manifest as well. All have
    to call it together. Raises OSError in every worker when the disk or S3 fails one of them, but for the manifest's,
    which worker 0 alone sees.
    """
    from safetensors.torch import save as serialize

    files = dict[str, bytes]()

    def made() -> dict[str, FileRecord]:
        files.update({f"{kind}.safetensors": serialize(named) for kind, named in tensors.items()})
        if standing:
            files["config.json"] = standing.config.model_dump_json(indent=1).encode()
            files["state.json"] = json.dumps(standing.state).encode()
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {name: FileRecord(sha256=digests[name], bytes=len(data)) for name, data in files.items()}

    records = dict(sorted((name, record) for part in together(exchange, made) for name, record in part.items()))
    digest, manifest = _digest(records, _NAMED_BY), None
    if standing:
        heldout, done = standing.heldout, standing.done
        manifest = CheckpointManifest(step=step, digest=digest, files=records, heldout=heldout, done=done)
    folder = artifact / FOLDER / f"step-{step:06d}-{_digest(records, list(records))[:8]}"
    _write(artifact, folder, files, manifest, exchange)
    return CheckpointRef(folder, digest, step)


def _write(
    artifact: Location,
    folder: Location,
    files: Mapping[str, bytes],
    manifest: CheckpointManifest | None,
    exchange: Exchange,
) -> None:
    """This worker's files and, where it has it and all of them are there, the manifest. Raises OSError."""

    def is_there() -> bool:
        return manifest is not None and (folder / _MANIFEST).exists()

    def written() -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    if any(together(exchange, is_there)):  # and whole: an attempt before this failed at what comes after
        return
    try:
        together(exchange, written)
        if manifest:
            _remember([*_folders(artifact), folder], artifact)
            (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=1))
    except OSError:
        if manifest:
            with suppress(OSError):  # a full disk wants the room back
                (folder / _MANIFEST).delete()
                folder.delete()
        raise


def newest(artifact: Location) -> CheckpointRef | None:
    """The checkpoint of the highest step whose bytes are those of its manifest.

    A damaged one is set aside on the way: its manifest becomes damaged.json with what is wrong, so that it counts no
    more and can still be looked at.
    """
    return next(filter(None, map(_whole, reversed(_folders(artifact)))), None)


def final(artifact: Location) -> CheckpointRef | None:
    """The newest of the checkpoints that end the training: of two runs with one time budget each has its own."""
    ended = [folder for folder, said in _manifests(_folders(artifact)).items() if said.done]
    return next(filter(None, map(_whole, reversed(ended))), None)


def _whole(folder: Location) -> CheckpointRef | None:
    """A checkpoint, unless it is damaged, or another run of the same fingerprint is just writing or has pruned it."""
    if not (folder / _MANIFEST).is_file():  # asked first: one that is written meanwhile is not damaged
        return None
    try:
        return verified(folder)
    except UserError as error:
        if (folder / _MANIFEST).exists():
            (folder / _DAMAGED).write_text(json.dumps({"damaged": str(error)}))
            (folder / _MANIFEST).delete()
        return None


def reference(folder: Location) -> CheckpointRef:
    """A checkpoint's folder -> its reference. Raises UserError when it is none."""
    said = _manifest(folder)
    return CheckpointRef(folder, said.digest, said.step)


def _bytes(file: Location, record: FileRecord) -> bytes:
    """A file of a checkpoint. Raises UserError when it is not as it was written."""
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise _not_whole(file)
    return data


def verified(folder: Location) -> CheckpointRef:
    """A checkpoint's folder -> its reference. Raises UserError naming the file that is missing or not as written.

    A disk or an S3 that fails to answer is no damage: its OSError is left as it is.
    """
    said = _manifest(folder)
    for name, record in said.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != record.sha256:
            raise _not_whole(folder / name)
    return CheckpointRef(folder, said.digest, said.step)


def _manifest(folder: Location) -> CheckpointManifest:
    try:
        return CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise _not_whole(folder / _MANIFEST) from error


def _not_whole(file: Location) -> UserError:
    return UserError(
        f"{file}: is missing or damaged; use another checkpoint, or bring this one about again with --force pretrain"
    )


def best(artifact: Location) -> CheckpointRef | None:
    """The checkpoint with the lowest held-out loss of the last phase that has one, of those that are whole."""
    return next(filter(None, map(_whole, _by_merit(_manifests(_folders(artifact))))), None)


def prune(artifact: Location, keep: int) -> None:
    """Delete all checkpoints but the `keep` of the highest steps, the best and those that end a training, and what was
    half-written before them. Raises OSError when the disk or S3 does."""
    folders = _folders(artifact)
    manifests = _manifests(folders)
    newest_ones = list(manifests)[-keep:]
    kept = {*newest_ones, *_by_merit(manifests)[:1], *(folder for folder, said in manifests.items() if said.done)}
    gone = set[Location]()
    for folder in folders:
        if folder in kept or not newest_ones or (folder / _DAMAGED).is_file():
            continue
        if _order(folder) < _order(newest_ones[0]):
            (folder / _MANIFEST).delete()
            folder.delete()
            gone.add(folder)
    if gone:
        _remember([folder for folder in folders if folder not in gone], artifact)


def _by_merit(manifests: Mapping[Location, CheckpointManifest]) -> list[Location]:
    """The folders of checkpoints that were evaluated, the best first; of equals the newer."""
    newest_first = reversed(list(manifests.items()))
    found = [(-said.heldout.phase, said.heldout.loss, folder) for folder, said in newest_first if said.heldout]
    return [folder for *_, folder in sorted(found, key=lambda one: one[:2])]


def _manifests(folders: Sequence[Location]) -> dict[Location, CheckpointManifest]:
    """Those of finished checkpoints whose files are there and as long as they promise."""

    def said(folder: Location) -> CheckpointManifest | None:
        with suppress(UserError):  # half-written, just pruned by another run, or damaged
            manifest = _manifest(folder)
            if all(matches_record(folder / name, record) for name, record in manifest.files.items()):
                return manifest
        return None

    found = zip(folders, map_in_threads(said, folders), strict=True)
    return {folder: manifest for folder, manifest in found if manifest}


def _folders(artifact: Location) -> list[Location]:
    """The folders of checkpoints by step, also of those half-written: what a listing and known.json name."""
    root = artifact / FOLDER
    names = {folder.name for folder in root.folders()}
    with suppress(FileNotFoundError, ValueError):  # none yet, or damaged: the listing is left
        names |= set(json.loads((root / _KNOWN).read_bytes()))
    return sorted((root / name for name in names if _NAME.fullmatch(name)), key=_order)


def _remember(folders: Iterable[Location], artifact: Location) -> None:
    names = sorted({folder.name for folder in folders})
    (artifact / FOLDER / _KNOWN).write_text(json.dumps(names))


def _order(folder: Location) -> tuple[int, str]:
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
