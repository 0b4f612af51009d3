"""Signal handlers for the time of a block, and signals that a process sends to itself.

Only the main thread may install handlers; in others nothing changes.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

#: Set from a signal that interrupts until the outermost block ends: threads that wait for S3 stop waiting.
interrupted = threading.Event()
_received: list[int] = []  # the signals that have interrupted the outermost block
_arrived: list[int] = []  # those that have come in its time, also to a handler of a library
_depth = 0  # of nested blocks
_allowed: float | None = None  # seconds that this process may take to end when it stops itself


class Ending(NamedTuple):
    """How a process ends that interrupts itself: its last line and its exit status."""

    line: str
    status: int


_own_ending: Ending | None = None


def interrupt_with(ending: Ending, number: signal.Signals) -> None:
    """Send this signal to the main thread. The process then ends with this line and status in place of those of a
    signal.
    """
    global _own_ending
    _own_ending = ending
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def own_ending() -> Ending | None:
    """How this process ends, if it has interrupted itself."""
    return _own_ending


def clear_own_ending() -> None:
    """Begin new work in a process in which an earlier one has ended."""
    global _own_ending
    _own_ending = None


def seconds_to_end() -> float:
    """Returns how long this process may run after SIGTERM: ten seconds; in a submitted job as long as `ray job stop`
    waits. A process that stops itself has the time that it allows.
    """
    return _allowed or float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 10))


def allow_seconds_to_end(seconds: float) -> None:
    """Allow more time to save and end: this process is about to send SIGTERM to itself, and nothing will kill it."""
    global _allowed
    _allowed = seconds


def _may_install() -> bool:
    return threading.current_thread() is threading.main_thread()


def interrupting_signal() -> int:
    """Returns the signal that has interrupted the outermost block; SIGINT if there was none."""
    return (*_received, *_arrived, signal.SIGINT)[0]


def signals_handled() -> int:
    """Returns how many signals have called a handler of this module since the outermost block began."""
    return len(_received)


def note_arrived(numbers: Iterable[int]) -> None:
    """Note signals that have come, whoever handles them, for `interrupting_signal`."""
    _arrived.extend(numbers)


@contextmanager
def _block() -> Iterator[None]:
    """A block with handlers of this module. When the outermost ends, the process no longer counts as interrupted."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            interrupted.clear()
            _received.clear()
            _arrived.clear()


@contextmanager
def keyboard_interrupt_on(*numbers: signal.Signals) -> Iterator[None]:
    """While inside the block, each of these signals raises KeyboardInterrupt, as Ctrl-C does."""
    if not _may_install():
        yield
        return

    def handle(number: int, _: object) -> None:
        _received.append(number)
        interrupted.set()
        raise KeyboardInterrupt

    with _block():
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def event_on_first(number: signal.Signals) -> Iterator[threading.Event]:
    """While inside the block, the first such signal only sets the event; a second one has its previous effect.

    The process counts as interrupted from the end of the block until that of the outermost one.
    """
    event = threading.Event()
    if not _may_install():
        yield event
        return
    before = signal.getsignal(number)

    def handle(received: int, _: object) -> None:
        _received.append(received)
        event.set()
        signal.signal(number, before)

    with _block():
        signal.signal(number, handle)
        try:
            yield event
        finally:
            signal.signal(number, before)
            if event.is_set():
                interrupted.set()


@contextmanager
def python_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Restore the signal's Python handler after the block, in which a library replaces it, also in C.

    Without a Python handler the library's own stays.
    """
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if _may_install():
            signal.signal(number, before if callable(before) else signal.getsignal(number))
