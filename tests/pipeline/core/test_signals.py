"""What signals do inside, and that all is as before behind it."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from cloze.pipeline.core.signals import (
    event_on_first,
    interrupted,
    interrupting_signal,
    keyboard_interrupt_on,
    python_handler_kept,
    signals_handled,
)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The SIGUSR1 that come while nobody inside takes them."""
    found: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: found.append(number))
    yield found
    signal.signal(signal.SIGUSR1, before)


def send() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_interrupts_inside_the_block_and_has_its_previous_effect_after_it(received: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), keyboard_interrupt_on(signal.SIGUSR1):
        send()
    assert not received
    send()
    assert len(received) == 1


def test_the_first_signal_sets_the_event_and_the_second_acts_as_before(received: list[int]) -> None:
    with event_on_first(signal.SIGUSR1) as event:
        assert not event.is_set()
        send()
        assert event.is_set() and not received
        send()
    send()
    assert len(received) == 2


def test_the_process_counts_as_interrupted_until_the_outermost_block_ends(received: list[int]) -> None:
    with keyboard_interrupt_on(signal.SIGUSR2):
        with event_on_first(signal.SIGUSR1):
            send()
            assert not interrupted.is_set()
        assert interrupted.is_set() and interrupting_signal() == signal.SIGUSR1
    assert not interrupted.is_set() and not signals_handled()
    with event_on_first(signal.SIGUSR1):
        send()
    assert not interrupted.is_set() and not signals_handled(), "no block would end it"
    assert not received


def test_without_a_signal_the_handler_is_put_back(received: list[int]) -> None:
    with event_on_first(signal.SIGUSR1):
        pass
    send()
    assert len(received) == 1


def test_other_threads_change_nothing(received: list[int]) -> None:
    def inside() -> bool:
        with keyboard_interrupt_on(signal.SIGUSR1), event_on_first(signal.SIGUSR1) as event:
            with python_handler_kept(signal.SIGUSR1):
                pass
            send()
            return event.is_set()

    with ThreadPoolExecutor(1) as threads:
        assert not threads.submit(inside).result()
    assert len(received) == 1


def test_a_handler_of_python_takes_a_signal_back_from_a_library(received: list[int]) -> None:
    import faulthandler

    faulthandler.register(signal.SIGUSR1, chain=False)
    try:
        send()
        assert not received
        with suppress(OSError), python_handler_kept(signal.SIGUSR1):
            raise OSError
        send()
    finally:
        faulthandler.unregister(signal.SIGUSR1)
    assert len(received) == 1


def test_a_handler_that_a_library_installs_in_python_is_replaced_only_by_a_handler(received: list[int]) -> None:
    from_library: list[int] = []
    for handler in (signal.getsignal(signal.SIGUSR1), signal.SIG_DFL):
        signal.signal(signal.SIGUSR1, handler)
        with python_handler_kept(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda number, _: from_library.append(number))
        send()
    assert len(received) == len(from_library) == 1
