"""The driver's requests, preemption notices and the clock -> whether to stop or save, the same in all workers.

Workers with different decisions would wait for each other indefinitely. So once per step the workers exchange their
information, and all of them act on the result.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from cloze.training.cluster.collectives import TIMEOUT
from cloze.training.cluster.heartbeat import ReportProgress

_LONG_STEP = 2.0  # seconds; longer steps can be abandoned between their micro-batches
_PREEMPTION_CHECK_SECONDS = 5.0  # between two checks for a preemption notice


class Decision(NamedTuple):
    """The next action of all workers."""

    stop: bool  # save and return: the driver requests it
    save: bool  # save and continue: the preemption of a node has just been announced
    seconds: float  # spent on training so far, by the clock of worker 0


class RunControl:
    """The control of one worker. All workers must call it at the same points of the training."""

    def __init__(self, report_progress: ReportProgress, is_preempted: Callable[[], bool]) -> None:
        """All workers must create theirs together.

        `report_progress` shows worker 0's progress and returns whether the driver requests to stop. `is_preempted`,
        which all workers call together, says whether the loss of a node was announced.
        """
        self._report_progress, self._is_preempted = report_progress, is_preempted
        self._is_first = dist.get_rank() == 0
        # exchanged on the CPU: a GPU would have to finish its step first
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if dist.get_backend() != "gloo" else None
        self._preempted = False
        self.start_clock(0.0)

    def start_clock(self, seconds: float) -> None:
        """Continue the clock after `seconds` of training."""
        self._seconds, self._since = seconds, time.monotonic() - seconds
        self._step_seconds = 0.0  # of the last step
        self._checked = time.monotonic()

    def after_step(self, done: float, note: str) -> Decision:
        """Decide after a step; `done` and `note` are shown to the user."""
        decision = self._decide(done, note)
        self._step_seconds, self._seconds = decision.seconds - self._seconds, decision.seconds
        return decision

    def within_step(self, done: float, note: str) -> Decision | None:
        """Decide between two micro-batches. None unless the previous step was long, by the clock of worker 0."""
        return self._decide(done, note) if self._step_seconds > _LONG_STEP else None

    def _decide(self, done: float, note: str) -> Decision:
        stop_requested, now = self._report_progress(done, note), time.monotonic()
        check_due = self._is_first and not self._preempted and now - self._checked > _PREEMPTION_CHECK_SECONDS
        own_seconds = now - self._since if self._is_first else 0.0
        stop, check, seconds = self._all_reduce_max(stop_requested, check_due, own_seconds)
        if check:
            self._checked, self._preempted = now, self._is_preempted()
        return Decision(bool(stop), bool(check) and self._preempted, seconds)

    def _all_reduce_max(self, *values: float) -> list[float]:
        """The maximum of each value over all workers."""
        maxima = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self._group)
        return maxima.tolist()
