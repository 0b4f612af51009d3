"""What the driver wants, a node's notice and the clock -> whether to go on, save or leave, the same in all workers.

Workers that do not agree wait for each other for ever: so what each of them knows goes into one exchange a step, and
what comes out of it is what all of them do.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from training.device import worker_device
from training.heartbeat import Tell

_LONG_STEP = 2.0  # seconds, from which on a step is left between its micro-batches
_ASK_SECONDS = 5.0  # between two looks for a notice that a node will be taken away


class Decision(NamedTuple):
    """What all workers do now."""

    leave: bool  # save and return: the driver wants it
    save: bool  # save and go on: the end of a node has just been announced
    seconds: float  # of training so far, by the clock of worker 0


class RunControl:
    """One worker's; all ask theirs at the same points of the training."""

    def __init__(self, tell: Tell, preempted: Callable[[], bool], seconds: float) -> None:
        """The clock goes on from so many `seconds` of training. `tell` shows worker 0's progress and returns what the
        driver wants; `preempted`, which all workers call together, says whether a node will be taken away."""
        self._tell, self._preempted, self._device = tell, preempted, worker_device()
        self._is_first = dist.get_rank() == 0
        self._seconds, self._since = seconds, time.monotonic() - seconds
        self._step_seconds = 0.0  # of the last step
        self._asked, self._noticed = time.monotonic(), False

    def after_step(self, done: float, note: str) -> Decision:
        """`done` and `note` are what a user is shown."""
        decision = self._decide(done, note)
        self._step_seconds, self._seconds = decision.seconds - self._seconds, decision.seconds
        return decision

    def within_step(self, done: float, note: str) -> Decision | None:
        """Between two micro-batches. None in a short step; all workers took the one before to be long, or none."""
        return self._decide(done, note) if self._step_seconds > _LONG_STEP else None

    def _decide(self, done: float, note: str) -> Decision:
        wish, now = self._tell(done, note), time.monotonic()
        asks = self._is_first and not self._noticed and now - self._asked > _ASK_SECONDS
        leave, asking, seconds = self._agree(wish, asks, now - self._since if self._is_first else 0.0)
        if asking:
            self._asked, self._noticed = now, self._preempted()
        return Decision(bool(leave), bool(asking) and self._noticed, seconds)

    def _agree(self, *mine: float) -> list[float]:
        """The largest of all workers' numbers, each in its place."""
        numbers = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()
