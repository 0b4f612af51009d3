import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cloze.infra.doctor import store
from cloze.infra.doctor.check import Check
from cloze.infra.doctor.store import clock, store_checks
from cloze.pipeline.core import s3
from cloze.pipeline.core.storage import Location
from tests.conftest import free_port
from tests.pod_identity import AUTHORIZATION, pod_identity
from tests.s3_proxy import Fault, Proxy


@pytest.fixture
def root(s3_bucket: str, proxy: Proxy) -> Location:
    return Location(f"{s3_bucket}/doctor-{time.monotonic_ns()}")


def results(root: Location, *sources: str) -> dict[str, Check]:
    return {check.check: check for check in store_checks(root, list(sources))}


def states(root: Location, *sources: str) -> dict[str, str]:
    return {name: check.state for name, check in results(root, *sources).items()}


def test_a_usable_root_is_ok_and_is_left_as_it_was(root: Location) -> None:
    found = results(root)
    names = ["credentials", "endpoint", "clock", "list", "write", "read", "conditional writes", "delete"]
    assert {name: check.state for name, check in found.items()} == dict.fromkeys(names, "ok")
    assert found["credentials"].found == "from environment variables"
    assert root.files() == []


def test_without_s3_nothing_is_checked(tmp_path: Path) -> None:
    assert states(Location(str(tmp_path))) == {}


def test_a_bucket_that_does_not_exist_is_named(proxy: Proxy) -> None:
    found = results(Location("s3://no-such-bucket/runs"))
    assert found["bucket"].state == "missing" and "the bucket does not exist" in found["bucket"].found
    assert found["bucket"].fix == "create it, or correct its name"
    assert found["read, write, delete"].found == "not checked"


@pytest.mark.parametrize(("method", "check"), [("PUT", "bucket"), ("GET", "bucket"), ("DELETE", "delete")])
def test_a_permission_that_is_denied_is_named(root: Location, proxy: Proxy, method: str, check: str) -> None:
    proxy.faults.append(Fault("denied", times=float("inf"), methods=method))
    found = results(root)[check]
    assert found.state == "missing" and ": access is denied (403 AccessDenied)" in found.found
    assert found.fix == "the credentials need permission to list, read, write and delete objects there"
    proxy.faults.clear()
    root.delete()


def test_objects_that_cannot_be_read_are_named(root: Location, proxy: Proxy) -> None:
    proxy.faults.append(Fault("denied", times=float("inf"), methods="GET", path=f"/{root.name}/doctor-"))
    found = results(root)
    assert found["list"].state == "ok" and "access is denied" in found["read"].found


def test_a_store_that_ignores_conditions_is_warned_of(root: Location, proxy: Proxy) -> None:
    proxy.faults.append(Fault("no conditions", times=float("inf"), methods="PUT"))
    found = results(root)["conditional writes"]
    assert (found.state, found.found) == ("warning", "are ignored: two runs at once are not kept apart")
    assert root.files() == []


def test_slow_answers_are_warned_of(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SLOW_SECONDS", 0.0)
    assert results(root)["read"].state == "warning"


def test_a_server_that_does_not_answer_is_named_soon(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(s3, "_client", s3._Client())
    started = time.monotonic()
    found = results(root)["bucket"]
    assert time.monotonic() - started < 5
    assert found.state == "missing" and "S3 cannot be reached" in found.found and "AWS_ENDPOINT_URL" in found.fix


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_missing_credentials_end_the_checks(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    found = results(root)
    assert list(found) == ["credentials", "bucket"]
    assert (found["credentials"].state, found["credentials"].found) == ("missing", "there are none")


def test_a_pods_credentials_are_renewed_unless_its_agent_fails(
    root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    (tmp_path / "token").write_text(AUTHORIZATION)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    with pod_identity(3600.0) as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        found = results(root)["credentials"]
        assert found.state == "ok" and "EKS Pod Identity), renewed automatically; these are valid for " in found.found
        agent.failures = 100
        found = results(root)["credentials"]
        assert found.state == "missing" and found.found.startswith("cannot be obtained: Error when retrieving credent")


@pytest.mark.parametrize(
    ("hours", "state", "found"),
    [
        (None, "warning", "with a session token: they expire, and nothing renews them"),
        (0.5, "warning", "only; nothing renews them"),
        (12, "ok", "valid for "),
        (-1, "missing", "cannot be obtained: "),
    ],
)
def test_keys_with_an_end_are_warned_of(
    root: Location, monkeypatch: pytest.MonkeyPatch, hours: float | None, state: str, found: str
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    if hours is not None:
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", (datetime.now(UTC) + timedelta(hours=hours)).isoformat())
    check = results(root)["credentials"]
    assert check.state == state and found in check.found


def test_expired_keys_are_named(root: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "is_valid", lambda token: False)
    found = results(root)["bucket"]
    assert found.state == "missing" and "the credentials have expired (400 ExpiredToken)" in found.found


@pytest.mark.parametrize(
    ("seconds", "state", "found"),
    [
        (1, "ok", "agrees with S3"),
        (-120, "warning", "is 2 min 00 s ahead of S3"),
        (3600, "missing", "is 1 h 00 min behind S3, "),
    ],
)
def test_a_wrong_clock_is_named(seconds: float, state: str, found: str) -> None:
    check = clock(seconds)
    assert check.state == state and check.found.startswith(found)


def test_the_clock_is_compared_with_that_of_the_server(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_with_clock(timedelta(hours=-2)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setattr(s3, "_client", s3._Client())
        assert results(root)["clock"].state == "missing"


@contextmanager
def server_with_clock(difference: timedelta) -> Iterator[str]:
    """A server that refuses everything, with the date of its own clock."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + difference, usegmt=True)

        def do_HEAD(self) -> None:
            self.send_error(403)

        do_GET = do_HEAD

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_sources_on_s3_must_be_there_and_readable(root: Location, proxy: Proxy, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (root / name).write_bytes(b"text")
    local = Location(str(tmp_path))
    assert results(local, f"{root}/*.txt")["source"].found == f"{root}/*.txt: 2 readable"
    missing = results(local, f"{root}/*.bz2")["source"]
    assert (missing.state, missing.found) == ("missing", f"{root}/*.bz2: no file matches")
    proxy.faults.append(Fault("denied", times=float("inf"), methods="GET", path="a.txt"))
    denied = results(local, f"{root}/a.txt")["source"]
    assert denied.state == "missing" and "access is denied" in denied.found
