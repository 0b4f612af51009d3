"""A root or a source on S3 -> whether it can be used with the credentials at hand, and how fast it answers."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any

from cloze.infra.display import duration
from cloze.infra.doctor.check import Check, from_error, missing, ok, warning
from cloze.pipeline.core import conditional_writes, retries, s3
from cloze.pipeline.core.storage import Location, find_files

_RETRY_SECONDS = "2"  # a request is repeated: long enough for a single failure of the server
_MAX_SKEW, _NOTABLE_SKEW = 900.0, 60.0  # seconds: S3 refuses signatures that are 15 minutes off
_SLOW_SECONDS = 0.2  # of a request: the data stages send thousands, 64 at once
_SHORT_LIFE = 3600.0  # seconds that credentials still live, after which nothing renews them
_CONTENT = b"cloze doctor"
#: botocore's name of where credentials come from -> the words for it.
_PROVIDERS = {
    "env": "environment variables",
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a web identity (IRSA)",
    "sso": "single sign-on",
    "container-role": "the container's agent (ECS or EKS Pod Identity)",
    "iam-role": "the instance's role (EC2)",
    "login": "aws login",
    "custom-process": "a credential_process",
}


def store_checks(root: Location, sources: list[str]) -> Iterator[Check]:
    """Returns the checks of the root and of the sources, as far as they are on S3. An object is written to the root and
    deleted.
    """
    if not root.is_s3 and not sources:
        return
    with _short_retries():
        yield (credentials := _credentials())
        if credentials.state == "missing":
            yield warning("bucket", "not checked without credentials", "get credentials first")
            return
        if root.is_s3:
            yield from _root_checks(root)
        for pattern in sources:
            yield _source(pattern)


def _credentials() -> Check:
    """Returns where the credentials come from, and whether they end before a run does."""
    from boto3.session import Session
    from botocore.credentials import RefreshableCredentials
    from botocore.exceptions import BotoCoreError

    check = "credentials"
    try:
        credentials = Session().get_credentials()
        if credentials is None:
            fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return missing(check, "there are none", fix)
        token = credentials.get_frozen_credentials().token
    except (BotoCoreError, RuntimeError, OSError) as error:  # RuntimeError: renewed ones have expired, too
        fix = "renew them, or correct AWS_PROFILE, AWS_ROLE_ARN or AWS_CONTAINER_CREDENTIALS_FULL_URI"
        return missing(check, f"cannot be obtained: {' '.join(str(error).split())}", fix)
    method = str(credentials.method)
    provider = f"from {_PROVIDERS.get(method, method)}"
    fix = "use a role or a profile, which is renewed, or get new keys before long runs"
    if isinstance(credentials, RefreshableCredentials):
        left = (credentials._expiry_time - datetime.now(UTC)).total_seconds()
        if method != "env":
            return ok(check, f"{provider}, renewed automatically; these are valid for {duration(left)}")
        if left < _SHORT_LIFE:
            return warning(check, f"{provider}, valid for {duration(left)} only; nothing renews them", fix)
        return ok(check, f"{provider}, valid for {duration(left)}")
    if token and method == "env":
        return warning(check, f"{provider}, with a session token: they expire, and nothing renews them", fix)
    return ok(check, provider)


def _root_checks(root: Location) -> Iterator[Check]:
    rest = "read, write, delete"
    try:
        yield from _endpoint(root)
        s3.is_folder(root.path)
        yield ok("list", f"{root} can be listed")
        probe = root / f"doctor-{uuid.uuid4().hex}"
        probe.write_bytes(_CONTENT)
        yield ok("write", "an object can be written")
    except OSError as error:
        yield from_error("bucket", error)
        yield warning(rest, "not checked", "fix the line above first")
        return
    for check, operation in (("read", _read), ("conditional writes", _conditions), ("delete", _delete)):
        try:
            yield operation(probe)
        except OSError as error:
            yield from_error(check, error)


def _endpoint(root: Location) -> Iterator[Check]:
    """Returns whether a server answers, and whether its clock and this machine's agree."""
    from botocore.exceptions import ClientError

    def call(client: Any) -> tuple[str, str]:
        try:
            answer = client.head_bucket(Bucket=root.path.partition("/")[0])
        except ClientError as error:  # also a refusal has a date
            answer = error.response
        return client.meta.endpoint_url, answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")

    url, date = s3.request("looking up", root.path, call)
    yield ok("endpoint", f"{url} answers")
    if date:
        yield clock(parsedate_to_datetime(date).timestamp() - time.time())


def clock(difference: float) -> Check:
    """Returns whether S3 accepts signatures of this machine, whose clock is some seconds behind the server's."""
    if abs(difference) < _NOTABLE_SKEW:
        return ok("clock", "agrees with S3")
    found = f"is {duration(abs(difference))} {'behind' if difference > 0 else 'ahead of'} S3"
    fix = "set it: timedatectl set-ntp true"
    if abs(difference) < _MAX_SKEW:
        return warning("clock", found, fix)
    return missing("clock", f"{found}, which refuses requests from 15 minutes on", fix)


def _read(probe: Location) -> Check:
    seconds = list[float]()
    for _ in range(3):
        start = time.monotonic()
        if probe.read_bytes() != _CONTENT:
            return missing("read", f"{probe} has another content than was written", "use another store")
        seconds.append(time.monotonic() - start)
    found = f"an object is read in {1000 * median(seconds):.0f} ms"
    if median(seconds) > _SLOW_SECONDS:
        return warning("read", f"{found}: runs here will be slow", "run near the bucket, for example with cloze submit")
    return ok("read", found)


def _conditions(probe: Location) -> Check:
    try:
        honoured = conditional_writes.honours_conditions(probe, _CONTENT)
    except conditional_writes.Unsupported:
        honoured = False
    if honoured:
        return ok("conditional writes", "are honoured: two runs at once are kept apart")
    fix = "start one run at a time, or use a store that has them: Amazon S3, MinIO since August 2025"
    return warning("conditional writes", "are ignored: two runs at once are not kept apart", fix)


def _delete(probe: Location) -> Check:
    s3.delete(probe.path)
    return ok("delete", "an object can be deleted")


def _source(pattern: str) -> Check:
    """Returns whether the files can be listed and the first of them can be read."""
    check = "source"
    try:
        first, *others = find_files(pattern)
        s3.read_range(first.path, first.object_info(), 0, min(1, first.size()))
    except (ValueError, OSError) as error:
        return from_error(check, error)
    return ok(check, f"{pattern}: {1 + len(others)} readable" if others else f"{pattern} is readable")


@contextmanager
def _short_retries() -> Iterator[None]:
    """Failed requests are repeated for a short time only."""
    before = os.environ.get(retries.SETTING)
    os.environ[retries.SETTING] = _RETRY_SECONDS
    try:
        yield
    finally:
        del os.environ[retries.SETTING]
        if before is not None:
            os.environ[retries.SETTING] = before
