"""Requests to a real S3 server behind a proxy that fails: they are repeated, or fail with their true cause."""

import hashlib
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from urllib3.exceptions import DecodeError, SSLError
from urllib3.response import HTTPResponse

from cloze.pipeline.core import retries, s3
from cloze.pipeline.core.conditional_writes import replace
from cloze.pipeline.core.errors import StorageError, UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.signals import interrupted
from cloze.pipeline.core.storage import Location
from tests.conftest import free_port
from tests.pod_identity import AUTHORIZATION, pod_identity
from tests.s3_proxy import Fault, Proxy

pytestmark = pytest.mark.usefixtures("short_s3_waits")


@pytest.fixture
def file(s3_bucket: str, proxy: Proxy) -> Location:
    location = Location(f"{s3_bucket}/faults-{time.monotonic_ns()}/deep/file.bin")
    location.write_bytes(CONTENT)
    return location


CONTENT = os.urandom(100_000)
_RUN_SECONDS = 310.0  # of the campaign's test of credentials, each valid for a minute
TEMPORARY = ["503", "500", "SlowDown", "reset", "hang", "cut", "flipped"]


@pytest.mark.parametrize("kind", TEMPORARY)
@pytest.mark.parametrize("operation", ["read", "stream", "write", "look up", "list", "delete"])
def test_a_fault_that_ends_costs_only_time(file: Location, proxy: Proxy, kind: str, operation: str) -> None:
    proxy.faults.append(fault := Fault(kind, times=2))
    if operation == "read":
        assert file.read_bytes() == CONTENT
    elif operation == "stream":
        with file.open() as opened:
            assert opened.read(10) + opened.read() == CONTENT
    elif operation == "write":
        file.write_bytes(CONTENT[::-1])
    elif operation == "look up":
        assert file.size() == len(CONTENT) and file.exists()
    elif operation == "list":
        folder = Location(file.uri.rpartition("/deep")[0])
        assert folder.files() == [file] and folder.folders() == [folder / "deep"]
    else:
        file.delete()
    assert fault.hits == 2 or (kind in ("cut", "flipped") and fault.hits <= 2)
    proxy.faults.clear()
    assert file.exists() == (operation != "delete")
    if operation != "delete":
        assert file.read_bytes() == (CONTENT[::-1] if operation == "write" else CONTENT)


