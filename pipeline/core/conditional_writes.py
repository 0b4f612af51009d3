"""Writes that take effect only if no other process has written the file in between.

On a disk a hard link creates a file: it fails if there is one. On S3 the request has a condition: If-None-Match creates
an object, If-Match replaces or deletes the one that was read. The answer to a request may be lost after it took effect,
and clients repeat requests: then the second one is refused. So after a refusal or an error the file is read back.
"""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from cloze.pipeline.core import s3
from cloze.pipeline.core.s3_errors import CutBody
from cloze.pipeline.core.storage import Location

Result = TypeVar("Result")

_REFUSED = (404, 412)
_NO_ETAG = f'"{0:032x}"'
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class Unsupported(OSError):
    """The store has no conditional writes, or the disk no hard links."""


class Version(NamedTuple):
    """The content of an object on S3, and its ETag, which changes with every write."""

    data: bytes
    etag: str


def create(file: Location, data: bytes, confirm: Callable[[], object] = lambda: None) -> bool:
    """Write a file atomically if it does not exist. Returns whether it did: of several writers, one gets True.

    `confirm` is called directly before the file becomes visible, on S3 before each request, and may raise.
    """
    if file.is_s3:
        return put(file, data, None, confirm) is not None
    with file.temporary(data) as (temporary, path):
        confirm()
        try:
            os.link(temporary, path)
        except FileExistsError:
            with suppress(FileNotFoundError):  # over NFS the answer of a call that succeeded may be lost
                return path.samefile(temporary)
            return False
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise Unsupported(error.errno, error.strerror, str(path)) from error
            raise
    return True


def replace(file: Location, data: bytes, confirm: Callable[[], object]) -> bool:
    """Write a file, whether it exists or not, if it does not change after `confirm` was called. Returns whether it did.

    On a disk, an existing file is replaced even if it changes between `confirm` and the renaming that follows.
    """
    if file.is_s3:
        if put(file, data, None, confirm):  # most files are new: a request less
            return True
        before = read(file)
        return put(file, data, before and before.etag, confirm) is not None
    if file.is_file():
        file.write_bytes(data, confirm)
        return True
    return create(file, data, confirm)


def read(file: Location) -> Version | None:
    """Returns an object on S3; None if there is none. It is read again if it does not match its ETag.

    Where the ETag is no digest, two reads agree.
    """
    bucket, before = file.path.partition("/")[0], None

    def call(client: Any) -> Version:
        nonlocal before
        answer = client.get_object(**_address(file))
        version = Version(s3.checked_length(answer["Body"].read(), answer["ContentLength"]), answer["ETag"])
        if s3.is_content(bucket, *version) is not False or s3.has_no_digest(answer):
            return version
        if version == before and not s3.has_digests(bucket):
            return version
        before = version
        raise CutBody("its bytes do not match its ETag")

    return _send("reading", file, call)


def put(file: Location, data: bytes, etag: str | None, confirm: Callable[[], object] = lambda: None) -> str | None:
    """Create an object on S3, or replace the one with that ETag. Returns the new ETag; None if another was faster.

    `confirm` is called directly before each request that writes, and may raise.
    """
    failure = None
    try:
        if written := _put_if(file, data, confirm, **({"IfMatch": etag} if etag else {"IfNoneMatch": "*"})):
            return written
    except Unsupported:
        raise
    except OSError as error:
        failure = error
    try:
        current = read(file)
    except OSError as error:
        raise failure or error from error
    if current and current.data == data:
        return current.etag
    if failure and (current and current.etag) == etag:  # nobody has written it
        raise failure
    return None


def delete(file: Location, etag: str) -> bool:
    """Delete the object on S3 with that ETag. Returns False if it is another one; True also if there is none.

    A store that ignores the condition deletes whichever there is: read it first. Raises Unsupported where the store
    has no such request.
    """
    deleted = _send("deleting", file, lambda client: client.delete_object(**_address(file), IfMatch=etag))
    return deleted is not None or read(file) is None


def honours_conditions(file: Location, data: bytes) -> bool:
    """Returns whether the store refuses what it should: to write the object again, which exists with this content, and
    to replace one that does not exist (MinIO until August 2025 does not: github.com/minio/minio/issues/21526).

    The condition of a deletion is not tried.
    """
    if not refuses_to_replace_nothing(file, data):
        return False
    return not _put_if(file, data, IfNoneMatch="*") and not _put_if(file, data, IfMatch=_NO_ETAG)


def refuses_to_replace_nothing(file: Location, data: bytes) -> bool:
    """Returns whether the store refuses to replace an object that does not exist, next to this one. It answers, at
    least, a write.
    """
    missing = Location(f"{file}-{uuid.uuid4().hex}")
    if _put_if(missing, data, IfMatch=_NO_ETAG):
        missing.delete()
        return False
    return True


def _put_if(file: Location, data: bytes, confirm: Callable[[], object] = lambda: None, **condition: str) -> str | None:
    """Send one conditional request. Returns the object's ETag; None if it was refused."""

    def call(client: Any) -> str:
        confirm()
        return str(client.put_object(**_address(file), Body=data, **condition)["ETag"])

    return _send("writing", file, call)


def _send(operation: str, file: Location, call: Callable[[Any], Result]) -> Result | None:
    """Returns call(client); None if the condition does not hold, or there is no object. Raises Unsupported."""
    from botocore.exceptions import ClientError

    def attempt(client: Any) -> Result | ClientError | None:
        try:
            return call(client)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in _REFUSED and error.response.get("Error", {}).get("Code") != "NoSuchBucket":
                return None
            if status == 501:  # no reason to send it again
                return error
            raise

    answer = s3.request(operation, file.path, attempt)
    if isinstance(answer, ClientError):
        raise Unsupported(str(answer)) from answer
    return answer


def _address(file: Location) -> dict[str, str]:
    bucket, _, key = file.path.partition("/")
    return {"Bucket": bucket, "Key": key}
