"""Checkpoints and metrics -> the artifact, in a background thread, one save at a time.

A disk or S3 that fails does not end the training: a save is tried three times. With several workers, all of them try
again when one has failed.

A save keeps its tensors in memory until they are written, and their serialized bytes while these are hashed and
written: 24 bytes for each parameter of the model. Up to three workers share this, each with one or more kinds of
tensors (see KINDS in checkpoint.py).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointPayload, Tensors, prune_checkpoints, save_checkpoint
from cloze.training.cluster.collectives import AllGather, run_together, single_worker_gather
from cloze.training.pretrain import loss_spikes
from cloze.training.pretrain.loss_spikes import SkippedBatch
from cloze.training.pretrain.manifest_facts import MetricsRow
from cloze.training.pretrain.tensorboard import FILE as EVENTS
from cloze.training.pretrain.tensorboard import EventFile

_ATTEMPTS = 3
_RETRY_SECONDS = 1.0  # before the second attempt
_METRICS_SECONDS = 30.0  # after which metrics are written even without a checkpoint


class AsyncSaver:
    """The saver of one worker. All workers must start the same saves in the same order."""

    def __init__(
        self,
        artifact: Location,
        keep: int,
        report: Callable[[str], object],
        all_gather: AllGather = single_worker_gather,
        confirm: Callable[[], object] = lambda: None,
    ) -> None:
        """Keeps the `keep` newest checkpoints. `report` is called with failures; only this thread uses `all_gather`.

        `confirm` is called directly before each write and deletion, and may raise.
        """
        self.failure = ""  # of the last save; empty if it succeeded
        self._artifact, self._keep, self._report = artifact, keep, report
        self._all_gather, self._confirm = all_gather, confirm
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._events, self._metrics_written = EventFile(), time.monotonic()

    def start(self, step: int, write: Callable[[], object], name: str = "checkpoint") -> None:
        """Call `write` in the thread once the previous save has ended; three times at most if it raises OSError."""
        self.wait()
        self._pending = self._thread.submit(self._try, step, write, name)

    def save(self, step: int, tensors: Tensors, payload: CheckpointPayload | None) -> None:
        """Write a checkpoint with each worker's tensors and worker 0's payload, and the metrics up to it."""
        self.start(step, partial(self._write_checkpoint, step, tensors, payload))

    def save_skipped(self, step: int, skipped: Sequence[SkippedBatch], rank: int) -> None:
        """Write skipped.jsonl before training rolls back. Returns when it is written, or has failed three times."""
        file = self._artifact / loss_spikes.FILE
        write = partial(file.write_bytes, loss_spikes.encode_skipped(skipped), self._confirm)
        self.start(step, (lambda: None) if rank else write, loss_spikes.FILE)
        self.wait()
        self._events = EventFile()  # after a rollback the rows no longer continue those already encoded

    def save_metrics(self, rows: Sequence[MetricsRow]) -> None:
        """Write the metrics, unless they were written recently. If it fails, the next save writes them as well.

        Only worker 0 calls it.
        """
        if time.monotonic() - self._metrics_written > _METRICS_SECONDS:
            self._metrics_written = time.monotonic()
            self._thread.submit(self._write_metrics, list(rows))

    def wait(self) -> None:
        """Wait until the save has been written, or has failed three times. Raises an error that a retry cannot fix."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Wait for all started saves and end the thread."""
        self._thread.shutdown()

    def _try(self, step: int, write: Callable[[], object], name: str) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                run_together(self._all_gather, write)
                self.failure = ""
                return
            except OSError as error:
                self.failure = f"{name} at step {step} not written ({error}), attempt {attempt}"
                self._report(self.failure)
                if attempt < _ATTEMPTS:
                    time.sleep(attempt * _RETRY_SECONDS)

    def _write_checkpoint(self, step: int, tensors: Tensors, payload: CheckpointPayload | None) -> None:
        save_checkpoint(self._artifact, step, tensors, payload, self._all_gather, self._confirm)
        if payload:
            self._confirm()
            try:
                prune_checkpoints(self._artifact, self._keep)
            except OSError as error:  # the checkpoint is complete; the next save deletes more
                self._report(f"old checkpoints not deleted at step {step} ({error})")
            self._write_metrics(payload.state["metrics"]["rows"])

    def _write_metrics(self, rows: Sequence[MetricsRow]) -> None:
        if (self._artifact / "manifest.json").exists():  # finished by another run, on a store that has no leases
            return
        (self._artifact / "metrics.jsonl").write_bytes(json_lines.encode(rows), self._confirm)
        (self._artifact / EVENTS).write_bytes(self._events(rows), self._confirm)
