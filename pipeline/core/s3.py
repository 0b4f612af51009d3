"""Objects on S3: every request is repeated under the policy of retries.py, and every body is checked.

A body must have the announced length. Where a whole object is read and its ETag is the MD5 of its content (or of its
parts, as `put` writes them), the content must match it. Credentials come from botocore's usual chain, which renews
those that expire.
"""

import base64
import hashlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cloze.pipeline.core import s3_errors
from cloze.pipeline.core.retries import retrying

Result = TypeVar("Result")

_CONNECT_TIMEOUT, _READ_TIMEOUT = 10.0, 30.0  # seconds, the latter without a byte
_PART = 32 << 20  # bytes of a part of a larger object: written, and read, in parallel
_THREADS = 8
_DELETED_AT_ONCE = 1000  # S3's limit


class ObjectInfo(NamedTuple):
    """What S3 knows of an object. `sha256` is its SHA-256 in hexadecimal digits, if it was stored with it."""

    size: int
    etag: str
    modified: datetime
    sha256: str = ""


class _Client:
    """This process's client. A new one is created after expired credentials: files with credentials are read again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._client: Any = None
        self.renewable = False

    def get(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._create()
            return self._client

    def discard(self, client: Any) -> None:
        with self._lock:
            if self._client is client:
                self._client = None

    def _create(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.credentials import RefreshableCredentials

        logging.getLogger("botocore.credentials").setLevel(logging.CRITICAL)  # a traceback for each failed renewal
        session = Session()
        self.renewable = isinstance(session.get_credentials(), RefreshableCredentials)
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT,
            read_timeout=_READ_TIMEOUT,
            retries={"total_max_attempts": 1, "mode": "standard"},  # retries.py repeats requests
            max_pool_connections=64,
        )
        return session.client("s3", config=config)


_client = _Client()
_with_digests: set[str] = set()  # buckets where an ETag was the MD5 of the content
_without_digests: set[str] = set()  # buckets whose ETags are not MD5s


def request(operation: str, path: str, call: Callable[[Any], Result]) -> Result:
    """Returns call(client), repeated while it fails temporarily. Raises StorageError, or FileNotFoundError for a 404.

    `operation` and `path` (bucket/key) are for the message.
    """
    client: Any = None

    def attempt() -> Result:
        nonlocal client
        client = _client.get()
        return call(client)

    def classify(error: Exception, seconds: float) -> s3_errors.Failure:
        if expired := s3_errors.is_expired(error):
            _client.discard(client)
        renewable = expired and (_client.renewable or seconds == 0)  # a file with credentials may contain new ones
        return s3_errors.failure(error, seconds, operation, f"s3://{path}", renewable=renewable)

    return retrying(attempt, classify)


def find(path: str) -> ObjectInfo | None:
    """Returns what S3 knows of an object, or None if there is none."""
    bucket, key = _split(path)

    def head(client: Any) -> ObjectInfo:
        try:
            answer = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except Exception as error:
            if s3_errors.has_no_code(error):  # HEAD has no body; a listing fails with the code of the same cause
                client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
            raise
        return _info(answer)

    try:
        return request("looking up", path, head)
    except FileNotFoundError:
        return None


def is_folder(path: str) -> bool:
    """Returns whether there is an object below this path."""
    bucket, key = _split(path)
    prefix = f"{key}/" if key else ""
    return bool(_list(path, Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount") or not key)


def sizes(folder: str, page: int = 1000) -> dict[str, int]:
    """Returns relative path -> size in bytes of all objects below a folder. A request lists `page` of them."""
    return {name: int(entry["Size"]) for name, entry in _objects(folder, page)}


def infos(folder: str) -> dict[str, ObjectInfo]:
    """Returns relative path -> what a listing tells of all objects below a folder: no SHA-256."""
    return {
        name: ObjectInfo(int(entry["Size"]), entry["ETag"], entry["LastModified"]) for name, entry in _objects(folder)
    }


def _objects(folder: str, page: int = 1000) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the relative path and the entry in the listing of each object below a folder."""
    bucket, key = _split(folder)
    prefix = f"{key}/" if key else ""
    for listed in _pages(folder, Bucket=bucket, Prefix=prefix, MaxKeys=page):
        entries = listed.get("Contents", ())
        yield from ((entry["Key"][len(prefix) :], entry) for entry in entries if not entry["Key"].endswith("/"))


