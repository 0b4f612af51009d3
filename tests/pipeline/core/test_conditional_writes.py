"""Conditional writes on S3 whose answers are lost, and on a disk."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from cloze.pipeline.core import s3
from cloze.pipeline.core.conditional_writes import create, delete, put, read, replace
from cloze.pipeline.core.lease_files import Owner, lease_file
from cloze.pipeline.core.leases import hold_lease, refuse_to_wait
from cloze.pipeline.core.retries import SETTING
from cloze.pipeline.core.storage import Location
from tests.conftest import free_port
from tests.s3_proxy import Fault, Proxy

Lose = Callable[..., list[str]]


@pytest.fixture
def lose(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Lose:
    """Loses the answers of an operation, after the server has done what it asks for. Returns those that were lost."""

    def install(operation: str, times: int, patience: float) -> list[str]:
        monkeypatch.setenv(SETTING, str(patience))
        client = s3._client._create()
        lost: list[str] = []

        def send(request: Any, **_: object) -> None:
            if len(lost) < times:
                client._endpoint.http_session.send(request)
                lost.append(request.url)
                raise ConnectionClosedError(endpoint_url=request.url)

        client.meta.events.register(f"before-send.s3.{operation}", send)
        monkeypatch.setattr(s3._client, "_client", client)
        return lost

    return install


@pytest.fixture
def file(s3_bucket: str) -> Location:
    return Location(s3_bucket) / f"conditional-{time.monotonic_ns()}"


@pytest.mark.parametrize("patience", [0, 60])  # seconds: the request is given up, or sent again
def test_a_write_whose_answer_was_lost_has_taken_effect(file: Location, lose: Lose, patience: float) -> None:
    lost = lose("PutObject", 1, patience)
    first = put(file, b"one", None)
    assert lost and first == file.etag() and put(file, b"two", None) is None
    lost = lose("PutObject", 1, patience)
    second = put(file, b"two", first)
    assert lost and second == file.etag() and put(file, b"three", first) is None
    lost = lose("PutObject", 1, patience)
    assert replace(file, b"three", lambda: None) and lost and file.read_bytes() == b"three"


def test_a_deletion_whose_answer_was_lost_has_taken_effect(file: Location, lose: Lose) -> None:
    etag = put(file, b"one", None)
    lost = lose("DeleteObject", 1, 60)
    assert etag and delete(file, etag) and lost and not file.exists()


@pytest.mark.parametrize("patience", [0, 60])
def test_a_lease_outlives_lost_answers(
    file: Location, lose: Lose, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloze.pipeline.core.leases._HEARTBEAT", 0.02)
    monkeypatch.setattr("cloze.pipeline.core.leases._supported", {"/".join(file.uri.split("/")[:3]): True})
    lost = lose("PutObject", 4, patience)  # of the claim and of heartbeats
    with hold_lease(file / "toy/0", refuse_to_wait(file)) as lease:
        assert lease
        deadline = time.monotonic() + 20
        while len(lost) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        lease.check()
    assert len(lost) == 4 and (file / "toy/0").files() == []


def test_a_store_that_ignores_the_condition_of_a_deletion_keeps_the_lease_of_another(
    file: Location, proxy: Proxy
) -> None:
    first, second = (Owner(token=token, attempt=attempt) for attempt, token in enumerate(("first", "second"), 1))
    suspended, current = lease_file(file), lease_file(file)
    assert suspended.claim(first, None) and current.claim(second, current.read())
    proxy.faults.append(Fault("no conditions", times=float("inf"), methods="DELETE"))
    suspended.release(first)
    held = current.read()
    assert held and held.owner.token == "second"
    current.release(second)
    assert current.read() is None


def test_a_store_without_conditional_deletions_releases_a_lease(file: Location, proxy: Proxy) -> None:
    owner, lease = Owner(token="own", attempt=1), lease_file(file)
    assert lease.claim(owner, None)
    proxy.faults.append(fault := Fault("501 NotImplemented", methods="DELETE"))
    lease.release(owner)
    assert fault.hits == 1 and lease.read() is None


def test_a_deletion_of_another_version_is_refused(file: Location) -> None:
    first = put(file, b"one", None)
    assert first and put(file, b"two", first)
    assert not delete(file, first) and file.read_bytes() == b"two"


def test_a_missing_object_is_none_and_a_missing_bucket_an_error(file: Location) -> None:
    assert read(file) is None and put(file, b"one", '"0"') is None
    with pytest.raises(OSError, match="the bucket does not exist"):
        put(Location("s3://no-such-bucket/a"), b"one", None)


def test_an_s3_that_does_not_answer_is_an_os_error(file: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv(SETTING, "0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    monkeypatch.setattr(s3._client, "_client", s3._client._create())
    with pytest.raises(OSError, match=closed):
        create(file, b"one")


@pytest.mark.parametrize("times", [1, float("inf")])
def test_bytes_that_are_changed_on_the_way_are_no_version(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    """A store without checksums: an unknown owner of a lease would be replaced."""
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    monkeypatch.setattr(s3, "_client", s3._Client())
    monkeypatch.setenv(SETTING, "3")
    etag = put(file, b"one", None)
    assert read(file) == (b"one", etag)
    proxy.faults.append(fault := Fault("flipped", times=times))
    if times == 1:
        assert read(file) == (b"one", etag) and fault.hits == 1
    else:
        with pytest.raises(
            OSError, match=r"the answer was cut or changed on the way \(its bytes do not match its ETag"
        ):
            read(file)


def test_an_encrypted_version_is_read_once_and_another_without_a_digest_twice(
    file: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_with_digests", set())
    put(file, b"one", None)
    changes = {"ServerSideEncryption": "aws:kms", "ETag": f'"{0:032x}"'}
    s3._client.get().meta.events.register("after-call.s3.GetObject", lambda parsed, **_: parsed.update(changes))
    proxy.requests.clear()
    assert read(file) == (b"one", changes["ETag"]) and len(proxy.requests) == 1
    del changes["ServerSideEncryption"]
    assert read(file) == (b"one", changes["ETag"]) and len(proxy.requests) == 3


def test_of_several_writers_one_creates_a_file(folder: str) -> None:
    file, created, start = Location(folder) / "a", list[str](), threading.Barrier(4)

    def write(text: str) -> None:
        start.wait()
        if create(file, text.encode()):
            created.append(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == [file.read_text()] or file.is_s3  # moto compares and writes in two steps


def test_what_confirm_raises_keeps_the_file_as_it_was(folder: str) -> None:
    file = Location(folder) / "a"

    def refuse() -> None:
        raise KeyboardInterrupt

    for before in (None, b"one"):
        if before:
            file.write_bytes(before)
        with pytest.raises(KeyboardInterrupt):
            replace(file, b"two", refuse)
        assert not file.exists() if before is None else file.read_bytes() == before
    assert not list(Path(folder).glob(".*"))
