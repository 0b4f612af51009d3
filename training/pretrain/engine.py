"""A model and batches -> updates of its weights, the same in all workers, with one of two backends.

A step covers the whole global batch: its loss is the mean over all masked positions plus the mean over all
next-sentence labels, even if these are distributed unevenly over workers and micro-batches. Weights, gradients and
moments are fp32. bf16 and fp16 use autocast: so every backend stores the same state, and the matrix products, which
take most of the time, run in 16 bits.

`TorchBackend`, for ZeRO stage 0, is plain data parallelism in PyTorch: each worker has all weights, and gradients are
averaged over the workers. `DeepSpeedBackend` (deepspeed_zero.py), for stages 1 to 3, partitions moments,
gradients and weights.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cloze.training.checkpoints.checkpoint import KINDS, Tensors
from cloze.training.model.batch_totals import Totals
from cloze.training.model.compiled import compile_layers, without_compilation
from cloze.training.model.hardware import worker_device
from cloze.training.model.optim import (
    DTYPES,
    LossScale,
    OptimizerConfig,
    Precision,
    adamw,
    initial_optimizer_state,
    parameter_groups,
)
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig
from cloze.training.pretrain.objective import Backend, Objective, StepResult

_INITIAL_LOSS_SCALE = 2.0**16  # halved by the first steps until no gradient overflows
_BUCKET_ELEMENTS = 500_000_000  # of gradients that are reduced at once


class Engine:
    """A model in training, in one worker of a process group. Each step is given its learning rate and batches."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        *,
        zero_stage: int = 1,
        precision: Precision = "fp32",
        deepspeed: DeepSpeedConfig | None = None,
        compiled: bool = False,
        fused_loss: bool = False,
    ) -> None:
        """`compiled` encoder layers, and a `fused_loss` that keeps no logits, save time and memory on a GPU.

        Raises UserError when DeepSpeed is not installed and `zero_stage` is above 0.
        """
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.model, self.compiled = model, compiled
        if compiled:
            compile_layers(model)
        self.objective = Objective(model, precision, fused_loss=fused_loss).to(self.device)
        self.updates = 0
        self.loss_scale = LossScale(_INITIAL_LOSS_SCALE) if precision == "fp16" else None
        self._backend = _backend(self.objective, optimizer, zero_stage, deepspeed or DeepSpeedConfig())

    def step(
        self,
        batches: Sequence[Batch],
        learning_rate: float,
        dropout_seed: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> StepResult | None:
        """One update from this worker's micro-batches. Each worker and step needs a different `dropout_seed`.

        With `TorchBackend`, unless the precision is fp16, it does not wait for the device.

        `should_stop` is called before each micro-batch except the first, and must return the same in all workers. If it
        is true, the step is abandoned and None returned: weights and moments are unchanged and can be saved, but no
        other step may follow.
        """
        torch.manual_seed(dropout_seed)
        self.objective.train()
        self._backend.start_step(learning_rate, self.loss_scale.factor if self.loss_scale else None)
        sums, (masked, labels) = self._zeros(), self._counts(batches)
        for micro_step, batch in enumerate(batches, start=1):
            if micro_step > 1 and should_stop():
                return None
            loss, batch_sums = self._backend.forward(batch.to(self.device), masked, labels)
            self._backend.backward(loss, is_last=micro_step == len(batches))
            sums += batch_sums
        norm = self._backend.optimizer_step()
        dist.all_reduce(sums)
        return StepResult(sums, norm, self._count_update(norm))

    def _count_update(self, norm: Tensor | float) -> bool:
        """Count the update, adapt the loss scale. True if gradients overflowed and the scale could still decrease."""
        scale = self.loss_scale
        if scale is None:
            self.updates += 1
            return False
        overflowed = not math.isfinite(norm)
        self.updates += not overflowed
        self.loss_scale = scale.after_step(overflowed)
        return overflowed and scale.can_decrease

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Sequence[Batch]]) -> Totals:
        """The sums over all workers' batches, without dropout; every worker needs the same number of them."""
        self.objective.eval()
        sums, one = self._zeros(), torch.ones((), device=self.device)
        with (
            without_compilation() if self.compiled else nullcontext()
        ):  # it would be compiled once more, without dropout
            for micro_batches in batches:
                for batch in micro_batches:
                    sums += self._backend.forward(batch.to(self.device), one, one)[1]
        dist.all_reduce(sums)
        return Totals(*sums.tolist())

    def _zeros(self) -> Tensor:
        return torch.zeros(len(astuple(Totals())), dtype=torch.float64, device=self.device)

    def _counts(self, batches: Sequence[Batch]) -> Tensor:
        """The numbers of masked positions and next-sentence labels in the global batch."""
        masked = sum(int((batch.masked_lm_labels != IGNORE_INDEX).sum()) for batch in batches)
        labels = sum(int((batch.next_sentence_label != IGNORE_INDEX).sum()) for batch in batches)
        counts = torch.tensor([masked, labels], dtype=torch.float32).to(self.device, non_blocking=True)
        dist.all_reduce(counts)
        return counts.clamp(min=1)

    def tensors(self, kinds: Collection[str] = KINDS) -> Tensors:
        """The complete fp32 tensors of these kinds. All workers must call it together; their `kinds` may differ."""
        tensors: Tensors = {kind: {} for kind in kinds}
        for name, parameter in self.model.named_parameters():
            for kind in KINDS:
                value = self._backend.read_tensor(parameter, kind)
                if kind in tensors:
                    tensors[kind][name] = value.detach().cpu().clone()
        return tensors

    def load(self, tensors: Tensors, updates: int, loss_scale: LossScale | None = None) -> None:
        """Restore the result of `tensors` after `updates` updates, from any backend and number of workers.

        fp16 continues with the given loss scale, or with the initial one.
        """
        self.updates = updates
        if self.loss_scale:
            self.loss_scale = loss_scale or LossScale(_INITIAL_LOSS_SCALE)
        for name, parameter in self.model.named_parameters():
            for kind in tensors:
                self._backend.write_tensor(parameter, kind, tensors[kind][name].to(self.device))
        self._backend.set_update_count(updates)