def subfolders(folder: str) -> list[str]:
    """Returns the names of the folders directly in a folder."""
    bucket, key = _split(folder)
    prefix = f"{key}/" if key else ""
    pages = _pages(folder, Bucket=bucket, Prefix=prefix, Delimiter="/")
    return [entry["Prefix"][len(prefix) : -1] for page in pages for entry in page.get("CommonPrefixes", ())]


def _pages(folder: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """The pages of a listing. Each is requested again by itself when it fails."""
    page = _list(folder, **arguments)
    yield page
    while page["IsTruncated"]:
        page = _list(folder, **arguments, ContinuationToken=page["NextContinuationToken"])
        yield page


def _list(path: str, **arguments: Any) -> dict[str, Any]:
    def call(client: Any) -> dict[str, Any]:
        page = client.list_objects_v2(**arguments)
        if "IsTruncated" not in page:
            raise s3_errors.CutBody("a listing without its end")
        return page

    try:
        return request("listing", path, call)
    except FileNotFoundError:  # a store that has no object below the prefix
        return {"KeyCount": 0, "IsTruncated": False}


def delete(path: str) -> None:
    """Delete an object, if it exists."""
    bucket, key = _split(path)
    request("deleting", path, lambda client: client.delete_object(Bucket=bucket, Key=key))


def delete_all(folder: str, names: Sequence[str]) -> None:
    """Delete objects of a folder, named by their relative paths."""
    bucket, key = _split(folder)
    for start in range(0, len(names), _DELETED_AT_ONCE):
        keys = [{"Key": f"{key}/{name}"} for name in names[start : start + _DELETED_AT_ONCE]]

        def call(client: Any, keys: list[dict[str, str]] = keys) -> None:
            from botocore.exceptions import ClientError

            answer = client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            for error in answer.get("Errors", ())[:1]:
                raise ClientError({"Error": error, "ResponseMetadata": {}}, "DeleteObjects")

        request("deleting", folder, call)


def put(path: str, data: bytes | memoryview, confirm: Callable[[], object] = lambda: None) -> None:
    """Write an object as a whole: readers see the previous one or this one.

    `confirm` may raise; it is called directly before each request that makes the object visible, also a repeated one.
    """
    bucket, key = _split(path)
    if len(data) <= _PART:
        body = bytes(data)

        def put_whole(client: Any) -> None:
            confirm()
            client.put_object(Bucket=bucket, Key=key, Body=body)

        request("writing", path, put_whole)
        return
    name = {"Bucket": bucket, "Key": key}
    view = memoryview(data)

    def put_part(upload: str, number: int) -> dict[str, Any]:
        body = bytes(view[(number - 1) * _PART : number * _PART])

        def call(client: Any) -> dict[str, Any]:
            answer = client.upload_part(**name, UploadId=upload, PartNumber=number, Body=body)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        return request("writing", path, call)

    count = -(-len(view) // _PART)

    def is_ours(found: dict[str, Any]) -> bool:
        if has_no_digest(found):
            return found["ContentLength"] == len(view) and _parts_of(found) == count
        return bool(found["ETag"].strip('"') == _etag_of_parts(view))

    _write_in_parts(path, count, put_part, is_ours, confirm)


def join(paths: Sequence[str], to: str) -> None:
    """Write an object with the content of several, which are copied within S3; all but the last have 5 MiB or more."""
    if len(paths) < 2:
        put(to, read(paths[0]) if paths else b"")
        return
    bucket, key = _split(to)
    name = {"Bucket": bucket, "Key": key}

    def copy_part(upload: str, number: int) -> dict[str, Any]:
        source_bucket, source_key = _split(paths[number - 1])
        source = {"Bucket": source_bucket, "Key": source_key}

        def call(client: Any) -> dict[str, Any]:
            answer = client.upload_part_copy(**name, UploadId=upload, PartNumber=number, CopySource=source)
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        return request("writing", to, call)

    _write_in_parts(to, len(paths), copy_part, lambda found: _parts_of(found) == len(paths))


def _write_in_parts(
    path: str,
    count: int,
    write_part: Callable[[str, int], dict[str, Any]],
    is_ours: Callable[[dict[str, Any]], bool],
    confirm: Callable[[], object] = lambda: None,
) -> None:
    """Write an object by a multipart upload. `write_part`: (upload id, number from 1) -> the entry of its list.

    `is_ours`: whether the object that HEAD describes so is the one that this upload has completed. `confirm`: see
    `put`.
    """
    bucket, key = _split(path)
    name = {"Bucket": bucket, "Key": key}
    upload = request("writing", path, lambda client: client.create_multipart_upload(**name)["UploadId"])

    def complete(client: Any) -> None:
        confirm()
        try:
            client.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})
        except client.exceptions.NoSuchUpload as error:  # the answer to an earlier attempt was lost
            try:
                found = client.head_object(**name)
            except client.exceptions.ClientError as missing:
                if missing.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    raise error from None
                raise
            if not is_ours(found):
                raise

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(partial(write_part, upload), range(1, count + 1)))
        request("writing", path, complete)
    except BaseException:
        with suppress(Exception):  # its parts are deleted; otherwise a rule of the bucket does it
            _client.get().abort_multipart_upload(**name, UploadId=upload)
        raise


