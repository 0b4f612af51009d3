"""weights, moments and a state <-> a verified folder; any ZeRO stage and number of workers can read it.

A checkpoint is the folder checkpoints/step-000100-1f0c9a2b/ of an artifact: safetensors files keyed by the names of the
parameters, config.json (what is needed to build the model), state.json (where training stands) and, written last,
manifest.json with the SHA-256 of each. No manifest, no checkpoint. The end of its name comes from those digests, so two
runs that write the same step at once write either the same bytes or two folders.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from pipeline.artifacts import FileRecord
from pipeline.config import Config, UserError
from pipeline.storage import Location
from training.model import BertConfig

Tensors = dict[str, dict[str, Tensor]]  # a kind -> name of a parameter -> fp32, on the CPU
Item = TypeVar("Item")
Exchange = Callable[[Any], list[Any]]  # a worker's value -> those of all workers, in every one of them

KINDS = ("model", "exp_avg", "exp_avg_sq")
FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)-[0-9a-f]{8}")
_MANIFEST, _DAMAGED = "manifest.json", "damaged.json"
_NAMED_BY = ("config.json", "model.safetensors")  # the files whose bytes make the digest
_BLOCK = 1 << 20


class SavedConfig(Config):
    """config.json: what is needed to build the model."""

    model: BertConfig
    vocab_size: int
    nsp: bool = True  # whether there are a head for pairs and the pooler beneath it


class Heldout(Config):
    """How good a checkpoint is; losses of one phase alone compare, as each has its own held-out examples."""

    phase: int
    loss: float


class CheckpointManifest(Config):
    """manifest.json: what a checkpoint promises."""

    step: int
    digest: str
    files: dict[str, FileRecord]
    heldout: Heldout | None = None  # where it was evaluated at this step


@dataclass(frozen=True)
class CheckpointRef:
    """A checkpoint by its digest, which covers weights and configuration: what fine-tuning hangs on."""

    location: Location
    digest: str
    step: int

    def config(self) -> SavedConfig:
        return SavedConfig.model_validate_json((self.location / "config.json").read_bytes())

    def state(self) -> dict[str, Any]:
        return json.loads((self.location / "state.json").read_bytes())

    def manifest(self) -> CheckpointManifest:
        return CheckpointManifest.model_validate_json((self.location / _MANIFEST).read_bytes())

    def weights(self) -> dict[str, Tensor]:
        """Name of a parameter -> fp32."""
        return _read_tensors(self.location / "model.safetensors")

    def tensors(self) -> Tensors:
        """Weights and moments."""
        names = [file.name for file in self.location.files() if file.suffix == ".safetensors"]
        return {name.removesuffix(".safetensors"): _read_tensors(self.location / name) for name in names}


def alone(value: Any) -> list[Any]:
    """Every worker's value, where there is one worker."""
    return [value]


def save(
    artifact: Location,
    step: int,
    tensors: Tensors,
    config: SavedConfig | None,
    state: Mapping[str, Any] | None,
    heldout: Heldout | None = None,
    exchange: Exchange = alone,
) -> CheckpointRef:
    """Write a checkpoint under the artifact's folder; it is one once its manifest, the last file, is there.

    Each of several workers writes the tensors that it gives; `config` and `state` are worker 0's, which writes the
    manifest. All have to call it together. Raises OSError in every worker when the disk or S3 fails one of them, but
    for the manifest's, which worker 0 alone sees.
    """
    from safetensors.torch import save as serialize

    files = dict[str, bytes]()

    def made() -> dict[str, FileRecord]:
        files.update({f"{kind}.safetensors": serialize(named) for kind, named in tensors.items()})
        if config and state is not None:
            files["config.json"] = config.model_dump_json(indent=1).encode()
            files["state.json"] = json.dumps(state).encode()
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        return {name: FileRecord(sha256=digests[name], bytes=len(data)) for name, data in files.items()}

    records = dict(sorted((name, record) for part in together(exchange, made) for name, record in part.items()))
    manifest = CheckpointManifest(step=step, digest=_digest(records, _NAMED_BY), files=records, heldout=heldout)
    folder = artifact / FOLDER / f"step-{step:06d}-{_digest(records, list(records))[:8]}"
    _write(folder, files, manifest if config else None, exchange)
    return CheckpointRef(folder, manifest.digest, step)


