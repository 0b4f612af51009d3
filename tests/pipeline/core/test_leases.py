"""Leases on a disk and on S3: who owns an artifact, and what a run that has lost its lease can still do."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core import conditional_writes, lease_files, leases, processes
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.lease_files import DiskLeaseFile, Held, Owner, WorkDone, lease_file
from cloze.pipeline.core.leases import ArtifactInUse, LeaseLost, hold_lease, owner_of, refuse_to_wait
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.processes import Process, has_ended, this_process
from cloze.pipeline.core.signals import clear_own_ending, own_ending
from cloze.pipeline.core.storage import Location

ELSEWHERE = Process(host="another", pid=77, machine="another", started="1")


@pytest.fixture
def artifact(folder: str) -> Location:
    return Location(folder) / "toy" / "0123"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_TIMEOUT", 0.5)
    monkeypatch.setattr(leases, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(leases, "_POLL", 0.05)
    monkeypatch.setattr(lease_files, "_SETTLE_SECONDS", 0.02)


def claimed(artifact: Location, process: Process = ELSEWHERE, over: Held | None = None) -> Owner:
    """Another run's lease, which gets no heartbeats."""
    attempt = over.owner.attempt + 1 if over else 1
    owner = Owner(token=f"{process.pid}-{attempt}", attempt=attempt, process=process, since="2026-11-28 03:12:00 UTC")
    file = lease_file(artifact)
    while not file.claim(owner, over):
        assert over, "there is another lease"
        over = file.read()  # a heartbeat came in between
    return owner


def no_wait(artifact: Location) -> "leases.AbstractContextManager[leases.Lease | None]":
    return hold_lease(artifact, refuse_to_wait(artifact))


def test_a_released_lease_leaves_no_file(artifact: Location) -> None:
    with no_wait(artifact) as lease:
        assert lease and len(artifact.files()) == 1
        lease.check()
    assert artifact.files() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, OSError])
def test_it_is_released_at_once_when_the_work_fails(artifact: Location, error: type[BaseException]) -> None:
    with pytest.raises(error), no_wait(artifact):
        raise error("stopped")
    assert artifact.files() == []


def test_a_second_run_is_refused_in_a_line_that_names_the_first_or_waits_for_it(
    artifact: Location, impatient: None
) -> None:
    seen: list[Owner] = []
    with no_wait(artifact) as lease:
        assert lease
        expected = rf"/toy/0123: process {os.getpid()} on \S+ \(since .* UTC\) is writing it; run again when"
        with pytest.raises(ArtifactInUse, match=expected), no_wait(artifact):
            pass
        lease.progress = WorkDone(done=3, total=9, unit="ranges")
        waiting = threading.Thread(target=enter, args=(artifact, seen))
        waiting.start()
        wait_until(lambda: bool(seen) and seen[-1].progress.done == 3)
        assert str(seen[-1]).endswith(", 3 of 9 ranges done)")
    waiting.join(10)
    assert not waiting.is_alive() and artifact.files() == []


def enter(artifact: Location, seen: list[Owner]) -> None:
    with hold_lease(artifact, seen.append):
        pass


