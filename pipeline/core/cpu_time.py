"""The CPU seconds that a stage's items take, in whichever process they run: this one, or a worker that reports them.

The start of Python, Ray and Beam in the workers does not count: it does not grow with the input.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Names this process among all processes of a run. A worker that receives the driver's name compares it with its own.
PROCESS = uuid.uuid4().hex

_lock = threading.Lock()
_items = 0  # that run in this process now
_last = 0.0  # process time up to which they are reported
_workers = 0.0  # CPU seconds that workers have reported to this process
_reports = 0


@contextmanager
def measured_item(report: Callable[[float], object]) -> Iterator[None]:
    """Report the CPU seconds of this process in the block; of items that run at the same time each second once."""
    global _items, _last
    with _lock:
        if not _items:
            _last = time.process_time()
        _items += 1
    try:
        yield
    finally:
        with _lock:
            now = time.process_time()
            seconds, _last = now - _last, now
            _items -= 1
        report(seconds)


def add_worker_seconds(seconds: float) -> None:
    """In the driver: count what a worker has reported. 0 for an item that ran in the driver itself."""
    global _workers, _reports
    with _lock:
        _workers, _reports = _workers + seconds, _reports + 1


class StageClock:
    """The CPU seconds of this process and of its workers since the clock was created."""

    def __init__(self) -> None:
        self._start, self._reports = time.process_time() + _workers, _reports

    def seconds(self) -> float | None:
        """None for a stage whose items report no CPU time, such as training."""
        if _reports == self._reports:
            return None
        return round(time.process_time() + _workers - self._start, 3)