@pytest.mark.parametrize("operation", ["whole", "parts"])
def test_a_write_whose_answer_is_lost_has_been_written(
    file: Location, proxy: Proxy, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.faults.append(fault := Fault("lost answer", times=1, after=2 if operation == "parts" else 0))
    if operation == "parts":
        monkeypatch.setattr(s3, "_PART", 5 << 20)
    content = os.urandom(11 << 20) if operation == "parts" else b"other"
    file.write_bytes(content)
    assert fault.hits == 1 and file.read_bytes() == content


@pytest.mark.parametrize("kind", ["file", "large file", "record"])
def test_each_request_that_makes_a_file_visible_is_confirmed(
    file: Location, proxy: Proxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may take over while a request is repeated, or while parts are uploaded."""
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    new, confirmed = Location(f"{file}-new"), list[list[str]]()
    data = os.urandom(11 << 20 if kind == "large file" else 9)

    def confirm() -> None:
        confirmed.append([method for method, path in proxy.requests if "bin-new" in path])
        if len(confirmed) == 2:
            raise UserError("another run has taken over")

    methods = "POST" if kind == "large file" else "PUT"
    proxy.faults.append(fault := Fault("503", path="uploadId" if methods == "POST" else "bin-new", methods=methods))
    proxy.requests.clear()
    with pytest.raises(UserError, match="taken over"):
        replace(new, data, confirm) if kind == "record" else new.write_bytes(data, confirm)
    assert fault.hits == 1 and not new.exists()
    sent = ["POST", "PUT", "PUT", "PUT"] if kind == "large file" else []
    assert confirmed == [sent, [*sent, methods]]


@pytest.mark.parametrize("size", [11 << 20, (11 << 20) + 1])
def test_an_encrypted_object_whose_answer_is_lost_has_been_written(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """With SSE-KMS the ETag is no digest: size and number of parts have to do."""

    def encrypted(parsed: dict[str, Any], **_: object) -> None:
        parsed |= {"ServerSideEncryption": "aws:kms", "ETag": f'"{"0" * 32}-3"', "ContentLength": 11 << 20}

    s3._client.get().meta.events.register("after-call.s3.HeadObject", encrypted)
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    proxy.faults += [Fault(kind, path="uploadId", methods="POST") for kind in ("lost answer", "404 NoSuchUpload")]
    if size == 11 << 20:
        file.write_bytes(content := os.urandom(size))
        assert [fault.hits for fault in proxy.faults] == [1, 1] and file.read_bytes() == content
    else:
        with pytest.raises(StorageError, match="the unfinished upload was deleted meanwhile"):
            file.write_bytes(os.urandom(size))


@pytest.mark.parametrize("methods", ["PUT", "POST"])
def test_an_upload_that_is_deleted_meanwhile_is_no_missing_file(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, methods: str
) -> None:
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    proxy.faults.append(Fault("404 NoSuchUpload", times=float("inf"), path="uploadId", methods=methods))
    with pytest.raises(StorageError, match="writing failed: the unfinished upload was deleted meanwhile"):
        Location(f"{file}-new").write_bytes(os.urandom(11 << 20))


@pytest.mark.parametrize("after", range(1, 5))
def test_each_request_of_a_large_object_is_repeated(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    content = os.urandom(12 << 20)
    proxy.faults.append(Fault("lost answer", path="file.bin", after=after - 1))
    file.write_bytes(content)
    proxy.faults.append(Fault("cut", path="file.bin", after=after - 1))
    assert file.read_bytes() == content
    with file.open() as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    assert digest.digest() == hashlib.sha256(content).digest()


def test_changed_bytes_are_never_returned_however_often(file: Location, proxy: Proxy) -> None:
    proxy.faults.append(fault := Fault("flipped", times=4, path="file.bin"))
    assert file.read_bytes() == CONTENT and fault.hits == 4


@pytest.fixture
def unknown_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not known yet whether the ETags of the bucket are digests."""
    monkeypatch.setattr(s3, "_with_digests", set())
    monkeypatch.setattr(s3, "_without_digests", set())


@pytest.mark.parametrize("size", [2, 3, 4, 100_000])
@pytest.mark.parametrize("end_first", [False, True])
def test_bytes_that_change_in_each_answer_are_never_returned(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, unknown_digests: None, end_first: bool, size: int
) -> None:
    """On Amazon ranges have no checksum. The same byte of each answer changes."""
    file.write_bytes(CONTENT[:size])
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    monkeypatch.setattr(s3, "_client", s3._Client())
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "1")
    proxy.faults.append(fault := Fault("flipped", times=float("inf"), path="file.bin"))
    with pytest.raises(StorageError, match="the answer was cut or changed on the way"), file.open(end_first) as opened:
        opened.read()
    assert fault.hits > 1 and not s3._without_digests


@pytest.mark.parametrize("known", [False, True])
def test_the_content_is_still_compared_in_a_bucket_where_an_etag_was_its_digest(
    file: Location, unknown_digests: None, known: bool
) -> None:
    """The ETag of one object is no digest, because of its encryption."""
    if known:
        assert file.read_bytes() == CONTENT

    def encrypted(parsed: dict[str, Any], **_: object) -> None:
        parsed["ETag"] = f'"{"0" * 32}"'

    for operation in ("GetObject", "HeadObject"):
        s3._client.get().meta.events.register(f"after-call.s3.{operation}", encrypted)
    s3._client.get().meta.events.register(
        "before-parameter-build.s3.GetObject", lambda params, **_: params.pop("IfMatch", 0)
    )
    assert file.read_bytes() == CONTENT
    assert bool(s3._without_digests) != known


@pytest.mark.parametrize("error", [SSLError("decryption failed or bad record mac"), DecodeError("not gzip")])
def test_an_error_of_the_connection_while_a_body_is_read_costs_only_time(
    file: Location, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, broken = HTTPResponse.read, [True]

    def read(response: HTTPResponse, *arguments: Any, **more: Any) -> bytes:
        if response.status == 200 and broken and broken.pop():
            raise error
        return real(response, *arguments, **more)

    monkeypatch.setattr(HTTPResponse, "read", read)
    assert file.read_bytes() == CONTENT and not broken
    broken.append(True)
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "0")
    with pytest.raises(StorageError, match=f"the connection was cut .*{error}"):
        file.read_bytes()


@pytest.mark.parametrize(
    ("kind", "operation", "words"),
    [
        ("SlowDown", "read", r"reading failed for \d s: S3 is throttling \(503 SlowDown\)"),
        ("503", "read", r"reading failed for \d s: S3 has an internal error \(503 ServiceUnavailable\)"),
        ("500", "write", r"writing failed for \d s: S3 has an internal error \(500 InternalError\)"),
        ("reset", "list", r"listing failed for \d s: the connection was cut"),
        ("hang", "look up", r"looking up failed for \d s: S3 does not answer"),
        ("cut", "read", r"reading failed for \d s: the answer was cut or changed on the way"),
        ("denied", "write", r"writing failed: access is denied \(403 AccessDenied\); the credentials need permission"),
        ("denied", "look up", r"looking up failed: access is denied \(403 AccessDenied\)"),
        (
            "403 InvalidAccessKeyId",
            "read",
            r"reading failed: the access key is not known there \(.*\); check AWS_ACCESS",
        ),
        ("403 SignatureDoesNotMatch", "write", r"writing failed: the secret key .*; check AWS_SECRET_ACCESS_KEY"),
        ("403 RequestTimeTooSkewed", "look up", r"looking up failed: the clocks .* differ \(.*\); set this machine's"),
        ("403 InvalidObjectState", "read", r"reading failed: the object is archived .*; restore it"),
        ("400 InvalidToken", "list", r"listing failed: the session token is not valid .*; check AWS_SESSION_TOKEN"),
        ("507 XMinioStorageFull", "write", r"writing failed: the store is full \(507 XMinioStorageFull\); free some"),
        ("expired", "look up", r"looking up failed.*: the credentials have expired \(400 ExpiredToken\); renew them"),
    ],
)
def test_a_fault_that_stays_is_named_with_its_cause(
    file: Location, proxy: Proxy, kind: str, operation: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "1.2")
    proxy.faults.append(Fault(kind, times=float("inf")))
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"^s3://.*: {words}") as caught:
        {"read": file.read_bytes, "write": lambda: file.write_bytes(b""), "list": file.files, "look up": file.size}[
            operation
        ]()
    assert "\n" not in str(caught.value) and "--force" not in str(caught.value)
    assert time.monotonic() - started < 5