def wait_until(condition: "leases.Callable[[], bool]", seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_several_runs_one_at_a_time_is_at_work(artifact: Location, impatient: None) -> None:
    inside, overlaps, start = list[int](), list[int](), threading.Barrier(5)

    def attempt(number: int) -> None:
        start.wait()
        with suppress(LeaseLost), hold_lease(artifact, lambda _: None):
            inside.append(number)
            overlaps.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 5 and artifact.files() == []


def test_an_owner_without_heartbeats_is_replaced_and_one_with_heartbeats_is_not(
    artifact: Location, impatient: None
) -> None:
    claimed(artifact)
    started, seen = time.monotonic(), list[Owner]()
    with hold_lease(artifact, seen.append) as lease:
        assert lease and time.monotonic() - started > 0.5
        assert {owner.process.host for owner in seen} == {"another"}
        waiting = threading.Thread(target=enter, args=(artifact, seen))
        waiting.start()
        time.sleep(1.5)
        lease.check()
    waiting.join(10)
    assert artifact.files() == []


def test_a_run_that_was_suspended_itself_does_not_count_that_time(artifact: Location) -> None:
    claimed(artifact)
    watch, file = leases._Watch(), lease_file(artifact)
    watch.read(file)
    watch._answered -= 3600
    held = watch.read(file)
    assert held and not watch.counts_as_killed(held)


def test_an_ended_process_of_this_machine_is_replaced_at_once(artifact: Location) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = this_process().model_copy(update={"pid": process.pid})
        owner = owner.model_copy(update={"started": processes._start_time(process.pid)})
        assert not has_ended(owner)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert has_ended(owner)
    assert has_ended(owner)
    assert not has_ended(owner.model_copy(update={"machine": "another container"}))
    assert has_ended(this_process().model_copy(update={"started": "1"}))  # the number is used again
    claimed(artifact, owner)
    assert owner_of(artifact) is None
    with no_wait(artifact) as lease:
        assert lease


def test_a_process_that_cannot_be_inspected_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    other = this_process().model_copy(update={"pid": 1, "started": "never"})

    def kill(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert not has_ended(other)
    monkeypatch.undo()
    monkeypatch.setattr(processes, "_start_time", lambda _: None)  # hidepid
    assert not has_ended(other)


def test_an_owner_that_was_replaced_writes_nothing_and_says_who_took_over(artifact: Location) -> None:
    out = Output(artifact, "toy", 1, "0123")
    took_over = pytest.raises(LeaseLost, match=r"process 77 on another took over.*writes nothing more")
    with took_over, no_wait(artifact) as out.lease:
        out.commit("a", {"a.txt": b"a"})
        claimed(artifact, over=lease_file(artifact).read())
        before = contents(artifact)
        for write in (lambda: out.commit("b", {"b.txt": b"b"}), lambda: out.finish([], {}, {}), out.clear):
            with pytest.raises(LeaseLost):
                write()
        raise FileNotFoundError("deleted by the run that took over")
    assert contents(artifact) == before
    held = lease_file(artifact).read()
    assert held and held.owner.process == ELSEWHERE  # it was not released for the other


def contents(artifact: Location) -> dict[str, bytes]:
    return {file.uri: file.read_bytes() for file in artifact.files()}


def test_a_heartbeat_that_finds_another_owner_interrupts_the_work(artifact: Location, impatient: None) -> None:
    with pytest.raises(LeaseLost, match="took over"), no_wait(artifact):
        claimed(artifact, over=lease_file(artifact).read())
        time.sleep(20)
    with pytest.raises(LeaseLost, match="its lease no longer exists"), hold_lease(artifact, lambda _: None):
        artifact.delete()
        time.sleep(20)


def test_a_heartbeat_that_is_late_after_an_interrupt_finds_no_lost_lease(
    artifact: Location, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C does not wait for it."""
    threads = threading.active_count()
    kind, beats, released = type(lease_file(artifact)), threading.Event(), threading.Event()
    real = kind.renew

    def renew(file: Any, owner: Owner) -> bool:
        beats.set()
        released.wait(20)
        return real(file, owner)

    monkeypatch.setattr(kind, "renew", renew)
    clear_own_ending()
    main = threading.main_thread().ident
    with pytest.raises(KeyboardInterrupt), no_wait(artifact):
        assert main and beats.wait(20)
        threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        raise KeyboardInterrupt
    released.set()
    wait_until(lambda: threading.active_count() <= threads)
    assert own_ending() is None and artifact.files() == []


def test_a_claim_that_is_withdrawn_interrupts_nothing(
    artifact: Location, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat may see the file of a run whose view was outdated, before that run deletes it."""
    kind, beats = type(lease_file(artifact)), list[bool]()
    real = kind.renew

    def renew(file: Any, owner: Owner) -> bool:
        beats.append(real(file, owner))
        return len(beats) > 1

    monkeypatch.setattr(kind, "renew", renew)
    clear_own_ending()
    with no_wait(artifact) as lease:
        wait_until(lambda: len(beats) > 2)
        assert lease
        lease.check()
    assert own_ending() is None and artifact.files() == []


def test_a_record_that_another_run_writes_between_check_and_write_is_not_replaced(
    artifact: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner is suspended in between, and the run that takes over finishes."""
    out = Output(artifact, "toy", 1, "0123")
    real = leases.Lease.check

    def suspended(lease: leases.Lease) -> None:
        real(lease)
        if not (artifact / "manifest.json").exists():
            claimed(artifact, over=lease_file(artifact).read())
            (artifact / "manifest.json").write_text("of the run that took over")

    with pytest.raises(LeaseLost), no_wait(artifact) as out.lease:
        monkeypatch.setattr(leases.Lease, "check", suspended)
        out.finish([], {}, {})
    assert (artifact / "manifest.json").read_text() == "of the run that took over"


def test_a_damaged_record_of_a_part_is_replaced(artifact: Location) -> None:
    out = Output(artifact, "toy", 1, "0123")
    (artifact / "parts/a.json").write_text("{")
    with no_wait(artifact) as out.lease:
        out.commit("a", {"a.txt": b"a"})
    assert out.finished_part("a")


def test_clear_deletes_everything_except_the_lease(artifact: Location) -> None:
    out = Output(artifact, "toy", 1, "0123")
    with no_wait(artifact) as out.lease:
        out.finish([out.commit("a", {"files/a.txt": b"a"})], {}, {})
        out.clear()
        assert len(artifact.files()) == 1
        out.check_lease()


def test_workers_check_the_lease_too(artifact: Location) -> None:
    import pickle

    out = Output(artifact, "toy", 1, "0123")
    with pytest.raises(LeaseLost), no_wait(artifact) as out.lease:
        worker: Output = pickle.loads(pickle.dumps(out))
        worker.commit("a", {"a.txt": b"a"})
        claimed(artifact, over=lease_file(artifact).read())
        worker.commit("b", {"b.txt": b"b"})
    assert not (artifact / "b.txt").exists()


def test_a_claim_over_an_owner_that_is_outdated_has_no_effect(artifact: Location) -> None:
    claimed(artifact)
    first = lease_file(artifact).read()
    assert first
    claimed(artifact, over=first)
    second = lease_file(artifact).read()
    for over in (None, first):
        owner = Owner(token="late", attempt=over.owner.attempt + 1 if over else 1)
        assert not lease_file(artifact).claim(owner, over)
    assert lease_file(artifact).read() == second


def test_an_owner_that_took_over_long_ago_is_not_replaced_by_one_whose_view_is_outdated(tmp_path: Path) -> None:
    """The files of earlier owners are deleted, so the name that the late one creates is free."""
    artifact = Location(str(tmp_path))
    claimed(artifact)
    first = lease_file(artifact).read()
    for _ in range(3):
        claimed(artifact, over=lease_file(artifact).read())
    current = lease_file(artifact).read()
    assert not lease_file(artifact).claim(Owner(token="late", attempt=2), first)
    assert lease_file(artifact).read() == current and len(artifact.files()) == 1


def test_an_owner_that_wakes_up_leaves_the_lease_of_a_later_one_alone(artifact: Location) -> None:
    """On a disk the numbers have begun again meanwhile: the file has the same name."""
    names = {"a": 1, "b": 2, "c": 1, "late": 2}
    owners = {name: Owner(token=name, attempt=attempt, process=ELSEWHERE) for name, attempt in names.items()}
    files = {name: lease_file(artifact) for name in names}
    assert files["a"].claim(owners["a"], None)
    first = files["a"].read()
    assert files["b"].claim(owners["b"], first)
    files["b"].release(owners["b"])
    assert files["c"].claim(owners["c"], None)
    assert not files["a"].renew(owners["a"])
    files["a"].release(owners["a"])
    assert not files["late"].claim(owners["late"], first)
    assert files["c"].renew(owners["c"])
    held = files["c"].read()
    assert held and held.owner.token == "c"


def test_a_claim_is_refused_after_a_heartbeat(artifact: Location) -> None:
    file, owner = lease_file(artifact), Owner(token="a", attempt=1, process=ELSEWHERE)
    assert file.claim(owner, None)
    outdated = file.read()
    assert file.renew(owner.model_copy(update={"heartbeat": 1}))
    assert not lease_file(artifact).claim(Owner(token="late", attempt=2), outdated)
    assert file.renew(owner.model_copy(update={"heartbeat": 2}))


def test_a_run_that_is_suspended_while_it_takes_over_leaves_the_lease_of_a_later_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, real = Location(str(tmp_path)), conditional_writes.create
    late, last = (Owner(token=token, attempt=2, process=ELSEWHERE) for token in ("late", "last"))
    claimed(artifact)

    def suspended(file: Location, data: bytes) -> bool:
        created = real(file, data)
        monkeypatch.undo()
        lease_file(artifact).release(claimed(artifact, over=lease_file(artifact).read()))
        claimed(artifact)
        assert lease_file(artifact).claim(last, lease_file(artifact).read())
        return created

    monkeypatch.setattr(conditional_writes, "create", suspended)
    assert not lease_file(artifact).claim(late, lease_file(artifact).read())
    held = lease_file(artifact).read()
    assert held and held.owner.token == "last" and lease_file(artifact).renew(last)


def test_a_file_that_a_cached_listing_still_names_is_asked_for_with_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = iter([["lease-1.json"]] * 4)
    monkeypatch.setattr(DiskLeaseFile, "_numbers", lambda _: [1] if next(listings, None) else [])
    started = time.monotonic()
    assert lease_file(Location(str(tmp_path))).read() is None
    assert time.monotonic() - started > 4 * 0.04


def test_a_damaged_lease_is_taken_over_after_the_usual_time(artifact: Location, impatient: None) -> None:
    claimed(artifact)
    artifact.files()[0].write_text("")
    with hold_lease(artifact, lambda _: None) as lease:
        assert lease
        lease.check()
    assert artifact.files() == []


def test_a_disk_without_hard_links_is_reported_once_and_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(leases, "_supported", {})
    for name in ("a", "b"):
        with no_wait(Location(str(tmp_path)) / "toy" / name) as lease:
            assert lease is None
    message = f"warning: {tmp_path} has no hard links: two runs at once are not kept apart\n"
    assert capsys.readouterr().err == message and list(tmp_path.rglob("*.json")) == []
