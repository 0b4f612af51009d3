"""The configuration of pretraining: what is trained, on what, for how long."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.training.checkpoints.warm_start import is_digest, weights_file
from cloze.training.model.architectures import ModelConfig
from cloze.training.model.optim import OptimizerConfig
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig

_Count = Annotated[int, Field(gt=0)]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Phase(Config):
    """So many updates, or such a share of the time budget, on the examples of one sequence length."""

    max_seq_length: int = Field(ge=8)
    max_predictions_per_seq: int = Field(gt=0)
    steps: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0, le=1)


class PretrainConfig(Config):
    """What is trained, on what, for how long.

    What is marked Compute changes rounding alone, but that workers and micro_batch_size also change dropout's draws.
    """

    model: ModelConfig
    #: The folder of a model whose weights to begin with, or a finished checkpoint's digest; the weights' bytes count.
    init: Annotated[str | None, InputPath(file_in=weights_file, is_name=is_digest)] = None
    phases: list[Phase] = Field(min_length=1)
    #: How long training may take, such as 90s, 20m or 2h: the schedule ends when the time does, whatever the machine.
    budget: str | None = None
    optimizer: OptimizerConfig
    global_batch_size: int = Field(gt=0)
    group_by_length: int = Field(default=64, gt=0)  # rows of like length that come together: a micro-batch, or more
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch_size: Annotated[int, Compute, Field(gt=0)] = 32
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    #: By itself one for each GPU, two without any; of [least, most] as many as there is room for and divide the batch.
    workers: Annotated[_Count | tuple[_Count, _Count] | None, Compute] = None
    threads: Annotated[int, Compute, Field(gt=0)] = 1  # of a worker's processor cores
    zero_stage: Annotated[Literal[0, 1, 2, 3], Compute] = 1
    deepspeed: Annotated[DeepSpeedConfig, Compute] = DeepSpeedConfig()  # more of its keys
    activation_checkpointing: Annotated[bool, Compute] = False  # less memory, a third more work
    checkpoint_every: Annotated[int, Compute, Field(gt=0)] = 1000
    keep_checkpoints: Annotated[int, Compute, Field(gt=0)] = 2
    log_every: Annotated[int, Compute, Field(gt=0)] = 50
    eval_every: Annotated[int, Compute, Field(gt=0)] = 1000
    eval_batches: Annotated[int, Compute, Field(gt=0)] = 16
    max_failures: Annotated[int, Compute, Field(ge=0)] = 3
    step_timeout: Annotated[float, Compute, Field(gt=0)] = 1800.0  # seconds for a step, and what is evaluated after it
    guard_factor: Annotated[float, Field(gt=0)] | None = 20.0  # robust deviations above recent steps that are a fault
    max_rollbacks: Annotated[int, Compute, Field(ge=0)] = 3  # of the whole run, a batch skipped for each

    @property
    def total_steps(self) -> int | None:
        """None where a budget says when to end."""
        return None if self.budget else sum(phase.steps or 0 for phase in self.phases)

    @property
    def budget_seconds(self) -> float | None:
        return float(self.budget[:-1]) * _SECONDS[self.budget[-1]] if self.budget else None

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_or_a_range(cls, given: Any) -> Any:
        numbers = given if isinstance(given, list | tuple) and len(given) == 2 else [given]
        if given is not None and not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("is neither a number nor a range; give one such as 4, or [least, most] such as [2, 8]")
        return tuple(given) if isinstance(given, list) else given

    @field_validator("budget", mode="before")
    @classmethod
    def _is_a_time(cls, given: Any) -> Any:
        if given is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+)?[smhd]", str(given)):
            raise ValueError("is no time; give one such as 90s, 20m, 2h or 1d")
        return given

    @model_validator(mode="after")
    def _phases_have_an_end(self) -> "PretrainConfig":
        for number, phase in enumerate(self.phases):
            if self.budget and phase.steps:
                raise ValueError(
                    f"phases.{number}.steps is {phase.steps} beside budget {self.budget}, which ends the phases; "
                    "remove one of them"
                )
            if not self.budget and phase.share:
                raise ValueError(f"phases.{number}.share is of a budget; set budget, or steps in place of share")
            if not self.budget and not phase.steps:
                raise ValueError(f"phases.{number} has no end; set its steps, or budget for all of them")
        if self.budget_seconds == 0:
            raise ValueError(f"budget is {self.budget}; give the time that training may take, such as 20m or 2h")
        if self.budget and not math.isclose(sum(self.shares), 1):
            raise ValueError(
                f"the phases' shares of the budget add up to {sum(self.shares):g}; give each one, 1 in all"
            )
        return self

    @property
    def extent(self) -> tuple[float, str]:
        """How much training is, as progress shows it, and in what."""
        budget = self.budget_seconds
        if budget is None:
            return self.total_steps or 0, "steps"
        return (budget / 60, "minutes") if budget >= 120 else (budget, "seconds")

    def done(self, step: int, spent: float) -> float:
        """How much of `extent` is done after so many steps, in so many seconds."""
        budget = self.budget_seconds
        return spent / budget * self.extent[0] if budget else step

    @property
    def allowed_worker_counts(self) -> list[int]:
        """The numbers of workers that a group may have, where it is to shrink and to grow: rising."""
        if not isinstance(self.workers, tuple):
            return []
        least, most = self.workers
        return [count for count in range(least, most + 1) if self.global_batch_size % count == 0]

    @property
    def shares(self) -> list[float]:
        """Of the budget, each phase's; one that is alone has all of it."""
        alone = 1.0 if len(self.phases) == 1 else 0.0
        return [phase.share or alone for phase in self.phases]

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "PretrainConfig":
        if not isinstance(self.workers, tuple):
            return self
        least, most = self.workers
        if least > most:
            raise ValueError(f"workers: {least} to {most} is no range; give [least, most]")
        if isinstance(self.gpus, int) and self.gpus:
            raise ValueError(
                f"gpus is {self.gpus} beside workers from {least} to {most}; remove gpus, or give one number"
            )
        if not self.allowed_worker_counts:
            raise ValueError(
                f"workers: no number from {least} to {most} divides global_batch_size {self.global_batch_size}; "
                "give another range"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "PretrainConfig":
        warmup, total = self.optimizer.warmup_steps, self.total_steps
        if total and warmup > total:
            raise ValueError(f"optimizer.warmup_steps {warmup} is more than all {total} steps; lower it")
        return self

    @model_validator(mode="after")
    def _positions_suffice(self) -> "PretrainConfig":
        longest = max(phase.max_seq_length for phase in self.phases)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {longest} is more than the model's {self.model.max_position_embeddings} positions; "
                "raise model.max_position_embeddings"
            )
        return self