def read(path: str) -> bytes:
    """Returns the content of an object. Raises FileNotFoundError when there is none."""
    bucket, key = _split(path)

    def call(client: Any) -> tuple[ObjectInfo, bytes | None]:
        answer = client.get_object(Bucket=bucket, Key=key)
        info = _info(answer)
        if info.size > _PART:  # its parts are read in parallel
            answer["Body"].close()
            return info, None
        return info, checked_length(answer["Body"].read(), info.size)

    info, data = request("reading", path, call)
    return _verified(path, info, data)


def read_whole(path: str, info: ObjectInfo) -> bytes:
    """Returns the content of the object that `info` describes."""
    return _verified(path, info, None)


def read_range(path: str, info: ObjectInfo, start: int, end: int) -> bytes:
    """Returns some bytes of the object that `info` describes. Raises StorageError if it has changed since."""
    if start >= end:
        return b""
    return request("reading", path, lambda client: _get_range(client, path, start, end, IfMatch=info.etag))


def read_end(path: str, length: int) -> tuple[ObjectInfo, bytes]:
    """Returns what S3 knows of an object, and its last `length` bytes, or all. Raises FileNotFoundError."""
    bucket, key = _split(path)

    def call(client: Any) -> tuple[ObjectInfo, bytes]:
        try:
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=-{length}")
        except client.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") != "InvalidRange":  # an empty object has no range
                raise
            return _info(client.head_object(Bucket=bucket, Key=key)), b""
        size = int(answer.get("ContentRange", "/0").rpartition("/")[2])
        info = _info(answer)._replace(size=size)
        return info, checked_length(answer["Body"].read(), min(length, size))

    info, data = request("reading", path, call)
    return info, _verified(path, info, data) if info.size <= length else data


def read_checked_range(path: str, start: int, end: int, is_correct: Callable[[bytes], bool]) -> bytes:
    """Returns some bytes of an object without asking for its size first; read again unless they are correct.

    Raises FileNotFoundError when there is no object, and StorageError.
    """
    if start >= end:
        return b""

    def call(client: Any) -> bytes:
        data = _get_range(client, path, start, end)
        if not is_correct(data):
            raise s3_errors.CutBody("its bytes do not match their checksum")
        return data

    return request("reading", path, call)


