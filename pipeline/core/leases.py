"""Leases: of several runs that would write an artifact, one at a time does. The others wait for it.

The owner sends heartbeats. A run that waits counts an owner as killed when it has seen no heartbeat for some time of
its own clock, or when the owner's process ran on the same machine and has ended. It then takes the lease over. An owner
that was only suspended finds that out before its next write, and writes nothing more: see `Lease.check`.
"""

import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cloze.pipeline.core.conditional_writes import Unsupported, replace
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.lease_files import Held, LeaseFile, Owner, WorkDone, lease_file
from cloze.pipeline.core.processes import has_ended, this_process
from cloze.pipeline.core.retries import not_repeated_after
from cloze.pipeline.core.signals import Ending, interrupt_with
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import run_periodically

_HEARTBEAT = 5.0  # seconds
_TIMEOUT = 60.0  # seconds without a heartbeat after which an owner counts as killed
_POLL = 1.0  # seconds after which another run's lease is read again
_MAX_GAP = 10.0  # seconds between two reads that count: this process may have been suspended, or the store unreachable
_REPLACE_ATTEMPTS = 5

#: Store -> whether leases work on it, as one probe in this process has shown.
_supported: dict[str, bool] = {}


class ArtifactInUse(UserError):
    """Another run is writing the artifact, and this one is not to wait."""


class LeaseLost(UserError):
    """Another run has taken over the artifact that this one was writing."""


@dataclass
class Lease:
    """The right to write an artifact. Workers have a copy of it; only the driver's progress is recorded."""

    artifact: Location
    token: str
    progress: WorkDone = field(default_factory=WorkDone)

    def check(self) -> None:
        """Raises LeaseLost if this run is no longer the owner. Call it directly before each write."""
        held = lease_file(self.artifact).read()
        if held is None or held.owner.token != self.token:
            raise _lost(self.artifact, held)

    def write_record(self, file: Location, data: bytes) -> None:
        """Write a record of finished work atomically. Raises LeaseLost.

        A record that another run writes after the check is not replaced: on S3 never, on a disk unless it replaces a
        record itself.
        """
        for _ in range(_REPLACE_ATTEMPTS):
            if replace(file, data, self.check):
                return
        raise UserError(f"{file}: another process writes it at the same time; end that process and run again")


def owner_of(artifact: Location) -> Owner | None:
    """Returns who works on an artifact, by its lease. None if nobody does, or if it was killed on this machine."""
    held = lease_file(artifact).read()
    return held.owner if held and not has_ended(held.owner.process) else None


def refuse_to_wait(artifact: Location) -> Callable[[Owner], None]:
    """Returns an `on_wait` for `hold_lease` that raises ArtifactInUse."""

    def refuse(owner: Owner) -> None:
        raise ArtifactInUse(
            f"{artifact}: {owner} is writing it; run again when that has ended, or without --no-wait to wait for it"
        )

    return refuse


def wait_until_free(artifact: Location, on_wait: Callable[[Owner], None]) -> None:
    """Wait until no run works on an artifact. `on_wait`: see `hold_lease`."""
    _wait(lease_file(artifact), on_wait, _Watch())


@contextmanager
def hold_lease(artifact: Location, on_wait: Callable[[Owner], None]) -> Iterator[Lease | None]:
    """Inside the block this run owns the artifact: at first it waits until no other does.

    Yields None where the store has no conditional writes. While it waits, `on_wait` is called with the owner about once
    a second; what it raises ends the wait. Raises LeaseLost when another run has taken over, also if the block has
    failed for another reason: that run may be the cause.
    """
    file = lease_file(artifact)
    owner = _wait_and_claim(artifact, file, on_wait) if _supported.get(_store(artifact), True) else None
    if owner is None:
        yield None
        return
    failed = threading.Event()
    with not_repeated_after(failed):  # S3 may be the reason, and has been given all the time that is allowed
        try:
            with ExitStack() as work:
                lease = Lease(artifact, owner.token)
                work.enter_context(_at_work(file, lease, owner, failed))
                if _is_supported(file, artifact, owner):
                    yield lease
                else:
                    work.close()
                    yield None
        finally:
            with suppress(OSError):
                file.release(owner)


@contextmanager
def _at_work(file: LeaseFile, lease: Lease, owner: Owner, failed: threading.Event) -> Iterator[None]:
    """Sends heartbeats while inside the block. `failed` is set when the block raises, or is interrupted at its end."""
    found = list[LeaseLost]()
    heartbeats = run_periodically(_heartbeats(file, lease, owner, found, failed), _HEARTBEAT)
    with _lost_lease_first(lease, found), _set_on_error(failed), heartbeats, _set_on_error(failed):
        yield


@contextmanager
def _set_on_error(event: threading.Event) -> Iterator[None]:
    try:
        yield
    except BaseException:
        event.set()
        raise


