"""Where a stage's output lives, what its manifest says, and what of it is there already.

A stage's output is the folder <root>/<stage>/<fingerprint>/. The fingerprint covers the stage's VERSION, its
configuration without what is marked `Compute`, and its inputs' fingerprints. Parts (shards, checkpoints' records)
are committed one by one, each with a record under parts/; manifest.json is written last. No manifest, no artifact.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from pyarrow.fs import FileType
from pydantic import ValidationError

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

Reporter = Callable[[float, float, str, str], None]  # done, total, unit, note
Item = TypeVar("Item")
Result = TypeVar("Result")

_PACKAGES = ("apache-beam", "deepspeed", "numpy", "pyarrow", "ray", "tokenizers", "torch")
_BLOCK = 1 << 20
_REQUESTS = 32  # at once, for records and what they promise


class FileRecord(Config):
    """What a manifest promises of one file."""

    sha256: str
    bytes: int


class Part(Config):
    """The record of a finished piece of an artifact: its files, and counts that add up over the parts."""

    name: str
    files: dict[str, FileRecord]
    counts: dict[str, int]
    drops: dict[str, int]
    facts: dict[str, Any]


class Manifest(Config):
    """What an artifact holds and where it comes from."""

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
    finished: str
    versions: dict[str, str]
    git_commit: str


class Fact(Config, extra="ignore", strict=False, allow_inf_nan=True):
    """A value inside a stage's facts. What a later version adds is passed over, what an earlier one lacks has a
    default; a list is a tuple where the model has one.
    """

    @property
    def plain(self) -> dict[str, Any]:
        """What was set of it, as JSON has it."""
        return self.model_dump(mode="json", exclude_unset=True)


class Facts(Fact):
    """What a stage's manifest tells beside counts and files: a model for each stage that tells any.

    The fields stand in the order in which the manifest has them, where there are only those that the stage has set.
    """

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """What a manifest tells as far as this model knows it: of another stage's manifest, the defaults.

        Raises UserError for facts of another shape.
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


@dataclass(frozen=True)
class SourceFile:
    """A file that a user brought. Its path is no part of any fingerprint: its bytes are, and what its suffix says."""

    uri: str
    sha256: str
    bytes: int

    @property
    def location(self) -> Location:
        return Location(self.uri)

    @property
    def identity(self) -> str:
        name = self.location.name.lower()
        inner = Path(name.removesuffix(".gz")).suffix if name.endswith(".gz") else ""
        return self.sha256 + inner + self.location.suffix


def fingerprint(stage: str, version: int, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """16 hex digits that name a stage's output: equal for equal identity and inputs, whatever the machine."""
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
        """Raises UserError when the artifact is not finished or its manifest is damaged."""
        manifest = read_manifest(self.location)
        if manifest is None:
            raise UserError(f"{self.location}: is not finished; run the stage {self.stage} first")
        return manifest

    def files(self, prefix: str = "") -> list[Location]:
        """The manifest's files whose relative path starts with `prefix`, sorted."""
        return [self.location / name for name in sorted(self.manifest.files) if name.startswith(prefix)]


def read_manifest(location: Location) -> Manifest | None:
    """The manifest of an artifact's folder, None where it is not finished; UserError where it is damaged."""
    file = location / "manifest.json"
    if not file.exists():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file}: is damaged; delete that folder and run again") from error


def lost(location: Location, manifest: Manifest) -> list[str]:
    """The files that the manifest promises and that are not there, or not whole.

    A listing says that most are there; what it leaves out, or has with another size, is asked for by its name.
    """
    listed = location.sizes()
    doubtful = [name for name, file in manifest.files.items() if listed.get(name) != file.bytes]
    there = in_parallel(lambda name: is_whole(location / name, manifest.files[name]), doubtful)
    return [name for name, whole in zip(doubtful, there, strict=True) if not whole]


