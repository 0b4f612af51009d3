"""Work on threads: a function called periodically in the background, and one mapped over items concurrently."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_THREADS = 64  # as many as a process has connections to S3


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Returns function(item) for each item, in order. For functions that wait for a disk or for S3."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(_MAX_THREADS, len(items))) as threads:
        return list(threads.map(function, items))


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """Yields function(item) for each item, in order. Up to `count` results are computed, or kept, ahead."""
    pending = deque[Future[Result]]()
    with ThreadPoolExecutor(count) as threads:
        try:
            for item in items:
                if len(pending) == count:
                    yield pending.popleft().result()
                pending.append(threads.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def run_periodically(function: Callable[[], bool], seconds: float) -> Iterator[None]:
    """While inside the block, call `function` in a thread every `seconds` seconds, until it returns False.

    After an error it is called again the next time: a heartbeat must not end. An OSError of a disk or of S3 is ignored;
    the first other error is printed.
    """
    stop = threading.Event()

    def loop() -> None:
        proceed, reported = True, False
        while proceed and not stop.wait(seconds):
            try:
                proceed = function()
            except OSError:
                pass
            except Exception as error:
                if not reported:
                    line = " ".join(str(error).split())
                    print(f"warning: {type(error).__name__}: {line}; tries again", file=sys.stderr)
                reported = True

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
