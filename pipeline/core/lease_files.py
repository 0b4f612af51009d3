"""The record of who works on an artifact: lease.json on S3, lease-<attempt>.json in a folder on a disk.

On S3 it is one object. Every change, also a heartbeat, replaces the version that was read (If-Match).

A disk has no such request. There the owner is who created the file with the highest number. Each is created once, by a
hard link, so that exactly one of several attempts takes over. Its owner never creates it again: a heartbeat only
changes its time, which fails once the next owner has deleted it. After a release the numbers begin again, so a file is
its owner's only if it has the owner's token. Clocks are not compared, only changes are noticed.
"""

import os
import re
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from cloze.pipeline.core import conditional_writes
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import TemporaryStorageError
from cloze.pipeline.core.processes import Process
from cloze.pipeline.core.retries import not_repeated
from cloze.pipeline.core.storage import Location

_FILE = re.compile(r"lease-(\d+)\.json")
_PROGRESS = "lease-progress.json"
_LISTED_SECONDS = 0.05  # after which a file is asked for again that a folder lists: on NFS for up to a minute too long
_SETTLE_SECONDS = 0.2  # a store that compares and writes in two steps may let two claims succeed: the later one is kept


class WorkDone(Config, strict=False):
    """The progress of the owner, for others to show."""

    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    note: str = ""


class Owner(Config):
    """The run that works on an artifact."""

    token: str = ""
    """Names the owner: every attempt has another."""
    attempt: int = 0
    """One more than that of the owner before, if this one took over."""
    process: Process = Process()
    since: str = "an unknown time"
    """When it began, by its own clock, for people to read."""
    heartbeat: int = 0
    """Rises with every heartbeat (on S3)."""
    progress: WorkDone = WorkDone()

    def __str__(self) -> str:
        done = self.progress
        work = f", {done.done:,.0f} of {done.total:,.0f} {done.unit} done" if done.total else ""
        return f"{self.process} (since {self.since}{work})"


class Held(NamedTuple):
    """What is recorded: the owner, and a version that changes with every heartbeat."""

    owner: Owner
    version: str


class S3LeaseFile:
    """The lease of an artifact on S3."""

    def __init__(self, artifact: Location):
        self._file, self._etag = artifact / "lease.json", ""  # of the version that this process wrote

    def read(self) -> Held | None:
        current = conditional_writes.read(self._file)
        return current and Held(_owner(current.data), current.etag)

    def claim(self, owner: Owner, over: Held | None) -> bool:
        """Become the owner, if there still is none, or `over`. Raises Unsupported.

        A takeover is one request: a later one would compete with the next heartbeat of an owner that had no answers
        either. If it has no answer, it has failed unless it took effect.
        """
        try:
            with not_repeated() if over else nullcontext():
                if conditional_writes.put(self._file, _json(owner), over and over.version) is None:
                    return False
        except TemporaryStorageError:
            if over is None:
                raise
            self.await_writes()
        try:
            time.sleep(_SETTLE_SECONDS)
            return self._is_own(owner)
        except BaseException:
            with suppress(OSError):
                self.release(owner)
            raise

    def await_writes(self) -> None:
        """Return when S3 answers a write. Raises StorageError."""
        conditional_writes.refuses_to_replace_nothing(self._file, b"")

    def check_support(self, owner: Owner) -> None:
        """Raises Unsupported if the store ignores the conditions of the requests, with which `owner` was written."""
        if not conditional_writes.honours_conditions(self._file, _json(owner)):
            raise conditional_writes.Unsupported(f"{self._file}: conditions are ignored")

    def renew(self, owner: Owner) -> bool:
        """Record a heartbeat and the progress. Returns False if another has become the owner."""
        etag = conditional_writes.put(self._file, _json(owner), self._etag)
        if etag is None and self._is_own(owner):  # an earlier heartbeat took effect without an answer
            etag = conditional_writes.put(self._file, _json(owner), self._etag)
        self._etag = etag or self._etag
        return etag is not None

    def release(self, owner: Owner) -> None:
        """Delete the record, unless another has become the owner. It is read first, as no store is known to honour the
        condition of a deletion."""
        for _ in range(2):  # a heartbeat without an answer may take effect in between
            if not self._is_own(owner):
                return
            try:
                if conditional_writes.delete(self._file, self._etag):
                    return
            except conditional_writes.Unsupported:
                self._file.delete()
                return

    def _is_own(self, owner: Owner) -> bool:
        """Returns whether the recorded owner is still this one. Then the next request replaces that version."""
        held = self.read()
        if held is None or held.owner.token != owner.token:
            return False
        self._etag = held.version
        return True


