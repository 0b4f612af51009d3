"""Artifacts: where a stage's output is stored, what its manifest contains, and reading it; output.py writes it.

A stage's output is the folder <root>/<stage>/<fingerprint>/. The fingerprint covers the stage's VERSION, its
configuration without the fields marked `Compute`, and the fingerprints of its inputs. Parts (such as shards) are
committed one by one, each with a record under parts/. manifest.json is written last and makes the artifact finished.
Of several runs of one fingerprint one writes at a time: see leases.py.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from pyarrow.fs import FileType
from pydantic import ValidationError

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads


class FileRecord(Config):
    """The digest and size of one of an artifact's files."""

    sha256: str
    bytes: int


class Part(Config):
    """The record of a finished part of an artifact: its files, and counts that are summed over the parts."""

    name: str
    files: dict[str, FileRecord]
    counts: dict[str, int]
    drops: dict[str, int]
    facts: dict[str, Any]


class Manifest(Config):
    """The content and the origin of a finished artifact."""

    stage: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    drops: dict[str, int]
    files: dict[str, FileRecord]
    facts: dict[str, Any]
    seconds: float
    cpu_seconds: float | None = None  # of the last attempt in all processes; None where the stage's items report none
    finished: str
    versions: dict[str, str]
    git_commit: str


class Fact(Config, extra="ignore", strict=False, allow_inf_nan=True):
    """A value inside a stage's facts. Reading it is lenient: fields that a later version adds are ignored,
    fields that an earlier version lacks have defaults, and a list may be read as a tuple.
    """

    @property
    def plain(self) -> dict[str, Any]:
        """Returns the fields that were set, as plain JSON."""
        return self.model_dump(mode="json", exclude_unset=True)


class Facts(Fact):
    """The `facts` of a manifest: what a stage reports in addition to counts and files. Each stage has its own subclass.

    A manifest has the fields that the stage has set, in the order of the class.
    """

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Returns a manifest's facts as this model, ignoring fields that it lacks: all defaults for another stage.

        Raises UserError when a fact has the wrong type.
        """
        try:
            return cls.model_validate(manifest.facts)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, ("facts", *first["loc"])))
            raise UserError(
                f"{manifest.stage}/{manifest.fingerprint}/manifest.json: {where}: {first['msg']}; "
                "is damaged: delete that folder and run again"
            ) from error


def fingerprint(stage: str, version: int, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Returns 16 hex digits that name a stage's output: a hash of its identity and inputs, equal on all machines."""
    covered = {"stage": stage, "version": version, "config": identity, "inputs": inputs}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A stage's output folder, finished or not."""

    location: Location
    stage: str
    fingerprint: str

    @cached_property
    def manifest(self) -> Manifest:
        """Raises UserError when the artifact is not finished, and DamagedFile."""
        manifest = read_manifest(self.location)
        if manifest is None:
            raise UserError(f"{self.location}: is not finished; run the stage {self.stage} first")
        return manifest

    def files(self, prefix: str = "") -> list[Location]:
        """Returns the manifest's files whose relative path starts with `prefix`, sorted."""
        return [self.location / name for name in sorted(self.manifest.files) if name.startswith(prefix)]


def read_manifest(location: Location) -> Manifest | None:
    """Returns the manifest in an artifact's folder, or None if there is none. Raises DamagedFile."""
    file = location / "manifest.json"
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise DamagedFile(f"{file}: is damaged; delete it and run again: finished parts are kept") from error


def damage(file: Location, problem: str) -> DamagedFile:
    """Returns the error for a file of an artifact that cannot be read; `problem` is the reader's message.

    The file's content is compared with the size and the digest that its stage has recorded. Only a file that differs
    has to be created again.
    """
    folder, record = _recorded(file)
    if record is None:
        return DamagedFile(f"{file}: cannot be read ({problem}); delete it and run again: other files are kept")
    data = file.read_bytes()
    if len(data) == record.bytes and hashlib.sha256(data).hexdigest() == record.sha256:
        return DamagedFile(
            f"{file}: is whole (its SHA-256 is the recorded one), but its bytes did not arrive as stored ({problem}); "
            "run again: what is finished is kept"
        )
    differs = "its SHA-256" if len(data) == record.bytes else f"its length of {len(data)} bytes"
    return DamagedFile(
        f"{file}: is damaged: {differs} differs from {folder / 'manifest.json'}; delete it and run "
        "again: other files are kept"
    )


def _recorded(file: Location) -> tuple[Location, FileRecord | None]:
    """A file of a finished artifact -> the artifact's folder, and the file's record, if there is one."""
    folder, _, name = file.uri.rpartition("/")
    while folder.count("/") > 2 or (folder and "://" not in folder):
        with suppress(UserError):
            if manifest := read_manifest(Location(folder)):
                return Location(folder), manifest.files.get(name)
        folder, _, last = folder.rpartition("/")
        name = f"{last}/{name}"
    return file, None


def missing_files(location: Location, manifest: Manifest) -> list[str]:
    """Returns the manifest's files that are missing or have another size.

    One listing confirms most files. Files that it omits, or lists with another size, are checked one by one.
    """
    listed = location.sizes()
    doubtful = [name for name, file in manifest.files.items() if listed.get(name) != file.bytes]
    matches = map_in_threads(lambda name: matches_record(location / name, manifest.files[name]), doubtful)
    return [name for name, match in zip(doubtful, matches, strict=True) if not match]


def matches_record(file: Location, record: FileRecord) -> bool:
    """Returns whether a file exists with its recorded size. Asks for it by name: a listing may lag or omit files."""
    info = file.info()
    return info.type == FileType.File and info.size == record.bytes
