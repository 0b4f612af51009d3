"""The configuration of pretraining."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.keyed_random import hash64
from cloze.training.checkpoints.warm_start import is_name, weights_files
from cloze.training.model.architectures import ModelConfig
from cloze.training.model.optim import OptimizerConfig
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig
from cloze.training.pretrain.phases import LearningRateSchedule, Phase, learning_rate_schedules

_Count = Annotated[int, Field(gt=0)]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class PretrainConfig(Config):
    """Pretraining: the model, the optimizer, the phases, and how the work is distributed.

    Keys with the note "Does not change the result" may still change its rounding; `workers` and `micro_batch_size`
    also change the random draws of dropout.
    """

    model: ModelConfig
    """Size and settings of the model."""
    init: Annotated[str | None, InputPath(files_in=weights_files, is_name=is_name)] = None
    """A model to start from: a Hugging Face folder, the digest of a finished checkpoint, or NAME@promoted: the model
    that is promoted as NAME when the run is planned. Random weights if unset, or if nothing is promoted as NAME yet."""
    phases: list[Phase] = Field(min_length=1)
    """The phases of the training, one after the other, for example at length 128 and then 512."""
    budget: str | None = None
    """How long training may take, such as 90s, 20m or 2h, on any machine; replaces the phases' `steps`."""
    optimizer: OptimizerConfig
    """Settings of the optimizer and the learning rate."""
    global_batch_size: int = Field(gt=0)
    """Examples per update, over all workers. A phase may have its own number."""
    group_by_length: int = Field(default=64, gt=0)
    """Number of examples of similar length that stay together, one micro-batch or more; reduces padding."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of initial weights, order of examples, masks and dropout."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Data type of matrix products; auto chooses the fastest on this hardware."""
    micro_batch_size: Annotated[int, Compute, Field(gt=0)] = 32
    """Maximum number of examples that a worker computes at once; limits the memory. A phase may have its own number."""
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    """Number of GPUs, one for each worker; auto uses all that the cluster has or can scale to, 0 trains on CPUs."""
    workers: Annotated[_Count | tuple[_Count, _Count] | None, Compute] = None
    """Number of workers, or [min, max] for an elastic group; by default one for each GPU, or two without GPUs."""
    threads: Annotated[int, Compute, Field(gt=0)] = 1
    """Processor cores of each worker."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], Compute] = 1
    """DeepSpeed ZeRO stage: 1 partitions the optimizer state, 2 also gradients, 3 also weights; 0 uses PyTorch only."""
    deepspeed: Annotated[DeepSpeedConfig, Compute] = DeepSpeedConfig()
    """More of DeepSpeed's own settings."""
    activation_checkpointing: Annotated[bool, Compute] = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    compile: Annotated[bool | Literal["auto"], Compute] = "auto"
    """Compile the encoder layers with torch.compile; auto does on GPUs that have Triton, at ZeRO stages 0 to 2."""
    checkpoint_every: Annotated[int, Compute, Field(gt=0)] = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Compute, Field(gt=0)] = 2
    """Number of newest checkpoints to keep, in addition to the best one."""
    log_every: Annotated[int, Compute, Field(gt=0)] = 50
    """Steps between two rows of training metrics."""
    eval_every: Annotated[int, Compute, Field(gt=0)] = 1000
    """Steps between two evaluations on held-out examples."""
    eval_batches: Annotated[int, Compute, Field(gt=0)] = 16
    """Global batches of held-out examples in an evaluation."""
    max_failures: Annotated[int, Compute, Field(ge=0)] = 3
    """Failures of the worker group that are tolerated; one more ends the training."""
    step_timeout: Annotated[float, Compute, Field(gt=0)] = 1800.0
    """Seconds that a step and the evaluation after it may take before the workers are restarted."""
    guard_factor: Annotated[float, Field(gt=0)] | None = 20.0
    """A loss or gradient norm this many robust standard deviations above recent steps is undone; null disables it."""
    max_rollbacks: Annotated[int, Compute, Field(ge=0)] = 3
    """Times that training may go back to a checkpoint and skip a batch, in the whole run."""

    @property
    def total_steps(self) -> int | None:
        """Steps of all phases, or None with a time budget."""
        return None if self.budget else sum(phase.steps or 0 for phase in self.phases)

    @property
    def budget_seconds(self) -> float | None:
        return float(self.budget[:-1]) * _SECONDS[self.budget[-1]] if self.budget else None

    @field_validator("workers", mode="before")
    @classmethod
    def _is_count_or_range(cls, value: Any) -> Any:
        counts = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if value is not None and not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("is neither a number nor a range; give one such as 4, or [min, max] such as [2, 8]")
        return tuple(value) if isinstance(value, list) else value

    @field_validator("budget", mode="before")
    @classmethod
    def _is_duration(cls, value: Any) -> Any:
        if value is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+)?[smhd]", str(value)):
            raise ValueError("is not a duration; give one such as 90s, 20m, 2h or 1d")
        return value

    @model_validator(mode="after")
    def _phases_end(self) -> "PretrainConfig":
        for number, phase in enumerate(self.phases):
            if self.budget and phase.steps:
                raise ValueError(
                    f"phases.{number}.steps is {phase.steps}, but budget {self.budget} already ends the phases; "
                    "remove one of them"
                )
            if not self.budget and phase.share:
                raise ValueError(f"phases.{number}.share is set without budget; set budget, or replace share by steps")
            if not self.budget and not phase.steps:
                raise ValueError(f"phases.{number} has no end; set its steps, or set budget")
        if self.budget_seconds == 0:
            raise ValueError(f"budget is {self.budget}; give the time that training may take, such as 20m or 2h")
        without = [number for number, phase in enumerate(self.phases) if not phase.share]
        if self.budget and len(self.phases) > 1 and without:
            raise ValueError(f"phases.{without[0]} has no share of budget {self.budget}; set phases.{without[0]}.share")
        if self.budget and not math.isclose(sum(self.shares), 1):
            raise ValueError(f"the phases' shares add up to {sum(self.shares):g}; set them so that they add up to 1")
        return self

    @property
    def extent(self) -> tuple[float, str]:
        """The total amount of training as shown by the progress display, and its unit."""
        budget = self.budget_seconds
        if budget is None:
            return self.total_steps or 0, "steps"
        return (budget / 60, "minutes") if budget >= 120 else (budget, "seconds")

    def done(self, step: int, seconds: float) -> float:
        """How much of `extent` is done after `step` steps in `seconds` seconds."""
        budget = self.budget_seconds
        return seconds / budget * self.extent[0] if budget else step

    @property
    def allowed_worker_counts(self) -> list[int]:
        """The sizes that an elastic group may have, in ascending order; empty for a fixed size."""
        if not isinstance(self.workers, tuple):
            return []
        smallest, largest = self.workers
        sizes = self.global_batch_sizes
        return [count for count in range(smallest, largest + 1) if not any(size % count for size in sizes)]

    @property
    def shares(self) -> list[float]:
        """The fraction of the budget of each phase; a single phase takes all of it."""
        default = 1.0 if len(self.phases) == 1 else 0.0
        return [phase.share or default for phase in self.phases]

    @property
    def data_seeds(self) -> list[int]:
        """The seed of each phase for the order of its examples and for its masks.

        Phases of one length have the same examples. A later one sees them in another order, with other masks.
        """
        lengths = [phase.max_seq_length for phase in self.phases]
        earlier = [lengths[:number].count(length) for number, length in enumerate(lengths)]
        return [int(hash64(self.seed, count)[0]) % 2**31 if count else self.seed for count in earlier]

    @property
    def global_batch_sizes(self) -> list[int]:
        """The global batch size of each phase."""
        return [phase.global_batch_size or self.global_batch_size for phase in self.phases]

    @property
    def global_batch_size_keys(self) -> list[str]:
        """The key that sets the global batch size of each phase."""
        own = [phase.global_batch_size is not None for phase in self.phases]
        return [
            f"phases.{number}.global_batch_size" if is_own else "global_batch_size" for number, is_own in enumerate(own)
        ]

    @property
    def micro_batch_sizes(self) -> list[int]:
        """The micro-batch size of each phase."""
        return [phase.micro_batch_size or self.micro_batch_size for phase in self.phases]

    @property
    def learning_rate_schedules(self) -> list[LearningRateSchedule]:
        """The learning rate schedule of each phase."""
        return learning_rate_schedules(self.phases, self.shares, self.optimizer)

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "PretrainConfig":
        if not isinstance(self.workers, tuple):
            return self
        smallest, largest = self.workers
        if smallest > largest:
            raise ValueError(f"workers: [{smallest}, {largest}] is not a range; give [min, max]")
        if isinstance(self.gpus, int) and self.gpus:
            raise ValueError(
                f"gpus is {self.gpus}, but workers is a range from {smallest} to {largest}; "
                "remove gpus, or give one number of workers"
            )
        if not self.allowed_worker_counts:
            sizes = dict(zip(self.global_batch_size_keys, self.global_batch_sizes, strict=True))
            batches = " and ".join(f"{key} {size}" for key, size in sizes.items())
            raise ValueError(f"workers: no number from {smallest} to {largest} divides {batches}; give another range")
        return self

    @model_validator(mode="after")
    def _compiles_without_zero_3(self) -> "PretrainConfig":
        if self.compile is True and self.zero_stage == 3:
            raise ValueError(
                "compile is true, but ZeRO stage 3 gathers each layer's weights as it runs, which cannot be compiled; "
                "set compile to auto or false, or zero_stage to 2 or less"
            )
        return self

    @model_validator(mode="after")
    def _schedules_are_possible(self) -> "PretrainConfig":
        for schedule in self.learning_rate_schedules:
            schedule.check()
        return self

    @model_validator(mode="after")
    def _model_has_enough_positions(self) -> "PretrainConfig":
        longest = max(phase.max_seq_length for phase in self.phases)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {longest} is more than the model's {self.model.max_position_embeddings} positions; "
                "raise model.max_position_embeddings"
            )
        return self