class DiskLeaseFile:
    """The lease of an artifact on a disk, which several machines may share."""

    def __init__(self, artifact: Location):
        self._folder = Path(artifact.path)

    def read(self) -> Held | None:
        while numbers := self._numbers():
            if held := self._held(numbers[-1]):  # otherwise it was just released or taken over: read again
                return held
            time.sleep(_LISTED_SECONDS)
        return None

    def claim(self, owner: Owner, over: Held | None) -> bool:
        """Become the owner, if there still is none, or `over`. Raises Unsupported."""
        if over and not _same(self._held(over.owner.attempt), over):
            return False
        try:
            if not conditional_writes.create(self._location(owner.attempt), _json(owner)):
                return False
        except FileNotFoundError:  # the artifact's folder was just deleted
            return False
        records = [*filter(None, map(self._held, self._numbers()))]
        is_owner = [held.owner.token for held in records[-1:]] == [owner.token]
        if not is_owner or (over and not any(_same(held, over) for held in records)):
            self._delete(owner)  # `over` was no longer the owner
            return False
        for held in records[:-1]:
            self._delete(held.owner)
        return True

    def await_writes(self) -> None:
        """A disk answers, or fails."""

    def check_support(self, owner: Owner) -> None:
        """A disk that has no hard links says so in `claim`."""

    def renew(self, owner: Owner) -> bool:
        """Record a heartbeat and the progress. Returns False if another has become the owner."""
        try:
            with self._path(owner.attempt).open("rb") as file:
                if _owner(file.read()).token != owner.token:
                    return False
                os.utime(file.fileno())  # needs no space: a full disk must not look like a killed owner
        except FileNotFoundError:
            return False
        if self._numbers()[-1:] != [owner.attempt]:
            return False
        with suppress(OSError):
            (Location(str(self._folder)) / _PROGRESS).write_bytes(_json(owner))
        return True

    def release(self, owner: Owner) -> None:
        """Delete the record, unless another has become the owner."""
        records = [*filter(None, map(self._held, self._numbers()))]
        if records and records[-1].owner.token == owner.token:
            (self._folder / _PROGRESS).unlink(missing_ok=True)
            for held in records:
                self._delete(held.owner)

    def _held(self, number: int) -> Held | None:
        """What the file with this number records; None if there is none."""
        file = self._path(number)
        with suppress(FileNotFoundError):
            owner, time = _owner(file.read_bytes()), file.stat().st_mtime_ns
            current = {"attempt": number, "progress": self._progress(owner)}
            return Held(owner.model_copy(update=current), f"{number} {time}")
        return None

    def _delete(self, owner: Owner) -> None:
        """Delete an owner's file, if that number is still this owner's."""
        held = self._held(owner.attempt)
        if held and held.owner.token == owner.token:
            self._path(owner.attempt).unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        """The numbers of the files, sorted."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 (one call of the file system)
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)

    def _path(self, number: int) -> Path:
        return self._folder / f"lease-{number}.json"

    def _location(self, number: int) -> Location:
        return Location(str(self._path(number)))

    def _progress(self, owner: Owner) -> WorkDone:
        with suppress(OSError):
            last = _owner((self._folder / _PROGRESS).read_bytes())
            if last.token == owner.token:
                return last.progress
        return owner.progress


LeaseFile = S3LeaseFile | DiskLeaseFile


def lease_file(artifact: Location) -> LeaseFile:
    return S3LeaseFile(artifact) if artifact.is_s3 else DiskLeaseFile(artifact)


def is_lease_file(name: str) -> bool:
    """Returns whether a file directly in an artifact's folder belongs to its lease."""
    return name in ("lease.json", _PROGRESS) or bool(_FILE.fullmatch(name))


def _same(held: Held | None, before: Held) -> bool:
    """Returns whether a record is that of the same owner, without a heartbeat since."""
    return held is not None and (held.version, held.owner.token) == (before.version, before.owner.token)


def _json(owner: Owner) -> bytes:
    return owner.model_dump_json().encode()


def _owner(data: bytes) -> Owner:
    """The recorded owner; an unknown one if the record is damaged, which then counts as killed after some time."""
    try:
        return Owner.model_validate_json(data)
    except ValidationError:
        return Owner()
