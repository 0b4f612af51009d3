"""What a signal does while something is at work. Only the main thread may say so: in any other nothing is changed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Inside, each of these signals raises KeyboardInterrupt, as Ctrl-C does by itself."""
    if not _may_handle():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def first_sets(number: signal.Signals) -> Iterator[threading.Event]:
    """Inside, the first such signal sets the event and does nothing else; a second one acts as it did before."""
    event = threading.Event()
    if not _may_handle():
        yield event
        return
    before = signal.getsignal(number)

    def handle(*_: object) -> None:
        event.set()
        signal.signal(number, before)

    signal.signal(number, handle)
    try:
        yield event
    finally:
        signal.signal(number, before)


def reinstall(number: signal.Signals) -> None:
    """Put Python's handler of a signal back where a library has one of its own in C, which Python does not see."""
    if _may_handle():
        signal.signal(number, signal.getsignal(number))
