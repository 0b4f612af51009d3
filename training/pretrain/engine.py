"""model + batches -> updates of its weights, the same in all workers: one interface before two back ends.

A step sees the whole global batch: its loss is the mean over all masked positions plus the mean over all next-sentence
labels, however unevenly these fall on workers and micro-batches. Weights, gradients and moments are fp32; bf16 and fp16
are autocast's: every back end then has one kind of state, and products in 16 bits take the time that counts.

`Plain`, for ZeRO stage 0, is torch alone: each worker holds all weights, and gradients are summed over the workers.
`Zero` (zero.py), for stages 1 to 3, is DeepSpeed, which divides moments, gradients and weights among them.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import astuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloze.training.checkpoints.checkpoint import KINDS, Tensors
from cloze.training.model.hardware import worker_device
from cloze.training.model.optim import (
    DTYPES,
    LossScale,
    OptimizerConfig,
    Precision,
    adamw,
    fresh_state,
    parameter_groups,
)
from cloze.training.model.totals import Totals
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig
from cloze.training.pretrain.objective import BackEnd, Objective, Step

_FIRST_SCALE = 2.0**16  # the first steps halve it as often as it takes
_SUMMED_AT_ONCE = 500_000_000  # elements of gradients


class Engine:
    """A model in training, in one worker of a process group; learning rate and batches come with each step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        *,
        zero_stage: int = 1,
        precision: Precision = "fp32",
        more: DeepSpeedConfig | None = None,
    ) -> None:
        """Raises UserError where a stage above 0 has no DeepSpeed."""
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.model = model
        self.objective = Objective(model, precision).to(self.device)
        self.updates = 0
        self.loss_scale = LossScale(_FIRST_SCALE) if precision == "fp16" else None
        self._back_end = _back_end(self.objective, optimizer, zero_stage, more or DeepSpeedConfig())

    def step(
        self,
        batches: Sequence[Batch],
        learning_rate: float,
        dropout_seed: int,
        leave: Callable[[], bool] = lambda: False,
    ) -> Step | None:
        """One update from this worker's micro-batches. Give each worker and step a `dropout_seed` of its own.

        Where precision is not fp16 and the back end is `Plain`, it does not wait for the device.

        Where `leave`, asked before each micro-batch but the first, says so in all workers, the step is given up, and
        None returned: weights and moments are as before it, and can be saved, but no other step may follow.
        """
        torch.manual_seed(dropout_seed)
        self.objective.train()
        self._back_end.begin(learning_rate, self.loss_scale.factor if self.loss_scale else None)
        sums, (masked, labels) = self._zeros(), self._counts(batches)
        for turn, batch in enumerate(batches, start=1):
            if turn > 1 and leave():
                return None
            loss, of_batch = self._back_end.forward(batch.to(self.device), masked, labels)
            self._back_end.backward(loss, last=turn == len(batches))
            sums += of_batch
        norm = self._back_end.update()
        dist.all_reduce(sums)
        return Step(sums, norm, self._judged(norm))

    def _judged(self, norm: Tensor | float) -> bool:
        """Count the update; whether there was none, as gradients overflowed for a scale that can still be lowered."""
        scale = self.loss_scale
        if scale is None:
            self.updates += 1
            return False
        overflowed = not math.isfinite(norm)
        self.updates += not overflowed
        self.loss_scale = scale.after(overflowed)
        return overflowed and scale.can_fall

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Sequence[Batch]]) -> Totals:
        """The sums over all workers' batches, without dropout; each worker brings equally many."""
        self.objective.eval()
        sums, one = self._zeros(), torch.ones((), device=self.device)
        for turns in batches:
            for batch in turns:
                sums += self._back_end.forward(batch.to(self.device), one, one)[1]
        dist.all_reduce(sums)
        return Totals(*sums.tolist())

    def _zeros(self) -> Tensor:
        return torch.zeros(len(astuple(Totals())), dtype=torch.float64, device=self.device)

    def _counts(self, batches: Sequence[Batch]) -> Tensor:
        """Masked positions and next-sentence labels of the global batch."""
        masked = sum(batch.masked_lm_labels.numel() for batch in batches)
        labels = sum(int((batch.next_sentence_label != IGNORE_INDEX).sum()) for batch in batches)
        counts = torch.tensor([masked, labels], dtype=torch.float32).to(self.device, non_blocking=True)
        dist.all_reduce(counts)
        return counts.clamp(min=1)

    def tensors(self, kept: Collection[str] = KINDS) -> Tensors:
        """fp32 weights and both moments, whole: those kinds that are `kept` here. Every worker has to call it."""
        found: Tensors = {kind: {} for kind in kept}
        for name, parameter in self.model.named_parameters():
            for kind in KINDS:
                value = self._back_end.read(parameter, kind)
                if kind in found:
                    found[kind][name] = value.detach().cpu().clone()
        return found

    def load(self, tensors: Tensors, updates: int, loss_scale: LossScale | None = None) -> None:
        """Put back what `tensors` gave after so many updates, whatever back end and number of workers it came from.

        fp16 goes on with the given loss scale, or with that of the first step.
        """
        self.updates = updates
        if self.loss_scale:
            self.loss_scale = loss_scale or LossScale(_FIRST_SCALE)
        for name, parameter in self.model.named_parameters():
            for kind in tensors:
                self._back_end.write(parameter, kind, tensors[kind][name].to(self.device))
        self._back_end.set_updates(updates)