def _get_range(client: Any, path: str, start: int, end: int, **conditions: str) -> bytes:
    bucket, key = _split(path)
    answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **conditions)
    return checked_length(answer["Body"].read(), end - start)


def _read_in_parts(path: str, info: ObjectInfo, part: int) -> bytes:
    starts = range(0, info.size, part)
    with ThreadPoolExecutor(max(1, min(_THREADS, len(starts)))) as threads:
        ends = (min(start + part, info.size) for start in starts)
        return b"".join(threads.map(lambda start, end: read_range(path, info, start, end), starts, ends))


def _verified(path: str, info: ObjectInfo, data: bytes | None) -> bytes:
    """Returns `data`, the content of an object, or reads it; read again if it does not match the ETag.

    With some encryptions and on some stores the ETag is no digest: there, two successive reads in different ranges
    agree. The ranges alternate, so that what changes a byte of each answer never changes the same ones twice.
    """
    bucket, _ = _split(path)
    before: bytes | None = None
    other = min(info.size // 3 + 1, _PART // 2)
    parts = itertools.cycle([_PART, other] if data is None else [other, _PART])

    def call(_: Any) -> bytes:
        nonlocal data, before
        current = _read_in_parts(path, info, next(parts)) if data is None else data
        data = None
        if is_content(bucket, current, info.etag) is not False:
            return current
        if current == before:
            if bucket not in _with_digests:
                _without_digests.add(bucket)
            return current
        before = current
        raise s3_errors.CutBody("its bytes do not match its ETag")

    return request("reading", path, call)


def is_content(bucket: str, data: bytes, etag: str) -> bool | None:
    """Returns whether `data` is the content of the object with this ETag; None if the ETag does not say so."""
    matches = None if bucket in _without_digests else _matches(data, etag)
    if matches:
        _with_digests.add(bucket)
    return matches


def has_digests(bucket: str) -> bool:
    """Returns whether an ETag in this bucket was the MD5 of the content that this process has read."""
    return bucket in _with_digests


def _matches(data: bytes, etag: str) -> bool | None:
    """Returns whether the ETag is the MD5 of the data; None if it cannot be, as with parts of an unknown size."""
    digest, _, parts = etag.strip('"').partition("-")
    if len(digest) != 32 or (parts and int(parts) != -(-len(data) // _PART)):
        return None
    return etag.strip('"') == (_etag_of_parts(memoryview(data)) if parts else _md5(data).hexdigest())


def has_no_digest(found: dict[str, Any]) -> bool:
    """Returns whether an object's ETag says nothing of its content, because of its encryption."""
    return str(found.get("ServerSideEncryption")).startswith("aws:kms") or "SSECustomerAlgorithm" in found


def _parts_of(found: dict[str, Any]) -> int:
    """Returns the number of parts that an object was uploaded in, as its ETag has it; 0 if it was written whole."""
    return int(found["ETag"].strip('"').partition("-")[2] or 0)


def _etag_of_parts(data: memoryview) -> str:
    """Returns the ETag of an object that `put` has written in parts."""
    digests = [_md5(data[start : start + _PART]).digest() for start in range(0, len(data), _PART)]
    return f"{_md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _md5(data: bytes | memoryview) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def checked_length(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise s3_errors.CutBody(f"{len(data)} of {length} bytes")
    return data


def _info(answer: dict[str, Any]) -> ObjectInfo:
    is_of_whole = answer.get("ChecksumType") == "FULL_OBJECT"  # otherwise a digest of the digests of parts
    sha256 = base64.b64decode(answer.get("ChecksumSHA256", "")).hex() if is_of_whole else ""
    return ObjectInfo(int(answer["ContentLength"]), answer["ETag"], answer["LastModified"], sha256)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key