def is_whole(file: Location, record: FileRecord) -> bool:
    """Whether a file is there, as long as its record says; asked for by its name, as a listing may lag or omit."""
    info = file.info()
    return info.type == FileType.File and info.size == record.bytes


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """function(item) of every item, in their order; many at once, as each waits for a disk or for S3."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(_REQUESTS, len(items))) as threads:
        return list(threads.map(function, items))


@dataclass
class Output:
    """What a stage writes to. Workers get a copy; only the driver's shows progress."""

    location: Location
    stage: str
    version: int
    fingerprint: str
    reporter: Reporter | None = None
    started: float = field(default_factory=time.monotonic)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reporter": None}

    @property
    def root(self) -> Location:
        """Where the artifacts of every stage lie: this one is <root>/<stage>/<fingerprint>/."""
        return Location(self.location.uri.rsplit("/", 2)[0])

    def part(self, name: str) -> Part | None:
        """The record of a part finished before, if it can be read and its files are still there in full."""
        try:
            part = Part.model_validate_json((self.location / f"parts/{name}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return part if all(is_whole(self.location / path, file) for path, file in part.files.items()) else None

    def parts(self, names: Sequence[str]) -> dict[str, Part]:
        """Those of the parts with these names that are finished. No listing is asked: each is read by its name."""
        found = in_parallel(self.part, names)
        return {name: part for name, part in zip(names, found, strict=True) if part}

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
        written: Mapping[str, FileRecord] | None = None,
    ) -> Part:
        """Write the part's files (relative path -> bytes), then its record; each appears whole or not at all.

        `written` are files of the part that lie there already.
        """
        records = dict(written or {})
        for path, data in files.items():
            (self.location / path).write_bytes(data)
            records[path] = FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        part = Part(
            name=name, files=records, counts=dict(counts or {}), drops=dict(drops or {}), facts=dict(facts or {})
        )
        (self.location / f"parts/{name}.json").write_text(part.model_dump_json())
        return part

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Show how far the stage is."""
        if self.reporter:
            self.reporter(done, total, unit, note)

    @contextmanager
    def telling(self, done: Callable[[], float], total: float, unit: str, note: str = "") -> Iterator[None]:
        """While inside, show again and again how much of the total is `done`, and once before and behind it."""

        def look() -> bool:
            self.progress(min(done(), total), total, unit, note)
            return True

        look()
        with repeated(look, 2.0 if self.location.is_s3 else 0.5):
            yield
        look()

    def watch(self, total: int, unit: str) -> AbstractContextManager[None]:
        """While inside, show as progress how many parts are committed, wherever the workers are."""
        records = self.location / "parts"
        return self.telling(lambda: len(records.files()), total, unit)

    def planned(self, names: Sequence[str]) -> list[Part]:
        """Every part that was planned, by name. Raises UserError when one is not there, rather than go without it."""
        found = self.parts(sorted(names))
        if missing := sorted(set(names) - found.keys()):
            raise UserError(
                f"{self.location}/parts/{missing[0]}.json: this part was planned and is not there, or a file of it is "
                f"not whole ({len(missing)} of {len(names)} parts); run again: what is finished is kept"
            )
        return list(found.values())

    def finish(
        self,
        parts: Sequence[Part],
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Facts | Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Add the parts' files, counts and drops to what is given and write the manifest: the artifact is there.

        `parts` are all of them, as `planned` gives them by their names.
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
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            git_commit=git_commit(),
        )
        (self.location / "manifest.json").write_text(manifest.model_dump_json(indent=1))
        self.location.sweep()
        return manifest


@contextmanager
def repeated(look: Callable[[], bool], seconds: float) -> Iterator[None]:
    """While inside, call `look` so often in a thread, until it gives False.

    Where a disk or S3 fails to answer it, it is called again the next time: what is done meanwhile goes on.
    """
    stop = threading.Event()

    def keep_looking() -> None:
        going = True
        while going and not stop.wait(seconds):
            with suppress(OSError):
                going = look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def source_file(location: Location, cache_folder: Location) -> SourceFile:
    """A user's file with the SHA-256 of its bytes, remembered by (URI, size, mtime or ETag) under `cache_folder`.

    Its digest names another record there, for `source_by_digest`.
    """
    info = location.info()
    stamp = location.etag() if location.is_s3 else str(info.mtime_ns)
    key = hashlib.sha256(f"{location.fs.type_name} {location.path} {info.size} {stamp}".encode()).hexdigest()[:32]
    cached = cache_folder / f"{key}.json"
    if known := _source_record(cached):
        return SourceFile(location.uri, known.sha256, int(info.size))
    digest = hashlib.sha256()
    with location.open() as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    record = json.dumps({"uri": location.uri, "sha256": digest.hexdigest(), "bytes": info.size})
    (cache_folder / f"{digest.hexdigest()}.json").write_text(record)
    cached.write_text(record)
    return SourceFile(location.uri, digest.hexdigest(), int(info.size))


def source_by_digest(cache_folder: Location, sha256: str) -> SourceFile | None:
    """What was last remembered of a file of these bytes; None where nobody has, as in a folder of earlier versions."""
    return _source_record(cache_folder / f"{sha256}.json")


def source_records(cache_folder: Location) -> list[SourceFile]:
    """All that is remembered there."""
    return [found for record in cache_folder.files() if (found := _source_record(record))]


def _source_record(record: Location) -> SourceFile | None:
    """None where there is no such record, or a damaged one: it can be made again."""
    if not record.exists():
        return None
    try:
        said = json.loads(record.read_bytes())
        return SourceFile(said["uri"], said["sha256"], said["bytes"])
    except (ValueError, KeyError, TypeError):
        return None


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that make the bytes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str:
    """The commit of the code that runs, "+changes" behind it when the tree has any; empty where nobody knows.

    CLOZE_GIT_COMMIT says it where the code was sent without its repository.
    """
    if sent := os.environ.get("CLOZE_GIT_COMMIT"):
        return sent
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
