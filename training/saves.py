"""checkpoints -> the disk, in the background, one at a time; a disk or an S3 that fails does not end training.

What is written lies in memory until it is: its tensors, and their bytes once more while these are hashed and written,
24 bytes for each of the model's parameters. Up to three workers share that, a kind of tensors (training/checkpoint.py)
or more for each: they all try again when one has failed.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from training.agreement import Exchange, alone, together

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt


class Saves:
    """One worker's; all begin the same ones together."""

    def __init__(self, show: Callable[[str], object], exchange: Exchange = alone) -> None:
        """`show` is told what went wrong; `exchange` is for the thread of this alone."""
        self.failed = ""  # what went wrong with the newest; nothing once one is written
        self._show, self._exchange = show, exchange
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._going_on: Future[None] | None = None

    def begin(self, step: int, write: Callable[[], object], what: str = "checkpoint") -> None:
        """Call `write` in the thread, after the save before has ended; again after an OSError, three times in all."""
        self.wait()
        self._going_on = self._thread.submit(self._try, step, write, what)

    def between(self, write: Callable[[], object]) -> None:
        """Call `write` in the thread, once: what fails here the next save writes as well."""
        self._thread.submit(write)

    def wait(self) -> None:
        """Return when what was begun is written, or has failed three times. Raises what no new attempt would mend."""
        going_on, self._going_on = self._going_on, None
        if going_on:
            going_on.result()

    def close(self) -> None:
        """Let what was begun come to its end."""
        self._thread.shutdown()

    def _try(self, step: int, write: Callable[[], object], what: str) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                together(self._exchange, write)
                self.failed = ""
                return
            except OSError as error:
                self.failed = f"{what} at step {step} not written ({error}), attempt {attempt}"
                self._show(self.failed)
                if attempt < _ATTEMPTS:
                    time.sleep(attempt * _PAUSE)