def _write(
    folder: Location, files: Mapping[str, bytes], manifest: CheckpointManifest | None, exchange: Exchange
) -> None:
    """This worker's files and, where it has it and all of them are there, the manifest. Raises OSError."""
    new = False

    def written() -> None:
        nonlocal new
        if manifest:  # one that is there is whole: an attempt before this failed at what comes after
            new = not (folder / _MANIFEST).exists()
        for name, data in files.items() if new or not manifest else ():
            (folder / name).write_bytes(data)

    try:
        together(exchange, written)
        if manifest and new:
            (folder / _MANIFEST).write_text(manifest.model_dump_json(indent=1))
    except OSError:
        if new:
            with suppress(OSError):  # a full disk wants the room back
                (folder / _MANIFEST).delete()
                folder.delete()
        raise


def together(exchange: Exchange, work: Callable[[], Item]) -> list[Item]:
    """What each worker's work returns, in all of them. Where one's has failed all raise: it its own error, the others
    an OSError that says as much, or a RuntimeError where no new attempt would mend it."""
    mine, error = None, None
    try:
        mine = work()
    except Exception as found:  # whatever it is, the others wait
        error = found
    answers = exchange((mine, error and (str(error), isinstance(error, OSError))))
    if error:
        raise error
    for _, failure in answers:
        if failure:
            text, mends = failure
            raise OSError(text) if mends else RuntimeError(text)
    return [value for value, _ in answers]


def newest(artifact: Location) -> CheckpointRef | None:
    """The checkpoint of the highest step whose bytes are those of its manifest.

    A damaged one is set aside on the way: its manifest becomes damaged.json with what is wrong, so that it counts no
    more and can still be looked at.
    """
    for folder in reversed(_folders(artifact)):
        try:
            return verified(folder)
        except UserError as error:
            if not (folder / _MANIFEST).exists():  # another run of the same fingerprint has just pruned it
                continue
            (folder / _DAMAGED).write_text(json.dumps({"damaged": str(error)}))
            (folder / _MANIFEST).delete()
    return None


def verified(folder: Location) -> CheckpointRef:
    """A checkpoint's folder -> its reference. Raises UserError naming the file that is missing or not as written.

    A disk or an S3 that fails to answer is no damage: its OSError is left as it is.
    """
    try:
        manifest = CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise UserError(f"{folder / _MANIFEST}: is missing or damaged; use another checkpoint") from error
    for name, record in manifest.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != record.sha256:
            raise UserError(f"{folder / name}: is missing or damaged; use another checkpoint")
    return CheckpointRef(folder, manifest.digest, manifest.step)


def best(artifact: Location) -> CheckpointRef | None:
    """The checkpoint with the lowest held-out loss of the last phase that has one, of those whose bytes are whole."""
    for folder in _by_merit(artifact):
        with suppress(UserError):  # damaged: `newest` sets it aside, should it come to that
            return verified(folder)
    return None


def prune(artifact: Location, keep: int) -> None:
    """Delete all checkpoints but the `keep` of the highest steps and the best, and what was half-written before them.

    Raises OSError when the disk or S3 does.
    """
    newest_ones, best_one = _folders(artifact)[-keep:], _by_merit(artifact)[:1]
    for folder in _folders(artifact, finished=False):
        if folder in [*newest_ones, *best_one] or (folder / _DAMAGED).exists():
            continue
        if newest_ones and _order(folder) < _order(newest_ones[0]):
            (folder / _MANIFEST).delete()
            folder.delete()


def _by_merit(artifact: Location) -> list[Location]:
    """The folders of checkpoints that were evaluated, the best first; of equals the newer."""
    found: list[tuple[int, float, Location]] = []
    for folder in reversed(_folders(artifact)):
        with suppress(FileNotFoundError, ValidationError):  # just pruned by another run, or damaged
            heldout = CheckpointManifest.model_validate_json((folder / _MANIFEST).read_bytes()).heldout
            if heldout:
                found.append((-heldout.phase, heldout.loss, folder))
    return [folder for *_, folder in sorted(found, key=lambda one: one[:2])]


def _folders(artifact: Location, finished: bool = True) -> list[Location]:
    """The checkpoints' folders by step; also those without a manifest if not `finished`."""
    root = artifact / FOLDER
    files = [file.uri.removeprefix(f"{root.uri}/").split("/") for file in root.files()]
    names = {path[0] for path in files if _NAME.fullmatch(path[0]) and (not finished or path[-1] == _MANIFEST)}
    return sorted((root / name for name in names), key=_order)


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


def _read_tensors(file: Location) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(file.read_bytes())
