"""checkpoints and metrics -> the artifact, in the background, one at a time; a disk or an S3 that fails does not end
training.

What is written lies in memory until it is: its tensors, and their bytes once more while these are hashed and written,
24 bytes for each of the model's parameters. Up to three workers share that, a kind of tensors (checkpoint.py)
or more for each: they all try again when one has failed.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import Standing, Tensors, prune, save
from cloze.training.cluster.collectives import Exchange, alone, together
from cloze.training.pretrain import loss_spikes
from cloze.training.pretrain.facts import Row
from cloze.training.pretrain.loss_spikes import Skip
from cloze.training.pretrain.tensorboard import FILE as EVENTS
from cloze.training.pretrain.tensorboard import EventFile

_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt
_WRITE_SECONDS = 30.0  # after which metrics are written though no checkpoint is


class AsyncSaver:
    """One worker's; all begin the same saves together."""

    def __init__(
        self, artifact: Location, keep: int, show: Callable[[str], object], exchange: Exchange = alone
    ) -> None:
        """Keeps so many checkpoints. `show` is told what went wrong; `exchange` is for the thread of this alone."""
        self.failed = ""  # what went wrong with the newest; nothing once one is written
        self._artifact, self._keep, self._show = artifact, keep, show
        self._exchange = exchange
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._going_on: Future[None] | None = None
        self._events, self._metrics_written = EventFile(), time.monotonic()

    def begin(self, step: int, write: Callable[[], object], what: str = "checkpoint") -> None:
        """Call `write` in the thread, after the save before has ended; again after an OSError, three times in all."""
        self.wait()
        self._going_on = self._thread.submit(self._try, step, write, what)

    def save(self, step: int, tensors: Tensors, standing: Standing | None) -> None:
        """Write a checkpoint of what each worker gives (`standing` is worker 0's), and the metrics up to it."""
        self.begin(step, partial(self._checkpoint, step, tensors, standing))

    def save_skips(self, step: int, skips: Sequence[Skip], rank: int) -> None:
        """Before training goes back: write which batches are skipped. Returns when it is done, or has failed three
        times."""
        write = partial((self._artifact / loss_spikes.FILE).write_bytes, loss_spikes.lines(skips))
        self.begin(step, (lambda: None) if rank else write, loss_spikes.FILE)
        self.wait()
        self._events = EventFile()  # the rows to come do not continue those before

    def save_metrics(self, rows: Sequence[Row]) -> None:
        """Write the metrics, if they have not been written for a while; what fails here the next save writes as well.
        Worker 0 alone calls it."""
        if time.monotonic() - self._metrics_written > _WRITE_SECONDS:
            self._metrics_written = time.monotonic()
            self._thread.submit(self._metrics, list(rows))

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

    def _checkpoint(self, step: int, tensors: Tensors, standing: Standing | None) -> None:
        save(self._artifact, step, tensors, standing, self._exchange)
        if standing:
            prune(self._artifact, self._keep)
            self._metrics(standing.state["metrics"]["rows"])

    def _metrics(self, rows: Sequence[Row]) -> None:
        if (self._artifact / "manifest.json").exists():  # another run of the same fingerprint has finished it
            return
        (self._artifact / "metrics.jsonl").write_bytes(json_lines.encode(rows))
        (self._artifact / EVENTS).write_bytes(self._events(rows))
