"""Leases on an S3 that fails, lies or ignores conditions."""

import signal
import threading
import time

import pytest

from cloze.pipeline.core import conditional_writes, leases, retries, s3
from cloze.pipeline.core.errors import StorageError
from cloze.pipeline.core.lease_files import Held, Owner, S3LeaseFile, lease_file
from cloze.pipeline.core.leases import LeaseLost, hold_lease
from cloze.pipeline.core.storage import Location
from tests.pipeline.core.test_leases import claimed, enter, impatient, no_wait, wait_until  # noqa: F401 (a fixture)
from tests.s3_proxy import Fault, Proxy

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens of the claims on S3 that are made."""
    tokens, real = list[str](), S3LeaseFile.claim

    def claim(file: S3LeaseFile, owner: Owner, over: Held | None) -> bool:
        tokens.append(owner.token)
        return real(file, owner, over)

    monkeypatch.setattr(S3LeaseFile, "claim", claim)
    return tokens


def test_an_owner_is_not_replaced_while_s3_answers_no_writes(
    s3_bucket: str,
    proxy: Proxy,
    short_s3_waits: None,
    claims: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither its heartbeats nor the other's claim have an effect: the first to repeat its request would win."""
    monkeypatch.setenv(retries.SETTING, "60")
    monkeypatch.setattr(retries, "_LONGEST_DELAY", 0.1)
    monkeypatch.setattr(leases, "_TIMEOUT", 3.0)
    artifact, seen = Location(f"{s3_bucket}/storm-{time.monotonic_ns()}"), list[Owner]()
    with no_wait(artifact) as lease:
        assert lease
        waiting = threading.Thread(target=enter, args=(artifact, seen))
        waiting.start()
        wait_until(lambda: bool(seen))
        proxy.faults.append(Fault("503", times=float("inf"), methods="PUT"))
        time.sleep(5)
        assert claims == [lease.token]
        proxy.faults.clear()
        time.sleep(1)
        lease.check()
    waiting.join(60)
    assert len(claims) == 2 and artifact.files() == []


def test_a_claim_without_an_answer_is_made_again_after_as_long_a_silence(
    s3_bucket: str, proxy: Proxy, claims: list[str]
) -> None:
    artifact = Location(f"{s3_bucket}/silent-{time.monotonic_ns()}")
    claimed(artifact)
    proxy.faults.append(fault := Fault("503", path="lease.json", methods="PUT", after=1))  # the first asks for answers
    started = time.monotonic()
    with hold_lease(artifact, lambda _: None) as lease:
        assert (
            lease
            and fault.hits == 1
            and claims == ["77-1", lease.token, lease.token]
            and time.monotonic() - started > 1.0
        )


def test_heartbeats_are_sent_while_the_store_is_probed(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_supported", {})
    monkeypatch.setattr(retries, "_LONGEST_DELAY", 0.1)
    artifact = Location(f"{s3_bucket}/probed-{time.monotonic_ns()}")
    proxy.faults.append(Fault("503", times=float("inf"), path="lease.json-", methods="PUT"))
    waiting = threading.Thread(target=enter, args=(artifact, []))
    waiting.start()
    wait_until(lambda: bool((held := lease_file(artifact).read()) and held.owner.heartbeat > 2))
    assert not leases._supported
    proxy.faults.clear()
    waiting.join(20)
    assert leases._supported == {s3_bucket: True} and artifact.files() == []


def test_a_lost_lease_is_named_though_s3_fails_after_the_interrupt(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        proxy.faults.append(Fault("503", times=float("inf")))
        raise KeyboardInterrupt

    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "0")
    artifact, before = Location(f"{s3_bucket}/lost-{time.monotonic_ns()}"), signal.signal(signal.SIGINT, fail)
    try:
        with pytest.raises(LeaseLost, match="process 77 on another took over"), no_wait(artifact):
            claimed(artifact, over=lease_file(artifact).read())
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_that_fails_as_s3_does_ends_without_further_waits_for_s3(
    s3_bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOZE_S3_RETRY_SECONDS", "4")
    artifact, failed = Location(f"{s3_bucket}/failing-{time.monotonic_ns()}"), list[float]()
    with pytest.raises(StorageError, match=r"a: writing failed for \d s"), no_wait(artifact):
        proxy.faults.append(Fault("503", times=float("inf")))
        try:
            (artifact / "a").write_bytes(b"")
        finally:
            failed.append(time.monotonic())
    assert time.monotonic() - failed[0] < 3.5, "less than one more patience"


def test_a_claim_that_is_overwritten_by_another_at_once_is_refused(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a store that compares and writes in two steps, both have succeeded."""
    artifact, real = Location(f"{s3_bucket}/both-{time.monotonic_ns()}"), conditional_writes.put

    def put(file: Location, data: bytes, etag: str | None) -> str | None:
        written = real(file, data, etag)
        file.write_bytes(Owner(token="other", attempt=1).model_dump_json().encode())
        return written

    monkeypatch.setattr(conditional_writes, "put", put)
    assert not lease_file(artifact).claim(Owner(token="own", attempt=1), None)


@pytest.mark.parametrize(
    "ignored", ["If-None-Match", "If-Match", "both", "If-Match without an object", "not implemented"]
)
def test_a_store_without_conditional_writes_is_reported_once_and_work_goes_on(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ignored: str
) -> None:
    from botocore.exceptions import ClientError

    client = s3._client._create()
    real = client.put_object

    def put_object(**request: object) -> object:
        if ignored == "not implemented":
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, "PutObject")  # pyright: ignore[reportArgumentType]
        if ignored == "If-Match without an object" and Location(f"{s3_bucket}/{request['Key']}").exists():
            return real(**request)
        kept = {"If-None-Match": ["IfMatch"], "If-Match": ["IfNoneMatch"]}.get(ignored, [])
        return real(**{key: value for key, value in request.items() if key[:2] != "If" or key in kept})

    monkeypatch.setattr(client, "put_object", put_object)
    monkeypatch.setattr(s3._client, "_client", client)
    monkeypatch.setattr(leases, "_supported", {})
    folder = Location(s3_bucket) / f"ignoring-{time.monotonic_ns()}"
    for name in ("a", "b"):
        with no_wait(folder / name) as lease:
            assert lease is None
    message = f"warning: {s3_bucket} ignores conditional writes: two runs at once are not kept apart\n"
    assert capsys.readouterr().err == message and folder.files() == []


def test_the_probe_of_a_store_is_made_once(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[Location] = []
    real = conditional_writes.honours_conditions
    monkeypatch.setattr(
        conditional_writes, "honours_conditions", lambda file, data: probes.append(file) or real(file, data)
    )
    monkeypatch.setattr(leases, "_supported", {})
    for name in ("a", "b"):
        with no_wait(Location(s3_bucket) / f"probed-{time.monotonic_ns()}" / name) as lease:
            assert lease
    assert len(probes) == 1
