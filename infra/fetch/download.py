"""The files of a dump -> a local folder or S3. A file appears when it is whole and has its published digest.

Until then its ranges are kept: on a disk in one file that grows, on S3 in an object each, which are then joined there.
A download that was interrupted continues after them. Before each write and deletion the lease of the folder is checked.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from cloze.infra.display import Display, size
from cloze.infra.fetch.http import CONNECTIONS, Http
from cloze.infra.fetch.wikipedia import Dump, DumpFile
from cloze.pipeline.core import s3
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.leases import hold_lease
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.storage import Location, nearest_existing
from cloze.pipeline.core.threads import map_in_threads, prefetch

MARKER = "dump.json"  # written when all files are whole: what they are
_UNFINISHED = "unfinished"  # in it, while files are missing
RANGE_BYTES = 32 << 20  # of a request
PARTIAL = ".partial"  # folder of what is not whole yet, beside the files


def download(http: Http, dump: Dump, to: Location, display: Display) -> Location:
    """Download a dump into the folder <to>/<wiki>/<date>, and return that. Files that are there are kept: those that
    its marker names by their sizes, others by their digests.

    Raises UserError when the disk has too little space, and for a file that twice differs from its digest; LeaseLost
    when another process has taken over because this one was suspended.
    """
    folder = to / dump.wiki / dump.date
    name = dump.files[0].name
    on_wait = partial(display.show_owner, name)
    with hold_lease(folder, on_wait) as lease, reporting_waits(display.wait):
        check = lease.check if lease else lambda: None
        files = [{"name": file.name, "bytes": file.bytes, "sha1": file.sha1} for file in dump.files]
        marker = json.dumps({"wiki": dump.wiki, "date": dump.date, "files": files}, indent=1).encode()
        sizes = folder.sizes()
        is_marked = MARKER in sizes and (folder / MARKER).read_bytes() == marker
        _check_space(folder, sum(file.bytes for file in dump.files if sizes.get(file.name) != file.bytes))
        (folder / PARTIAL / _UNFINISHED).write_text(dump.date)  # until all files are whole
        for file in dump.files:
            has_size = sizes.get(file.name) == file.bytes
            if has_size and (is_marked or _has_digest(folder / file.name, file, display)):
                display.finish(file.name, f"is there: {size(file.bytes)}")
            else:
                _download_file(http, file, _partial(folder, file.name, check), display)
        check()
        (folder / PARTIAL).delete()
        (folder / MARKER).write_bytes(marker, check)
    return folder


def _has_digest(place: Location, file: DumpFile, display: Display) -> bool:
    """Whether a file has its published digest. An earlier download, a copy or a power failure may have left another."""
    display.start(file.name, "check", size(file.bytes))
    digest, done = hashlib.sha1(), 0
    with place.open() as content:
        while data := content.read(RANGE_BYTES):
            digest.update(data)
            done += len(data)
            display(file.name, done / 1e6, file.bytes / 1e6, "MB")
    return digest.hexdigest() == file.sha1


def _download_file(http: Http, file: DumpFile, begun: "_Partial", display: Display) -> None:
    display.start(file.name, "download", size(file.bytes))
    for attempt in (1, 2):
        digest = _fill(http, file, begun, lambda done: display(file.name, done / 1e6, file.bytes / 1e6, "MB"))
        if digest == file.sha1 and begun.size() == file.bytes:  # not if another process has written to it as well
            begun.finish()
            display.finish(file.name, f"done: {size(file.bytes)}, {file.sha1[:12]}")
            return
        begun.discard()
        if attempt == 1:
            problem = "another process writes it" if digest == file.sha1 else f"its SHA-1 is {digest}, not {file.sha1}"
            display.finish(file.name, f"{problem}; downloads it again")
    raise UserError(
        f"{file.url}: twice its SHA-1 was not the published one, {file.sha1}; run again later, or give another --mirror"
    )


def _fill(http: Http, file: DumpFile, begun: "_Partial", report: Callable[[float], object]) -> str:
    """Download what the partial file lacks; returns the SHA-1 of the whole."""
    digest, done = hashlib.sha1(), 0
    for data in begun.read():
        digest.update(data)
        done += len(data)
        report(done)
    if done > file.bytes:
        return ""
    starts = range(done, file.bytes, RANGE_BYTES)

    def read(start: int) -> bytes:
        return http.read_range(file.url, start, min(start + RANGE_BYTES, file.bytes), file.bytes)

    for data in prefetch(read, starts, CONNECTIONS):
        digest.update(data)
        begun.append(data)
        done += len(data)
        report(done)
    return digest.hexdigest()


class _Partial(Protocol):
    """The beginning of a file. Before it is changed, the lease is checked, which raises LeaseLost."""

    def read(self) -> Iterator[bytes]: ...
    def append(self, data: bytes) -> None: ...
    def size(self) -> int: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...


def _partial(folder: Location, name: str, check: Callable[[], object]) -> "_Partial":
    return (_PartialObjects if folder.is_s3 else _PartialFile)(folder, name, check)


class _PartialFile:
    def __init__(self, folder: Location, name: str, check: Callable[[], object]):
        self._file, self._final = (Path(place.path) for place in (folder / PARTIAL / name, folder / name))
        self._check = check

    def read(self) -> Iterator[bytes]:
        if self._file.exists():
            with self._file.open("rb") as file:
                while data := file.read(RANGE_BYTES):
                    yield data

    def append(self, data: bytes) -> None:
        self._check()
        with self._file.open("ab") as file:
            file.write(data)

    def size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def finish(self) -> None:
        self._check()
        with self._file.open("ab") as file:  # which an empty file has not seen yet
            os.fsync(file.fileno())  # else a power failure may keep its name and its size without its content
        self._file.replace(self._final)

    def discard(self) -> None:
        self._check()
        self._file.unlink(missing_ok=True)


class _PartialObjects:
    def __init__(self, folder: Location, name: str, check: Callable[[], object]):
        self._folder, self._final, self._check = folder / PARTIAL / name, folder / name, check
        self._parts = list[Location]()

    def read(self) -> Iterator[bytes]:
        sizes = self._folder.sizes()
        self._parts = []
        while sizes.get(name := f"{len(self._parts):05}") == RANGE_BYTES:
            self._parts.append(self._folder / name)
        yield from prefetch(Location.read_bytes, list(self._parts), CONNECTIONS)

    def append(self, data: bytes) -> None:
        part = self._folder / f"{len(self._parts):05}"
        part.write_bytes(data, self._check)
        self._parts.append(part)

    def size(self) -> int:
        return sum(map_in_threads(Location.size, self._parts))

    def finish(self) -> None:
        self._check()
        s3.join([part.path for part in self._parts], self._final.path)

    def discard(self) -> None:
        self._check()
        self._folder.delete()
        self._parts = []


def _check_space(folder: Location, needed: int) -> None:
    """Raises UserError when a local folder's disk has no room for this number of bytes, part of which may be there."""
    if folder.local_path is None:
        return
    free = shutil.disk_usage(nearest_existing(folder.local_path)).free
    kept = sum((folder / PARTIAL).sizes().values())
    if free + kept < needed:
        raise UserError(
            f"{folder}: {size(needed - kept)} are to be downloaded, but {size(free)} are free; free some space, or "
            "give another --to"
        )


def fetch(http: Http, dump: Dump, to: Location) -> Location:
    """`download`, with its progress on stderr."""
    display = Display([file.name for file in dump.files])
    try:
        return download(http, dump, to, display)
    finally:
        display.close()
