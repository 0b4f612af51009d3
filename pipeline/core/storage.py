"""Files and folders, local or on S3, as one type with atomic writes."""

import errno
import fnmatch
import glob
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.fs as pafs

from cloze.pipeline.core import s3
from cloze.pipeline.core.errors import DamagedFile, MissingFile, UserError
from cloze.pipeline.core.s3_file import S3File

_TEMPORARY = ".tmp"
_STALE_SECONDS = 3600.0
FILES_PER_REQUEST = 1000  # that one request to S3 lists: its limit
_MAX_LISTINGS = 5  # until two agree, or until a deleted folder is empty
_local = pafs.LocalFileSystem()


@dataclass(frozen=True, order=True)
class Location:
    """The place of a file or folder, which may not exist: a local path, or s3://bucket/key."""

    uri: str

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError("the path is empty; give a local path or s3://bucket/prefix")
        scheme, mark, rest = self.uri.partition("://")
        if mark and scheme != "s3":
            raise UserError(f"{self.uri}: {scheme}:// is not supported; give a local path or s3://bucket/prefix")
        if mark and not rest.strip("/"):
            raise UserError(f"{self.uri}: names no bucket; write s3://bucket/prefix")
        uri = self.uri if mark else os.path.expanduser(self.uri)  # noqa: PTH111 (keeps the name of an unknown user)
        object.__setattr__(self, "uri", uri.rstrip("/") or "/")

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """The last suffix in lower case, with its dot, such as ".bz2"."""
        return Path(self.name).suffix.lower()

    @property
    def is_s3(self) -> bool:
        return self.uri.startswith("s3://")

    @property
    def path(self) -> str:
        """The path of the file or folder: "bucket/key" on S3, an absolute path on the local disk."""
        return self.uri.removeprefix("s3://") if self.is_s3 else os.path.abspath(self.uri)  # noqa: PTH100 (no links resolved)

    @property
    def local_path(self) -> Path | None:
        return None if self.is_s3 else Path(self.path)

    def absolute(self) -> "Location":
        """Returns the same place with an absolute path, valid in any current folder."""
        return self if self.is_s3 else Location(self.path)

    def info(self) -> pafs.FileInfo:
        """Returns the type, and of a file the size and the time of its last change."""
        if not self.is_s3:
            return cast(pafs.FileInfo, _local.get_file_info(self.path))
        if "/" in self.path and (found := s3.find(self.path)):
            return pafs.FileInfo(self.path, pafs.FileType.File, size=found.size, mtime=found.modified)
        return pafs.FileInfo(self.path, pafs.FileType.Directory if s3.is_folder(self.path) else pafs.FileType.NotFound)

    def exists(self) -> bool:
        """Returns whether there is a file or a folder."""
        return self.info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Returns whether there is a file, on S3 in one request."""
        if self.is_s3:
            return "/" in self.path and s3.find(self.path) is not None
        return self.info().type == pafs.FileType.File

    def etag(self) -> str:
        """Returns the ETag of a file on S3, which changes with its content."""
        return self.object_info().etag

    def object_info(self) -> s3.ObjectInfo:
        """Returns what S3 knows of a file. Raises FileNotFoundError when it has no such object."""
        if found := s3.find(self.path):
            return found
        raise FileNotFoundError(errno.ENOENT, "is missing", self.uri)

    def size(self) -> int:
        """Returns the file's size in bytes. Raises UserError when there is no file."""
        info = self.info()
        if info.type != pafs.FileType.File:
            raise UserError(f"{self.uri}: no such file")
        return int(info.size)

    @contextmanager
    def open(self, end_first: bool = False) -> Iterator[BinaryIO]:
        """Open the file for reading; it is binary and seekable.

        `end_first`: its end is read first, as that of a Parquet file. On S3, opening it reads that: a request less.
        """
        if not self.is_s3:
            opened = _local.open_input_file(self.path)
        else:
            opened = S3File.open_with_end(self.path) if end_first else S3File(self.path, self.object_info())
        with opened as file:
            yield cast(BinaryIO, file)

    def read_bytes(self) -> bytes:
        if self.is_s3:
            return s3.read(self.path)
        with self.open() as file:
            return file.read()

    def read_range(self, start: int, end: int, is_correct: Callable[[bytes], bool]) -> bytes:
        """Returns the bytes from `start` to `end`, in one request. On S3 they are read again unless they are correct.

        Raises DamagedFile when they are incorrect or the file is shorter; on S3 StorageError when they stay so.
        """
        if self.is_s3:
            return s3.read_checked_range(self.path, start, end, is_correct)
        with self.open() as file:
            file.seek(start)
            data = file.read(end - start)
        if len(data) != end - start or not is_correct(data):
            raise DamagedFile(f"{self.uri}: is damaged; delete it and run again: finished work is kept")
        return data

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes | memoryview | pa.Buffer, confirm: Callable[[], object] = lambda: None) -> None:
        """Write the file atomically: under a temporary name until it is complete (S3 shows complete objects only).

        `confirm` may raise; it is called directly before the renaming that makes the file visible, on S3 before each
        request that does.
        """
        if self.is_s3:
            s3.put(self.path, memoryview(data), confirm)
            return
        with self.temporary(data) as (temporary, path):
            confirm()
            temporary.replace(path)

    @contextmanager
    def temporary(self, data: bytes | memoryview | pa.Buffer) -> Iterator[tuple[Path, Path]]:
        """Write the data to a temporary file on the local disk; yields its path and the final path."""
        path = Path(self.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path.parent}: cannot be created ({error.strerror}); name a writable folder (root=, --to)"
            ) from error
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(path)  # a failed write names no file
                raise
            yield temporary, path
        finally:
            temporary.unlink(missing_ok=True)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode("utf-8"))

    def files(self, page: int = FILES_PER_REQUEST) -> list["Location"]:
        """Returns all files under this folder, sorted, without unfinished writes; none if there is no such folder.

        `page` is the number of files that one request to S3 lists.
        """
        return [self / name for name in sorted(self.sizes(page)) if not name.endswith(_TEMPORARY)]

    def folders(self) -> list["Location"]:
        """Returns the folders directly in this folder, sorted; none if there is no such folder."""
        if self.is_s3:
            return sorted(self / name for name in s3.subfolders(self.path))
        infos = _local.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(self / info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def sizes(self, page: int = FILES_PER_REQUEST) -> dict[str, int]:
        """Returns relative path -> size in bytes of all files under this folder, from one listing."""
        if self.is_s3:
            return s3.sizes(self.path, page)
        infos = _local.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        start = len(self.path.rstrip("/")) + 1
        return {info.path[start:]: int(info.size) for info in infos if info.type == pafs.FileType.File}

    def delete(self) -> None:
        """Delete the file, or the folder with its content, if it exists.

        On S3 a listing may omit files of a folder, so the folder is listed and deleted until none is left.
        """
        if self.is_s3:
            s3.delete(self.path)
            for _ in range(_MAX_LISTINGS):
                if not (names := list(s3.sizes(self.path))):
                    return
                s3.delete_all(self.path, names)
            return
        with suppress(FileNotFoundError):  # another process may delete it at the same time
            if self.info().type == pafs.FileType.File:
                _local.delete_file(self.path)
            else:
                _local.delete_dir(self.path)

    def delete_stale_writes(self) -> None:
        """Delete temporary files that killed writers left in this local folder over an hour ago.

        Other processes may delete files at the same time: files that no longer exist are skipped.
        """
        for folder, _, names in os.walk(self.local_path) if self.local_path else ():
            for path in (Path(folder, name) for name in names if name.startswith(".") and name.endswith(_TEMPORARY)):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                        path.unlink()


def nearest_existing(path: Path) -> Path:
    """Returns the path, or the nearest of its parents that exists: a folder that is yet to be created has its disk."""
    return next(one for one in (path, *path.parents) if one.exists())


def find_files(pattern: str) -> list[Location]:
    """A path or a glob (`books/*.txt`, `s3://bucket/dumps/*.bz2`) -> the matching files, sorted.

    A path with brackets that exists is a file's name, not a glob. Raises MissingFile when nothing matches, and
    UserError for a folder, or when each listing of the store contains other files.
    """
    if "[" in pattern and (location := Location(pattern)).is_file():
        return [location]
    if not glob.has_magic(pattern):
        location = Location(pattern)
        if (kind := location.info().type) == pafs.FileType.NotFound:
            folder = "" if location.is_s3 or pattern.startswith("/") else f" in {Path.cwd()}"
            raise MissingFile(f"{pattern}: no such file{folder}; correct the path")
        if kind != pafs.FileType.File:
            raise UserError(f"{pattern}: is a folder; name its files, for example {pattern.rstrip('/')}/*")
        return [location]
    if not (files := _stable_listing(_glob_s3 if pattern.startswith("s3://") else _glob, pattern)):
        raise MissingFile(f"{pattern}: no file matches; correct the pattern")
    return files


class FileStamp(NamedTuple):
    """What changes with a file's content, and when it last changed, in seconds since the epoch."""

    version: str
    changed: float


def file_stamps(pattern: str) -> dict[str, FileStamp]:
    """The files of a path or glob, by URI -> their stamps: of the size and the time of the last change, on S3 of the
    ETag. Raises as `find_files`.
    """
    files = find_files(pattern)
    if len(files) > 1 and pattern.startswith("s3://"):
        folder = _folder_of_glob(pattern)
        infos = s3.infos(folder.path)
        return {file.uri: _object_stamp(infos.get(file.uri[len(folder.uri) + 1 :])) for file in files}
    return {file.uri: _object_stamp(file.object_info()) if file.is_s3 else _stamp(file) for file in files}


def _object_stamp(found: s3.ObjectInfo | None) -> FileStamp:
    return FileStamp(f"{found.size} {found.etag}", found.modified.timestamp()) if found else FileStamp("", 0.0)


def _stamp(file: Location) -> FileStamp:
    info = file.info()
    return FileStamp(f"{info.size} {info.mtime_ns}", (info.mtime_ns or 0) / 1e9)


def _stable_listing(list_files: Callable[[str, int], list[Location]], pattern: str) -> list[Location]:
    """Returns a listing that two successive calls agree on: a single one may omit a file on some stores and on NFS.

    On S3 the second has shorter pages: a cache between does not answer both alike.
    """
    before = list_files(pattern, FILES_PER_REQUEST)
    for _ in range(_MAX_LISTINGS):
        now = list_files(pattern, min(FILES_PER_REQUEST, len(before) // 2 + 1))
        if now == before:
            return now
        before = now
    raise UserError(
        f"{pattern}: each listing contains other files; wait until nothing is written there, or name the files"
    )


def _glob(pattern: str, _: int) -> list[Location]:
    names = glob.glob(os.path.expanduser(pattern), recursive=True)  # noqa: PTH111, PTH207
    return sorted(Location(name) for name in names if Path(name).is_file())


def _glob_s3(pattern: str, page: int) -> list[Location]:
    return [file for file in _folder_of_glob(pattern).files(page) if _matches(file.uri.split("/"), pattern.split("/"))]


def _folder_of_glob(pattern: str) -> Location:
    """The folder that contains all matches: what precedes the first wildcard."""
    return Location(pattern[: _first_wildcard(pattern)].rsplit("/", 1)[0])


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Match names on S3 as the local `glob` does: * stays within a folder, ** spans any number of folders."""
    if not names or not patterns:
        return not names and not patterns
    first, *rest = patterns
    if first == "**":
        return any(_matches(names[skipped:], rest or ["*"]) for skipped in range(len(names)))
    hidden = names[0].startswith(".") and not first.startswith(".")
    return not hidden and fnmatch.fnmatchcase(names[0], first) and _matches(names[1:], rest)


def _first_wildcard(pattern: str) -> int:
    """Returns the index of the first wildcard in a glob."""
    return min(i for i in map(pattern.find, "*?[") if i >= 0)
