"""What the driver wants, a node's notice and the clock -> whether to leave or to save, and the time, in all workers.

Workers that do not agree wait for each other for ever: so what each of them knows goes into one exchange a step, and
what comes out of it is what all of them do.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from cloze.training.cluster.heartbeat import Tell

_LONG_STEP = 2.0  # seconds, from which on a step is left between its micro-batches
_ASK_SECONDS = 5.0  # between two looks for a notice that a node will be taken away


class Decision(NamedTuple):
    """What all workers do now."""

    leave: bool  # save and return: the driver asks for it
    save: bool  # save and go on: the end of a node has just been announced
    seconds: float  # of training so far, by the clock of worker 0


class RunControl:
    """One worker's; all ask theirs at the same points of the training."""

    def __init__(self, tell: Tell, preempted: Callable[[], bool]) -> None:
        """`tell` shows worker 0's progress and returns whether the driver asks to leave; `preempted`, which all workers
        call together, says whether a node will be taken away. All workers make theirs together."""
        self._tell, self._preempted = tell, preempted
        self._is_first = dist.get_rank() == 0
        # numbers of the CPU: a GPU would have to finish its step before it could tell them
        self._group = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else None
        self._noticed = False
        self.start(0.0)

    def start(self, seconds: float) -> None:
        """The clock goes on from so many seconds of training."""
        self._seconds, self._since = seconds, time.monotonic() - seconds
        self._step_seconds = 0.0  # of the last step
        self._asked = time.monotonic()

    def after_step(self, done: float, note: str) -> Decision:
        """`done` and `note` are what a user is shown."""
        decision = self._decide(done, note)
        self._step_seconds, self._seconds = decision.seconds - self._seconds, decision.seconds
        return decision

    def within_step(self, done: float, note: str) -> Decision | None:
        """Between two micro-batches; None unless the step before was long, by the clock that all workers share."""
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
        numbers = torch.tensor(mine, dtype=torch.float64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group)
        return numbers.tolist()