@contextmanager
def _lost_lease_first(lease: Lease, found: Sequence[LeaseLost]) -> Iterator[None]:
    """Raises LeaseLost instead of another error of the block if another run has taken over and may have caused it.

    `found`: what a heartbeat has found. After its interrupt S3 may not answer in time.
    """
    try:
        yield
    except LeaseLost:
        raise
    except BaseException as error:
        if found:
            raise found[0] from error
        try:
            lease.check()
        except LeaseLost as lost:
            raise lost from error
        except OSError:
            pass
        raise


def _wait_and_claim(artifact: Location, file: LeaseFile, on_wait: Callable[[Owner], None]) -> Owner | None:
    """Returns this run as the owner; None if the store has no conditional writes."""
    new = Owner(token=uuid.uuid4().hex, process=this_process(), since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    while True:
        try:
            held = _wait(file, on_wait, _Watch(is_to_claim=True))
            owner = new.model_copy(update={"attempt": held.owner.attempt + 1 if held else 1})
            if file.claim(owner, held):
                return owner
        except Unsupported:
            _report_unsupported(artifact)
            return None
        time.sleep(_POLL / 10)  # another run was faster


def _wait(file: LeaseFile, on_wait: Callable[[Owner], None], watch: "_Watch") -> Held | None:
    """Wait until there is no owner, or one that counts as killed, which is returned."""
    while (held := watch.read(file)) and not watch.counts_as_killed(held):
        on_wait(held.owner)
        time.sleep(_POLL)
    return held


class _Watch:
    """Watches another run's lease, by the clock of this process alone.

    Before a claim, half of the silence comes after an answer of the store to a write: without answers, the owner could
    not send heartbeats either.
    """

    def __init__(self, is_to_claim: bool = False) -> None:
        self._version, self._answered = "", time.monotonic()
        self._silence = 0.0  # seconds for which the version has not changed
        self._is_to_claim, self._writes_answered = is_to_claim, False

    def read(self, file: LeaseFile) -> Held | None:
        asked = time.monotonic()
        held = file.read()
        if held and held.version == self._version:
            self._silence += min(asked - self._answered, _MAX_GAP)
        else:
            self._version, self._silence = held.version if held else "", 0.0
            self._writes_answered = False
        if self._is_to_claim and not self._writes_answered and self._silence > _TIMEOUT / 2:
            file.await_writes()
            self._silence, self._writes_answered = _TIMEOUT / 2, True
        self._answered = time.monotonic()
        return held

    def counts_as_killed(self, held: Held) -> bool:
        return self._silence > _TIMEOUT or has_ended(held.owner.process)


def _heartbeats(
    file: LeaseFile, lease: Lease, owner: Owner, found: list[LeaseLost], failed: threading.Event
) -> Callable[[], bool]:
    """Returns a function that sends a heartbeat. If another run has taken over, it adds the error to `found`, and
    interrupts the main thread, unless the work has failed, which releases the lease.
    """
    interruptible = threading.current_thread() is threading.main_thread()
    count = 0

    def send() -> bool:
        nonlocal count
        count += 1
        try:
            with not_repeated_after(failed):
                if not file.renew(owner.model_copy(update={"heartbeat": count, "progress": lease.progress})):
                    lease.check()  # passes if the other has withdrawn its claim, or the renewal had no answer
        except LeaseLost as lost:
            found.append(lost)
            if interruptible and not failed.is_set():  # hold_lease turns this KeyboardInterrupt into LeaseLost
                interrupt_with(Ending(f"cloze: {lost}", 2), signal.SIGINT)
            return False
        return True

    return send


def _is_supported(file: LeaseFile, artifact: Location, owner: Owner) -> bool:
    """Returns whether leases work on this store: one probe per store and process."""
    store = _store(artifact)
    if store not in _supported:
        try:
            file.check_support(owner)
            _supported[store] = True
        except Unsupported:
            _report_unsupported(artifact)
    return _supported[store]


def _report_unsupported(artifact: Location) -> None:
    store = _store(artifact)
    what = "ignores conditional writes" if artifact.is_s3 else "has no hard links"
    print(f"warning: {store} {what}: two runs at once are not kept apart", file=sys.stderr)
    _supported[store] = False


def _store(artifact: Location) -> str:
    """The bucket, or the root folder of the artifacts."""
    return "/".join(artifact.uri.split("/")[:3]) if artifact.is_s3 else str(Path(artifact.path).parents[1])


def _lost(artifact: Location, held: Held | None) -> LeaseLost:
    if held:
        return LeaseLost(
            f"{artifact}: {held.owner.process} took over, as this run had sent no heartbeat for some time; this run "
            "writes nothing more; run again to use the output of the other"
        )
    return LeaseLost(
        f"{artifact}: its lease no longer exists: another run took over and has ended, or the folder was deleted; this "
        "run writes nothing more; run again"
    )
