"""Signal handlers for the time of a block. Only the main thread may install them; in others nothing changes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def _may_install() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def keyboard_interrupt_on(*numbers: signal.Signals) -> Iterator[None]:
    """While inside the block, each of these signals raises KeyboardInterrupt, as Ctrl-C does."""
    if not _may_install():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def event_on_first(number: signal.Signals) -> Iterator[threading.Event]:
    """While inside the block, the first such signal only sets the event; a second one has its previous effect."""
    event = threading.Event()
    if not _may_install():
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


@contextmanager
def python_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Restore the signal's Python handler after the block, in which a library replaces it, also in C.

    Without a Python handler the library's own stays.
    """
    before = signal.getsignal(number)
    yield
    if _may_install():
        signal.signal(number, before if callable(before) else signal.getsignal(number))