def test_a_key_that_may_not_be_deleted_needs_permission(file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3._client.get()
    refused = {"Errors": [{"Key": "a", "Code": "AccessDenied", "Message": "Access Denied"}]}
    monkeypatch.setattr(client, "delete_objects", lambda **_: refused)
    with pytest.raises(StorageError, match=r"deleting failed: access is denied \(AccessDenied\); the credentials need"):
        Location(file.uri.rpartition("/deep")[0]).delete()


@pytest.mark.parametrize(
    ("lifetime", "seconds"), [(1.0, 3.0), pytest.param(60.0, _RUN_SECONDS, marks=pytest.mark.campaign)]
)
def test_credentials_of_a_pod_are_renewed(
    s3_bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetime: float, seconds: float
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text(AUTHORIZATION)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    with pod_identity(lifetime) as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        monkeypatch.setattr(proxy, "is_valid", agent.is_valid)
        end, file = time.monotonic() + seconds, Location(f"{s3_bucket}/{tmp_path.name}")
        while time.monotonic() < end:
            file.write_bytes(CONTENT)
            assert file.read_bytes() == CONTENT
            time.sleep(0.3)
        assert len(agent.expires) >= seconds / lifetime
        agent.failures = 5  # botocore itself tries three times
        file.delete()
        proxy.faults.append(fault := Fault("expired", times=2))  # a clock that differs
        assert not file.exists() and fault.hits == 2


def test_credentials_that_nothing_renews_are_said_to_be_expired_at_once(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "is_valid", lambda token: False)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"the credentials have expired \(400 ExpiredToken\); renew them"):
        file.read_bytes()
    assert time.monotonic() - started < 3


def test_without_credentials_the_line_says_so(file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3, "_client", s3._Client())
    with pytest.raises(StorageError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        file.read_bytes()


def test_missing_objects_and_buckets_are_named_at_once(file: Location, proxy: Proxy) -> None:
    with pytest.raises(FileNotFoundError, match=r"is missing: 's3://.*/nothing'"):
        (file / "nothing").read_bytes()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a: .* the bucket does not exist \(404 NoSuchBucket\)"):
        Location("s3://no-such-bucket/a").write_bytes(b"")
    with pytest.raises(StorageError, match=r"the bucket does not exist \(404 NoSuchBucket\); create it"):
        Location("s3://no-such-bucket/a").exists()


@pytest.fixture
def closed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A folder on a server that cannot be reached, and has never answered."""
    monkeypatch.setattr(s3, "_client", s3._Client())
    monkeypatch.setattr(retries, "_answered", threading.Event())
    monkeypatch.setattr(retries, "_FIRST_CONTACT_SECONDS", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    return Location(s3_bucket) / "toy" / "0123"


def test_a_server_that_never_answers_is_given_up_soon(closed: Location) -> None:
    with pytest.raises(StorageError, match=r"S3 cannot be reached .*; check AWS_ENDPOINT_URL"):
        (closed / "a").read_bytes()


def test_a_worker_that_starts_while_the_server_cannot_be_reached_waits_as_its_driver_does(
    closed: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retries.SETTING, "2")
    out: Output = pickle.loads(pickle.dumps(Output(closed, "toy", 1, "0123")))
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"S3 cannot be reached"):
        out.write_file("a", b"")
    assert time.monotonic() - started > 1.9


def test_an_interrupt_ends_the_waiting(file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "60")
    monkeypatch.setattr(retries, "_FIRST_DELAY", 30.0)
    proxy.faults.append(Fault("SlowDown", times=float("inf")))
    threading.Timer(0.3, interrupted.set).start()
    started = time.monotonic()
    try:
        with pytest.raises(StorageError, match="throttling"):
            file.read_bytes()
    finally:
        interrupted.clear()
    assert time.monotonic() - started < 3


def test_waiting_is_reported_to_the_innermost_listener(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_NOTE_SECONDS", 0.0)
    proxy.faults.append(Fault("SlowDown", times=3))
    outer, inner = list[str](), list[str]()
    with retries.reporting_waits(outer.append), retries.reporting_waits(inner.append):
        assert file.read_bytes() == CONTENT
    assert inner and all(line.startswith("S3 is throttling, retrying for 0 s (up to 5 s)") for line in inner)
    assert not outer


def test_a_wrong_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "5 min")
    with pytest.raises(UserError, match=r"^CLOZE_S3_RETRY_SECONDS=5 min: is not a number of seconds"):
        retries.retry_seconds()