def _back_end(objective: Objective, config: OptimizerConfig, zero_stage: int, more: DeepSpeedConfig) -> BackEnd:
    optimizer = adamw(parameter_groups(objective.model, config.weight_decay), config)
    if not zero_stage:
        return Plain(objective, optimizer, config.max_grad_norm, more.communication_data_type or "fp32")
    from cloze.training.pretrain.zero import Zero

    return Zero(objective, optimizer, config.max_grad_norm, zero_stage, more)


class Plain:
    """A back end of torch alone: every worker holds all weights and moments, and makes the same update of them."""

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, max_grad_norm: float, travels_as: Precision
    ) -> None:
        """Between workers, gradients travel as `travels_as`."""
        self._objective = objective
        self._parameters = list(objective.parameters())
        self._optimizer, self._max_grad_norm = optimizer, max_grad_norm
        self._workers, self._dtype = dist.get_world_size(), DTYPES[travels_as]
        self._scale: float | None = None
        for parameter in self._parameters:
            optimizer.state[parameter] = fresh_state(parameter)
            if self._workers > 1:  # processors of two kinds draw first weights that differ in their last bits
                dist.broadcast(parameter.data, src=0)

    def begin(self, learning_rate: float, scale: float | None) -> None:
        self._scale = scale
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._objective(batch, masked, labels)

    def backward(self, loss: Tensor, last: bool) -> None:
        """`_average` divides by the workers again: with three, say, it rounds as DeepSpeed does."""
        (loss * self._workers * (self._scale or 1.0)).backward()

    def update(self) -> Tensor:
        gradients = self._gradients()
        if self._workers > 1:
            self._average(gradients)
        if self._scale is not None:
            for gradient in gradients:
                gradient /= self._scale
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        if self._scale is None or math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _gradients(self) -> list[Tensor]:
        """Of all parameters: zeros for one that no batch of this worker's has used."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Make each gradient the mean over the workers, the same bits in all of them."""
        for some in _in_buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in some]).to(self._dtype)
            dist.all_reduce(flat)
            flat.mul_(1.0 / self._workers)
            for gradient, mean in zip(some, flat.split([one.numel() for one in some]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        return parameter.data if kind == "model" else self._optimizer.state[parameter][kind]

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        self.read(parameter, kind).copy_(value)

    def set_updates(self, updates: int) -> None:
        for parameter in self._parameters:
            self._optimizer.state[parameter]["step"].fill_(updates)


def _in_buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in their order, each bucket ended by the one that makes it too large to grow."""
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        bucket.append(gradient)
        elements += gradient.numel()
        if elements > _SUMMED_AT_ONCE:
            yield bucket
            bucket, elements = [], 0
    if bucket:
        yield bucket
