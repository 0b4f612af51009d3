"""The end of an interrupted command: soon, with its line, and without processes left behind.

An interrupted stage unwinds: it stops its workers, Ray and Beam. On a loaded machine that takes long, and a library may
wait without an end. Finished parts are already stored, so after some seconds the process just ends.
"""

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from cloze.pipeline.core.signals import (
    Ending,
    clear_own_ending,
    interrupted,
    interrupting_signal,
    note_arrived,
    own_ending,
    seconds_to_end,
    signals_handled,
)

_SECONDS = 6.0  # to unwind
_POLL = 0.2


@contextmanager
def ends_soon_when_interrupted(line: str, before_end: Callable[[], None] | None = None) -> Iterator[None]:
    """If the block does not end within seconds of a signal, print the line and end the process.

    Also if the main thread has not yet handled the signal, because it is in a library's call. `before_end` is called
    in a thread, which has a few seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    clear_own_ending()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ended = threading.Event()
    signals = list[int]()  # Python writes them into the pipe even when it cannot yet call the handler

    def read_signals(seconds: float) -> None:
        if select.select([reader], [], [], seconds)[0]:
            new = [number for number in os.read(reader, 16) if number in (signal.SIGINT, signal.SIGTERM)]
            signals.extend(new)
            note_arrived(new)

    def watch() -> None:
        arrived = unwinding = math.inf  # when; a training saves before it unwinds
        while not ended.is_set():
            read_signals(_POLL)
            now, is_interrupted = time.monotonic(), interrupted.is_set() or len(signals) > signals_handled()
            arrived = min(arrived, now) if signals else math.inf
            unwinding = min(unwinding, now) if is_interrupted else math.inf
            if now > min(arrived + seconds_to_end() - 1, unwinding + _SECONDS):
                ending = own_ending() or Ending(line, 128 + interrupting_signal())
                print(ending.line, file=sys.stderr)
                if before_end:
                    last = threading.Thread(target=before_end, daemon=True)
                    last.start()
                    last.join(_SECONDS)
                end_process(ending.status)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        thread.join()
        read_signals(0)
        os.close(reader)
        os.close(writer)


def end_process(status: int) -> NoReturn:
    """End this process and all that it has started, without waiting for its threads."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads would print that their servers no longer exist
    for process in descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os._exit(status)


def descendants(process: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have started, parents first."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found = children.get(process, [])
    for child in found:  # grows while it is read
        found += children.get(child, [])
    return found
