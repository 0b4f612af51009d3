"""The files of a dump -> a local folder or S3. A file appears when it is whole and has its published digest.

Until then its ranges are kept: on a disk in one file that grows, on S3 in an object each, which are then joined there.
A download that was interrupted continues after them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
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
from cloze.pipeline.core.threads import prefetch

MARKER = "dump.json"  # written when all files are whole: what they are
_UNFINISHED = "unfinished"  # in it, while files are missing
RANGE_BYTES = 32 << 20  # of a request
PARTIAL = ".partial"  # folder of what is not whole yet, beside the files


def download(http: Http, dump: Dump, to: Location, display: Display) -> Location:
    """Download a dump into the folder <to>/<wiki>/<date>, and return that. Files that are whole are kept.

    Raises UserError when the disk has too little space, and for a file that twice differs from its digest.
    """
    folder = to / dump.wiki / dump.date
    name = dump.files[0].name
    with hold_lease(folder, lambda owner: display.show_owner(name, owner)), reporting_waits(display.wait):
        sizes = folder.sizes()
        _check_space(folder, sum(file.bytes for file in dump.files if sizes.get(file.name) != file.bytes))
        (folder / PARTIAL / _UNFINISHED).write_text(dump.date)  # until all files are whole
        for file in dump.files:
            if sizes.get(file.name) == file.bytes:
                display.finish(file.name, f"is there: {size(file.bytes)}")
            else:
                _download_file(http, file, folder, display)
        (folder / PARTIAL).delete()
        files = [{"name": file.name, "bytes": file.bytes, "sha1": file.sha1} for file in dump.files]
        (folder / MARKER).write_text(json.dumps({"wiki": dump.wiki, "date": dump.date, "files": files}, indent=1))
    return folder


def _download_file(http: Http, file: DumpFile, folder: Location, display: Display) -> None:
    partial = _partial(folder, file.name)
    display.start(file.name, "download", size(file.bytes))
    for attempt in (1, 2):
        digest = _fill(http, file, partial, lambda done: display(file.name, done / 1e6, file.bytes / 1e6, "MB"))
        if digest == file.sha1:
            partial.finish()
            display.finish(file.name, f"done: {size(file.bytes)}, {file.sha1[:12]}")
            return
        partial.discard()
        if attempt == 1:
            display.finish(file.name, f"its SHA-1 is {digest}, not {file.sha1}; downloads it again")
    raise UserError(
        f"{file.url}: twice its SHA-1 was not the published one, {file.sha1}; run again later, or give another --mirror"
    )


def _fill(http: Http, file: DumpFile, partial: "_Partial", report: Callable[[float], object]) -> str:
    """Download what the partial file lacks; returns the SHA-1 of the whole."""
    digest, done = hashlib.sha1(), 0
    for data in partial.read():
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
        partial.append(data)
        done += len(data)
        report(done)
    return digest.hexdigest()


class _Partial(Protocol):
    """The beginning of a file."""

    def read(self) -> Iterator[bytes]: ...
    def append(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def discard(self) -> None: ...


def _partial(folder: Location, name: str) -> "_Partial":
    return _PartialObjects(folder, name) if folder.is_s3 else _PartialFile(folder, name)


class _PartialFile:
    def __init__(self, folder: Location, name: str):
        self._file, self._final = (Path(place.path) for place in (folder / PARTIAL / name, folder / name))
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> Iterator[bytes]:
        if self._file.exists():
            with self._file.open("rb") as file:
                while data := file.read(RANGE_BYTES):
                    yield data

    def append(self, data: bytes) -> None:
        with self._file.open("ab") as file:
            file.write(data)

    def finish(self) -> None:
        self._file.touch()  # an empty file has no ranges
        self._file.replace(self._final)

    def discard(self) -> None:
        self._file.unlink(missing_ok=True)


class _PartialObjects:
    def __init__(self, folder: Location, name: str):
        self._folder, self._final = folder / PARTIAL / name, folder / name
        self._parts = list[Location]()

    def read(self) -> Iterator[bytes]:
        sizes = self._folder.sizes()
        self._parts = []
        while sizes.get(name := f"{len(self._parts):05}") == RANGE_BYTES:
            self._parts.append(self._folder / name)
        yield from prefetch(Location.read_bytes, list(self._parts), CONNECTIONS)

    def append(self, data: bytes) -> None:
        part = self._folder / f"{len(self._parts):05}"
        part.write_bytes(data)
        self._parts.append(part)

    def finish(self) -> None:
        s3.join([part.path for part in self._parts], self._final.path)

    def discard(self) -> None:
        self._folder.delete()
        self._parts = []


def _check_space(folder: Location, needed: int) -> None:
    """Raises UserError when a local folder's disk has no room for this number of bytes, part of which may be there."""
    if folder.local_path is None:
        return
    free = shutil.disk_usage(nearest_existing(folder.local_path)).free
    partial = sum((folder / PARTIAL).sizes().values())
    if free + partial < needed:
        raise UserError(
            f"{folder}: {size(needed - partial)} are to be downloaded, but {size(free)} are free; free some space, or "
            "give another --to"
        )


def fetch(http: Http, dump: Dump, to: Location) -> Location:
    """`download`, with its progress on stderr."""
    display = Display([file.name for file in dump.files])
    try:
        return download(http, dump, to, display)
    finally:
        display.close()
