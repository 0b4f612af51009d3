"""checkpoints -> the disk, in the background, one at a time; a disk or an S3 that fails does not end training.

What is written lies in memory until it is: its tensors, and their bytes once more while these are hashed and written,
24 bytes for each of the model's parameters in worker 0.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt


class Saves:
    """Worker 0's: the others have nothing to write."""

    def __init__(self, show: Callable[[float, str], object]) -> None:
        """`show` is told the step and what went wrong."""
        self.failed = ""  # what went wrong with the newest; nothing once one is written
        self._show = show
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._going_on: Future[None] | None = None

    def begin(self, step: int, write: Callable[[], object], what: str = "checkpoint") -> None:
        """Call `write` in the thread, after the save before has ended; again after an OSError, three times in all."""
        self.wait()
        self._going_on = self._thread.submit(self._try, step, write, what)

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
                write()
                self.failed = ""
                return
            except OSError as error:
                self.failed = f"{what} at step {step} not written ({error}), attempt {attempt}"
                self._show(step, self.failed)
                time.sleep(attempt * _PAUSE)