def _backend(objective: Objective, config: OptimizerConfig, zero_stage: int, deepspeed: DeepSpeedConfig) -> Backend:
    optimizer = adamw(parameter_groups(objective.model, config.weight_decay), config)
    if not zero_stage:
        return TorchBackend(objective, optimizer, config.max_grad_norm, deepspeed.communication_data_type or "fp32")
    from cloze.training.pretrain.deepspeed_zero import DeepSpeedBackend

    return DeepSpeedBackend(objective, optimizer, config.max_grad_norm, zero_stage, deepspeed)


class TorchBackend:
    """Data parallelism in PyTorch: every worker has all weights and moments, and makes the same update."""

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, max_grad_norm: float, communication: Precision
    ) -> None:
        """`communication` is the data type in which gradients are sent between workers."""
        self._objective = objective
        self._parameters = list(objective.parameters())
        self._optimizer, self._max_grad_norm = optimizer, max_grad_norm
        self._workers, self._dtype = dist.get_world_size(), DTYPES[communication]
        self._loss_scale: float | None = None
        for parameter in self._parameters:
            optimizer.state[parameter] = initial_optimizer_state(parameter)
            if self._workers > 1:  # initial weights differ in their last bits between types of processors
                dist.broadcast(parameter.data, src=0)

    def start_step(self, learning_rate: float, loss_scale: float | None) -> None:
        self._loss_scale = loss_scale
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._objective(batch, masked, labels)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Multiply by the number of workers, by which `_average` divides: this rounds as DeepSpeed does."""
        (loss * self._workers * (self._loss_scale or 1.0)).backward()

    def optimizer_step(self) -> Tensor:
        gradients = self._gradients()
        if self._workers > 1:
            self._average(gradients)
        if self._loss_scale is not None:
            for gradient in gradients:
                gradient /= self._loss_scale
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        if self._loss_scale is None or math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _gradients(self) -> list[Tensor]:
        """The gradients of all parameters: zeros for a parameter that none of this worker's batches used."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _average(self, gradients: Sequence[Tensor]) -> None:
        """Replace each gradient by the mean over the workers, with the same bits in all of them."""
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket]).to(self._dtype)
            dist.all_reduce(flat)
            flat.mul_(1.0 / self._workers)
            for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def read_tensor(self, parameter: nn.Parameter, kind: str) -> Tensor:
        return parameter.data if kind == "model" else self._optimizer.state[parameter][kind]

    def write_tensor(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        self.read_tensor(parameter, kind).copy_(value)

    def set_update_count(self, updates: int) -> None:
        for parameter in self._parameters:
            self._optimizer.state[parameter]["step"].fill_(updates)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients; a bucket ends once it has more than _BUCKET_ELEMENTS elements."""
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        bucket.append(gradient)
        elements += gradient.numel()
        if elements > _BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
    if bucket:
        yield bucket
