"""User files -> their SHA-256 digests, cached under the run's root."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloze.pipeline.core.storage import Location

_BLOCK = 1 << 20


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


def source_file(location: Location, cache_folder: Location) -> SourceFile:
    """Returns a user's file with its SHA-256, cached in `cache_folder` by (URI, size, mtime or ETag).

    A second record, named by the digest, is for `source_file_by_digest`.
    """
    info = location.info()
    stamp = location.etag() if location.is_s3 else str(info.mtime_ns)
    store = "s3" if location.is_s3 else "local"
    key = hashlib.sha256(f"{store} {location.path} {info.size} {stamp}".encode()).hexdigest()[:32]
    record_file = cache_folder / f"{key}.json"
    if cached := _read_record(record_file):
        return SourceFile(location.uri, cached.sha256, int(info.size))
    digest = hashlib.sha256()
    with location.open() as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    file = SourceFile(location.uri, digest.hexdigest(), int(info.size))
    _write_record(cache_folder / f"{file.sha256}.json", file)
    _write_record(record_file, file)
    return file


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
    return [file for record in cache_folder.files() if (file := _read_record(record))]


def _write_record(record: Location, file: SourceFile) -> None:
    record.write_text(json.dumps({"uri": file.uri, "sha256": file.sha256, "bytes": file.bytes}))


def _read_record(record: Location) -> SourceFile | None:
    """Returns None for a missing record and for a damaged one, which can be written again."""
    if not record.exists():
        return None
    try:
        content = json.loads(record.read_bytes())
        return SourceFile(content["uri"], content["sha256"], content["bytes"])
    except (ValueError, KeyError, TypeError):
        return None
