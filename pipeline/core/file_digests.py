"""User files -> their SHA-256 digests, cached under the run's root."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cloze.pipeline.core import s3
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads, prefetch

_RANGE_BYTES, _AHEAD = 8 << 20, 8  # bytes of a read; reads at once: 64 MiB of memory


@dataclass(frozen=True)
class SourceFile:
    """A user's file. Fingerprints cover its bytes and its suffix, not its path."""

    uri: str
    sha256: str
    bytes: int

    @property
    def location(self) -> Location:
        return Location(self.uri)

    @property
    def identity(self) -> str:
        """The part that fingerprints cover: the digest and the suffixes."""
        name = self.location.name.lower()
        inner = Path(name.removesuffix(".gz")).suffix if name.endswith(".gz") else ""
        return self.sha256 + inner + self.location.suffix


class _Stamped(NamedTuple):
    """A user's file, what S3 knows of it if it is there, and the record of its digest in the cache."""

    location: Location
    bytes: int
    s3_object: s3.ObjectInfo | None
    record: Location


class _Range(NamedTuple):
    """Bytes `start` to `end` of a file."""

    file: _Stamped
    start: int
    end: int


def source_file(location: Location, cache_folder: Location) -> SourceFile:
    """Returns a user's file with its SHA-256: see `source_files`."""
    return source_files([location], cache_folder)[0]


def source_files(locations: Sequence[Location], cache_folder: Location) -> list[SourceFile]:
    """Returns users' files with their SHA-256, cached in `cache_folder` by (URI, size, mtime or ETag).

    A file is read unless its digest is in the cache, or S3 has stored it with the object. A second record, named by the
    digest, is for `source_file_by_digest`.
    """
    files = map_in_threads(partial(_stamped, cache_folder=cache_folder), locations)
    cached = map_in_threads(lambda file: _read_record(file.record), files)
    new = [file for file, record in zip(files, cached, strict=True) if not record]
    hashed = prefetch(partial(_write_records, cache_folder=cache_folder), _with_digests(new), _AHEAD)
    digests = {file: record.sha256 for file, record in zip(files, cached, strict=True) if record} | dict(hashed)
    return [SourceFile(file.location.uri, digests[file], file.bytes) for file in files]


def _stamped(location: Location, cache_folder: Location) -> _Stamped:
    if location.is_s3:
        s3_object = location.object_info()
        size, stamp = s3_object.size, f"s3 {location.path} {s3_object.size} {s3_object.etag}"
    else:
        s3_object, info = None, location.info()
        if info.size is None:
            raise UserError(f"{location}: no such file; it was deleted after the run began")
        size, stamp = int(info.size), f"local {location.path} {info.size} {info.mtime_ns}"
    key = hashlib.sha256(stamp.encode()).hexdigest()[:32]
    return _Stamped(location, size, s3_object, cache_folder / f"{key}.json")


def _with_digests(files: Sequence[_Stamped]) -> Iterator[tuple[_Stamped, str]]:
    """Yields each file with its SHA-256. Ranges of one or more files are read in parallel, and hashed in order."""
    unknown: list[_Stamped] = []
    for file in files:
        if file.s3_object and file.s3_object.sha256:
            yield file, file.s3_object.sha256
        else:
            unknown.append(file)
    digest = hashlib.sha256()
    for (file, _, end), data in prefetch(_read_range, _ranges(unknown), _AHEAD):
        digest.update(data)
        if end == file.bytes:
            yield file, digest.hexdigest()
            digest = hashlib.sha256()


def _ranges(files: Sequence[_Stamped]) -> Iterator[_Range]:
    for file in files:
        for start in range(0, max(file.bytes, 1), _RANGE_BYTES):
            yield _Range(file, start, min(start + _RANGE_BYTES, file.bytes))


def _read_range(file_range: _Range) -> tuple[_Range, bytes]:
    file, start, end = file_range
    if file.s3_object is None:
        with file.location.open() as stream:
            stream.seek(start)
            data = stream.read(end - start)
        if len(data) != end - start:
            raise UserError(f"{file.location}: became shorter while it was read; run again when nothing writes to it")
        return file_range, data
    if end - start == file.bytes:  # checked against the ETag
        return file_range, s3.read_whole(file.location.path, file.s3_object)
    return file_range, s3.read_range(file.location.path, file.s3_object, start, end)


def _write_records(file_and_digest: tuple[_Stamped, str], cache_folder: Location) -> tuple[_Stamped, str]:
    file, digest = file_and_digest
    for record in (cache_folder / f"{digest}.json", file.record):
        _write_record(record, SourceFile(file.location.uri, digest, file.bytes))
    return file_and_digest


def as_one_file(files: Sequence[SourceFile], cache_folder: Location) -> SourceFile:
    """Returns one of several files that belong together, such as an index and its shards: its digest covers all.

    It has the path of the first file and a record named by the digest, for `source_file_by_digest`.
    """
    first, *others = files
    if not others:
        return first
    digest = hashlib.sha256("".join(f"{file.sha256}\n" for file in files).encode()).hexdigest()
    combined = SourceFile(first.uri, digest, sum(file.bytes for file in files))
    _write_record(cache_folder / f"{digest}.json", combined)
    return combined


def source_file_by_digest(cache_folder: Location, sha256: str) -> SourceFile | None:
    """Returns the file that last had this digest, or None. Caches of earlier versions have no such records."""
    return _read_record(cache_folder / f"{sha256}.json")


def cached_source_files(cache_folder: Location) -> list[SourceFile]:
    """Returns every file in the cache."""
    return [file for file in map_in_threads(_read_record, cache_folder.files()) if file]


def _write_record(record: Location, file: SourceFile) -> None:
    record.write_text(json.dumps({"uri": file.uri, "sha256": file.sha256, "bytes": file.bytes}))


def _read_record(record: Location) -> SourceFile | None:
    """Returns None for a missing record and for a damaged one, which can be written again."""
    try:
        content = json.loads(record.read_bytes())
        return SourceFile(content["uri"], content["sha256"], content["bytes"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
