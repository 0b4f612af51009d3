"""Files and folders, local or s3://, through one small type whose writes are atomic."""

import fnmatch
import functools
import glob
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from cloze.pipeline.core.errors import MissingFile, UserError

_TEMPORARY = ".tmp"
_STALE_SECONDS = 3600.0
_LISTINGS = 5  # at most, until two agree, or until nothing is left of what was deleted


@functools.cache
def filesystem(scheme: str) -> pafs.FileSystem:
    """The file system of "s3" (its endpoint from AWS_ENDPOINT_URL, for servers other than Amazon's) or of "file"."""
    if scheme == "file":
        return pafs.LocalFileSystem()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # Delayed, so that a small file is one request and not the three of a multipart upload.
    return pafs.S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True)


@functools.cache
def _s3_client() -> Any:
    """For what Arrow's file system cannot do: conditional writes and ETags."""
    import boto3

    return boto3.client("s3")


@dataclass(frozen=True, order=True)
class Location:
    """A file or folder: a local path, or s3://bucket/key. It says nothing of whether anything is there."""

    uri: str

    def __post_init__(self) -> None:
        if not self.uri:
            raise UserError("an empty path names nothing; give a local path or s3://bucket/prefix")
        scheme, mark, rest = self.uri.partition("://")
        if mark and scheme != "s3":
            raise UserError(f"{self.uri}: {scheme}:// is not supported; give a local path or s3://bucket/prefix")
        if mark and not rest.strip("/"):
            raise UserError(f"{self.uri}: names no bucket; write s3://bucket/prefix")
        uri = self.uri if mark else os.path.expanduser(self.uri)  # noqa: PTH111 (a name that is not known stays)
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
        """The last suffix in lower case, with its dot: ".bz2"."""
        return Path(self.name).suffix.lower()

    @property
    def is_s3(self) -> bool:
        return self.uri.startswith("s3://")

    @property
    def fs(self) -> pafs.FileSystem:
        return filesystem("s3" if self.is_s3 else "file")

    @property
    def path(self) -> str:
        """The path inside `fs`: "bucket/key" on S3, absolute on the local disk."""
        return self.uri.removeprefix("s3://") if self.is_s3 else os.path.abspath(self.uri)  # noqa: PTH100 (no links resolved)

    @property
    def local_path(self) -> Path | None:
        return None if self.is_s3 else Path(self.path)

    def absolute(self) -> "Location":
        """The same place for a process with another current folder."""
        return self if self.is_s3 else Location(self.path)

    def info(self) -> pafs.FileInfo:
        return cast(pafs.FileInfo, self.fs.get_file_info(self.path))

    def exists(self) -> bool:
        """Whether there is a file or a folder here."""
        return self.info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        return self.info().type == pafs.FileType.File

    def etag(self) -> str:
        """Of a file on S3: it changes when the file does."""
        bucket, _, key = self.path.partition("/")
        return str(_s3_client().head_object(Bucket=bucket, Key=key)["ETag"])

    def size(self) -> int:
        """Bytes of the file; UserError when there is none."""
        info = self.info()
        if info.type != pafs.FileType.File:
            raise UserError(f"{self.uri}: no such file")
        return int(info.size)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """A seekable binary reader."""
        with self.fs.open_input_file(self.path) as file:
            yield cast(BinaryIO, file)

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes | memoryview | pa.Buffer) -> None:
        """Write the whole file or nothing: it has a name of its own until complete (S3 shows complete puts only)."""
        if self.is_s3:
            with self.fs.open_output_stream(self.path, compression=None) as stream:
                stream.write(data)
            return
        with self._temporary(data) as (temporary, path):
            temporary.replace(path)

    def create(self, data: bytes) -> bool:
        """Write the whole file unless there is one; whether it was written. Of several writers exactly one is told so.

        Wants hard links of a local disk, and conditional writes of S3 (If-None-Match), which Amazon's and MinIO have.
        """
        if not self.is_s3:
            with self._temporary(data) as (temporary, path):
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
                return True
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = self.path.partition("/")
        try:
            _s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                return False
            raise OSError(f"AWS Error: {error}") from error
        except BotoCoreError as error:  # no answer, no credentials
            raise OSError(f"AWS Error: {error}") from error
        return True

    @contextmanager
    def _temporary(self, data: bytes | memoryview | pa.Buffer) -> Iterator[tuple[Path, Path]]:
        """The data on this disk, under a name that goes away, and the path where it belongs."""
        path = Path(self.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path.parent}: cannot be made ({error.strerror}); set root= to a folder that can be written"
            ) from error
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, path
        finally:
            temporary.unlink(missing_ok=True)

    def write_text(self, text: str) -> None:
        self.write_bytes(text.encode("utf-8"))

    def files(self) -> list["Location"]:
        """Every file under this folder, sorted; none when there is no such folder. Unfinished writes are left out."""
        return [self / name for name in sorted(self.sizes()) if not name.endswith(_TEMPORARY)]

    def folders(self) -> list["Location"]:
        """The folders in this folder, sorted; none when there is no such folder."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(self / info.base_name for info in found if info.type == pafs.FileType.Directory)

    def sizes(self) -> dict[str, int]:
        """Relative path -> bytes of every file under this folder, in one listing."""
        found = self.fs.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        start = len(self.path.rstrip("/")) + 1
        return {info.path[start:]: int(info.size) for info in found if info.type == pafs.FileType.File}

    def delete(self) -> None:
        """Remove the file, or the folder with all in it; nothing happens when there is none.

        A folder on S3 is what a listing says: one is asked again, so that what the first left out goes as well.
        """
        for _ in range(_LISTINGS):
            kind = self.info().type
            if kind == pafs.FileType.NotFound:
                return
            with suppress(FileNotFoundError):  # a listing may show what has just gone
                if kind == pafs.FileType.File:
                    self.fs.delete_file(self.path)
                else:
                    self.fs.delete_dir(self.path)
            if not self.is_s3:
                return

    def sweep(self) -> None:
        """Remove what writers killed over an hour ago left half-written in this local folder.

        Others may be at work in it: a folder or file that goes meanwhile is passed over.
        """
        for folder, _, names in os.walk(self.local_path) if self.local_path else ():
            for path in (Path(folder, name) for name in names if name.startswith(".") and name.endswith(_TEMPORARY)):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                        path.unlink()


def find(pattern: str) -> list[Location]:
    """A path or a glob (`books/*.txt`, `s3://bucket/dumps/*.bz2`) -> the files it names, sorted.

    A file whose own name holds brackets is that file. Raises MissingFile when it names none, UserError when it names a
    folder, or when the store lists other files each time that it is asked.
    """
    if "[" in pattern and (location := Location(pattern)).is_file():
        return [location]
    if not glob.has_magic(pattern):
        location = Location(pattern)
        if not location.exists():
            seen = "" if location.is_s3 or pattern.startswith("/") else f" in {Path.cwd()}"
            raise MissingFile(f"{pattern}: no such file{seen}; correct the path in the configuration")
        if not location.is_file():
            raise UserError(f"{pattern}: is a folder; name its files, for example {pattern.rstrip('/')}/*")
        return [location]
    if not (found := _agreed(_glob_s3 if pattern.startswith("s3://") else _glob, pattern)):
        raise MissingFile(f"{pattern}: no file matches; correct the pattern in the configuration")
    return found


def _agreed(listed: Callable[[str], list[Location]], pattern: str) -> list[Location]:
    """What two listings, one after the other, agree on: one alone may leave a file out on some stores and on NFS."""
    before = listed(pattern)
    for _ in range(_LISTINGS):
        now = listed(pattern)
        if now == before:
            return now
        before = now
    raise UserError(f"{pattern}: its listing changes each time; wait until nothing is written there, or name the files")


def _glob(pattern: str) -> list[Location]:
    names = glob.glob(os.path.expanduser(pattern), recursive=True)  # noqa: PTH111, PTH207
    return sorted(Location(name) for name in names if Path(name).is_file())


def _glob_s3(pattern: str) -> list[Location]:
    folder = Location(pattern[: _first_wildcard(pattern)].rsplit("/", 1)[0])
    return [file for file in folder.files() if _matches(file.uri.split("/"), pattern.split("/"))]


def _matches(names: list[str], patterns: list[str]) -> bool:
    """What the local `glob` does, on S3's names: a star stays within a folder, two cross any number of them."""
    if not names or not patterns:
        return not names and not patterns
    first, *rest = patterns
    if first == "**":
        return any(_matches(names[skipped:], rest or ["*"]) for skipped in range(len(names)))
    hidden = names[0].startswith(".") and not first.startswith(".")
    return not hidden and fnmatch.fnmatchcase(names[0], first) and _matches(names[1:], rest)


def _first_wildcard(pattern: str) -> int:
    """Index of the first wildcard in a glob."""
    return min(i for i in map(pattern.find, "*?[") if i >= 0)
