"""The phases of pretraining, and the learning rate schedule that is in force in each of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import Field

from cloze.pipeline.core.config import Compute, Config
from cloze.training.model.optim import OptimizerConfig, learning_rate_at, learning_rate_in_budget


class Phase(Config):
    """Training on examples of one sequence length, for a number of steps or a fraction of the time budget.

    A phase that sets `learning_rate` or `warmup_steps` starts a new learning rate schedule: a linear warmup from 0,
    then a linear decay to 0 at the end of the last phase before the next schedule. The other of the two keys is that of
    `optimizer`. A phase that sets neither continues the schedule of the phase before it.
    """

    max_seq_length: int = Field(ge=8)
    """Maximum length of the examples, in tokens."""
    max_predictions_per_seq: int = Field(gt=0)
    """Maximum number of masked positions in an example."""
    steps: int | None = Field(default=None, gt=0)
    """Number of updates; required unless `budget` is set."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Fraction of `budget` for this phase. The fractions add up to 1; a single phase takes all of it by default."""
    global_batch_size: int | None = Field(default=None, gt=0)
    """Examples per update in this phase; by default `pretrain.global_batch_size`."""
    micro_batch_size: Annotated[int | None, Compute, Field(gt=0)] = None
    """Maximum number of examples that a worker computes at once; by default `pretrain.micro_batch_size`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak of a new learning rate schedule, which starts with this phase."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of the warmup of a new learning rate schedule, which starts with this phase."""

    @property
    def starts_schedule(self) -> bool:
        """Whether a new learning rate schedule starts with this phase, unless it is the first one anyway."""
        return self.learning_rate is not None or self.warmup_steps is not None


class LearningRateSchedule(NamedTuple):
    """A linear warmup from 0, then a linear decay to 0 at the end of the last phase that belongs to the schedule."""

    optimizer: OptimizerConfig  # with the peak and the warmup of this schedule
    phases: range  # indices of its phases
    steps: int | None  # of its phases; None with a time budget
    budget_start: float  # fraction of the time budget before its first phase
    budget_share: float  # fraction of the time budget for its phases
    learning_rate_key: str  # the keys of PretrainConfig that set the peak and the warmup
    warmup_key: str

    def learning_rate(self, step: int, budget_used: float) -> float:
        """The learning rate of update `step`, counted from 0 at the start of the schedule.

        `budget_used` is the fraction of the whole time budget that is over. It is ignored if the schedule has steps.
        """
        if self.steps is not None:
            return learning_rate_at(step, self.optimizer, self.steps)
        elapsed = (budget_used - self.budget_start) / self.budget_share
        return learning_rate_in_budget(step, self.optimizer, elapsed)

    def check(self) -> None:
        """Raises ValueError when the warmup does not end."""
        first, last, warmup = self.phases[0], self.phases[-1], self.optimizer.warmup_steps
        if self.steps is not None and warmup > self.steps:
            phases = f"phases.{first} to phases.{last}" if last > first else f"phases.{first}"
            own_key = f"phases.{first}.warmup_steps"
            fix = "lower it" if first == 0 or self.warmup_key == own_key else f"set {own_key}"
            raise ValueError(
                f"{self.warmup_key} {warmup} is more than the {self.steps} steps of its learning rate schedule "
                f"({phases}); {fix}"
            )


def learning_rate_schedules(
    phases: Sequence[Phase], shares: Sequence[float], optimizer: OptimizerConfig
) -> list[LearningRateSchedule]:
    """The learning rate schedule of each phase: that of the phase before it, unless it starts a new one.

    `shares` are the phases' fractions of the time budget, if any. A single schedule takes all of it, even if the
    fractions are rounded.
    """
    starts = [number for number, phase in enumerate(phases) if number == 0 or phase.starts_schedule]
    found: list[LearningRateSchedule] = []
    for first, end in pairwise([*starts, len(phases)]):
        own = {key: getattr(phases[first], key) for key in ("learning_rate", "warmup_steps")}
        own = {key: value for key, value in own.items() if value is not None}
        steps = [phase.steps for phase in phases[first:end] if phase.steps is not None]
        schedule = LearningRateSchedule(
            optimizer.model_copy(update=own),
            range(first, end),
            sum(steps) if steps else None,
            budget_start=sum(shares[:first]),
            budget_share=1.0 if len(starts) == 1 else sum(shares[first:end]),
            learning_rate_key=f"phases.{first}.learning_rate" if "learning_rate" in own else "optimizer.learning_rate",
            warmup_key=f"phases.{first}.warmup_steps" if "warmup_steps" in own else "optimizer.warmup_steps",
        )
        found += [schedule] * (end - first)
    return found
