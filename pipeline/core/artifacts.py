"""Artifacts: where a stage's output is stored, what its manifest contains, and which parts of it are finished.

A stage's output is the folder <root>/<stage>/<fingerprint>/. The fingerprint covers the stage's VERSION, its
configuration without the fields marked `Compute`, and the fingerprints of its inputs. Parts (such as shards) are
committed one by one, each with a record under parts/. manifest.json is written last and makes the artifact finished.
Of several runs of one fingerprint one writes at a time: see leases.py.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

from pyarrow.fs import FileType
from pydantic import ValidationError

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.cpu_time import StageClock
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.lease_files import WorkDone, is_lease_file
from cloze.pipeline.core.leases import Lease
from cloze.pipeline.core.software_versions import git_commit, package_versions
from cloze.pipeline.core.storage import FILES_PER_REQUEST, Location
from cloze.pipeline.core.threads import map_in_threads, prefetch, run_periodically

_MAX_LISTINGS = 5
_PARTS_READ_AHEAD = 64

ProgressReporter = Callable[[float, float, str, str], None]  # done, total, unit, note


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


def progress_period(location: Location, listed: int) -> float:
    """Returns the seconds between two listings of `listed` files: the requests per hour do not grow with the files."""
    return (2.0 if location.is_s3 else 0.5) * max(1, -(-listed // FILES_PER_REQUEST))


@dataclass
class Output:
    """The artifact that a stage writes. Workers have a copy of it; only the driver's reports progress."""

    location: Location
    stage: str
    version: int
    fingerprint: str
    reporter: ProgressReporter | None = None
    lease: Lease | None = None  # None in a run without a planner, and where the store has no conditional writes
    started: float = field(default_factory=time.monotonic)
    cpu: StageClock = field(default_factory=StageClock, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reporter": None}

    @property
    def root(self) -> Location:
        """The folder of all artifacts: this one is <root>/<stage>/<fingerprint>/."""
        return Location(self.location.uri.rsplit("/", 2)[0])

    def check_lease(self) -> None:
        """Raises LeaseLost if another run has taken over. Called directly before each write and deletion."""
        if self.lease:
            self.lease.check()

    def clear(self) -> None:
        """Delete everything except the lease; first the manifest, so that no half-deleted folder looks finished.

        The files that the manifest names are deleted by name: a listing may omit them. The part that a missing file
        belongs to is not finished.
        """

        def delete(name: str) -> None:
            self.check_lease()
            (self.location / name).delete()

        files: list[str] = []
        with suppress(DamagedFile):
            if manifest := read_manifest(self.location):
                files = list(manifest.files)
        delete("manifest.json")
        map_in_threads(delete, files)
        for _ in range(_MAX_LISTINGS):  # one may omit a file
            names = {path.partition("/")[0] for path in self.location.sizes()}
            if not (names := {name for name in names if not is_lease_file(name)}):
                return
            for name in names:
                delete(name)

    def finished_part(self, name: str, listed: Mapping[str, int] | None = None) -> Part | None:
        """Returns the record of a part, or None unless it can be read and all its files exist with their size.

        `listed` is a listing of the artifact, path -> size. Files that it does not confirm are checked by their names.
        """
        try:
            part = Part.model_validate_json((self.location / f"parts/{name}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        doubtful = {path: file for path, file in part.files.items() if (listed or {}).get(path) != file.bytes}
        return part if all(matches_record(self.location / path, file) for path, file in doubtful.items()) else None

    def finished_parts(self, names: Sequence[str]) -> dict[str, Part]:
        """Returns those of the named parts that are finished.

        Their records are read by name, as a listing may omit some; one listing confirms most of their files. A stage
        may skip these parts, but only finishes with those that `require_parts` returns.
        """
        return {part.name: part for part in self._finished(names)}

    def finished_names(self, names: Sequence[str]) -> set[str]:
        """Returns the names of `finished_parts`, whose records are not kept."""
        return {part.name for part in self._finished(names)}

    def _finished(self, names: Sequence[str]) -> Iterator[Part]:
        listed = self.location.sizes() if len(names) > 1 else {}
        found = prefetch(lambda name: self.finished_part(name, listed), names, _PARTS_READ_AHEAD)
        return (part for part in found if part)

    def write_file(self, path: str, data: bytes) -> FileRecord:
        """Write a file of a part that is committed later, atomically. Raises LeaseLost."""
        (self.location / path).write_bytes(data, self.check_lease)
        return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
        written: Mapping[str, FileRecord] | None = None,
    ) -> Part:
        """Write the part's files (relative path -> bytes), then its record; each write is atomic.

        `written` are files of the part that have been written before. Raises LeaseLost.
        """
        records = dict(written or {})
        records |= {path: self.write_file(path, data) for path, data in files.items()}
        part = Part(
            name=name, files=records, counts=dict(counts or {}), drops=dict(drops or {}), facts=dict(facts or {})
        )
        self._write_record(f"parts/{name}.json", part.model_dump_json())
        return part

    def _write_record(self, path: str, text: str) -> None:
        file, data = self.location / path, text.encode("utf-8")
        if self.lease:
            self.lease.write_record(file, data)
        else:
            file.write_bytes(data)

    def report_progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        if self.lease:
            self.lease.progress = WorkDone(done=done, total=total, unit=unit, note=note)
        if self.reporter:
            self.reporter(done, total, unit, note)

    @contextmanager
    def reporting_progress(
        self, done: Callable[[], float], total: float, unit: str, note: str = "", listed: int = 0
    ) -> Iterator[None]:
        """Report `done()` of `total` when the block begins, periodically while it runs, and when it ends.

        `listed` is the number of files that a call of `done` lists.
        """

        def report() -> bool:
            self.report_progress(min(done(), total), total, unit, note)
            return True

        report()
        with run_periodically(report, progress_period(self.location, listed)):
            yield
        report()

    def reporting_parts(self, total: int, unit: str) -> AbstractContextManager[None]:
        """While inside the block, report the number of committed parts, of all workers, as progress."""
        records = self.location / "parts"
        return self.reporting_progress(lambda: len(records.files()), total, unit, listed=total)

    def require_parts(self, names: Sequence[str]) -> list[Part]:
        """Returns the parts with these names, sorted by name. Raises UserError when one is not finished.

        Every file is looked up by its name: an outdated listing may contain one that was deleted.
        """
        return list(self.read_parts(names))

    def read_parts(self, names: Sequence[str]) -> Iterator[Part]:
        """Yields what `require_parts` returns, as the parts are read. Raises UserError at the end."""
        names, missing = sorted(names), list[str]()
        for name, part in zip(names, prefetch(self.finished_part, names, _PARTS_READ_AHEAD), strict=True):
            if part:
                yield part
            else:
                missing.append(name)
        if missing:
            raise UserError(
                f"{self.location}/parts/{missing[0]}.json: this part or one of its files is missing "
                f"({len(missing)} of {len(names)} parts); run again: finished parts are kept"
            )

    def finish(
        self,
        parts: Sequence[Part],
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Facts | Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest, which makes the artifact finished. Raises LeaseLost.

        `parts` are all parts, as `require_parts` returns them; their counts and drops are added to `counts` and
        `drops`.
        """
        all_counts, all_drops = Counter(counts or {}), Counter(drops or {})
        for part in parts:
            all_counts.update(part.counts)
            all_drops.update(part.drops)
        manifest = Manifest(
            stage=self.stage,
            version=self.version,
            fingerprint=self.fingerprint,
            config=dict(config),
            inputs=dict(inputs),
            counts=dict(sorted(all_counts.items())),
            drops=dict(sorted(all_drops.items())),
            files={path: file for part in parts for path, file in sorted(part.files.items())},
            facts=facts.plain if isinstance(facts, Facts) else dict(facts or {}),
            seconds=round(time.monotonic() - self.started, 3),
            cpu_seconds=self.cpu.seconds(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=package_versions(),
            git_commit=git_commit(),
        )
        self._write_record("manifest.json", manifest.model_dump_json(indent=1))
        self.location.delete_stale_writes()
        return manifest
