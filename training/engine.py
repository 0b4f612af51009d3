"""model + batches -> updates of its weights: the only file that knows DeepSpeed.

A step sees the whole global batch: its loss is the mean over all masked positions plus the mean over all next-sentence
labels, however unevenly these fall on workers and micro-batches. Weights, gradients and moments are fp32; bf16 and fp16
are autocast's: every ZeRO stage then has one kind of state, and products in 16 bits take the time that counts.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import astuple
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Config
from training.checkpoint import KINDS, Tensors
from training.data import IGNORED, Batch
from training.device import Precision, autocast, worker_device
from training.optim import LossScale, OptimizerConfig, adamw, parameter_groups
from training.record import Totals

_MOMENTS = KINDS[1:]
_FIRST_SCALE = 2.0**16  # the first steps halve it as often as it takes


#: What DeepSpeed calls settings that Cloze has under another name, or has to leave as they are.
_OURS = {
    "stage": "set zero_stage",
    "gradient_clipping": "set optimizer.max_grad_norm",
    "optimizer": "set the keys of optimizer",
    "scheduler": "set optimizer.learning_rate and optimizer.warmup_steps",
    "train_batch_size": "set global_batch_size",
    "train_micro_batch_size_per_gpu": "set micro_batch_size",
    "gradient_accumulation_steps": "set global_batch_size and micro_batch_size, which decide it",
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "torch_autocast", "data_types", "amp"), "set precision"),
    **dict.fromkeys(
        ("offload_param", "offload_optimizer", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
        "remove it: Cloze's checkpoints are gathered from the devices; zero_stage 3 and more workers save their memory",
    ),
    "round_robin_gradients": "remove it: Cloze would read one parameter's weights as another's",
    "checkpoint": "set checkpoint_every and keep_checkpoints",
    "zero_allow_untested_optimizer": "remove it",
}


class _PassedOn(Config):
    """Part of DeepSpeed's JSON; what is not set is left to DeepSpeed."""

    @model_validator(mode="before")
    @classmethod
    def _is_not_ours(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key in _OURS and key not in cls.model_fields:
                raise ValueError(f"{key} is not handed on to DeepSpeed; {_OURS[key]}")
        return given


class ZeroOptimization(_PassedOn):
    """How ZeRO communicates and what it holds; sizes count elements. None of it changes what is computed."""

    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    reduce_bucket_size: int | None = Field(default=None, gt=0)
    use_multi_rank_bucket_allreduce: bool | None = None
    allgather_partitions: bool | None = None
    allgather_bucket_size: int | None = Field(default=None, gt=0)
    overlap_comm: bool | None = None
    sub_group_size: int | None = Field(default=None, gt=0)
    stage3_prefetch_bucket_size: int | None = Field(default=None, ge=0)
    stage3_param_persistence_threshold: int | None = Field(default=None, ge=0)
    stage3_model_persistence_threshold: int | None = Field(default=None, ge=0)
    stage3_max_live_parameters: int | None = Field(default=None, ge=0)
    stage3_max_reuse_distance: int | None = Field(default=None, ge=0)
    stage3_module_granularity_threshold: int | None = Field(default=None, ge=0)
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    stage3_allgather_sequential: bool | None = None


class DeepSpeedConfig(_PassedOn):
    """What is handed on to DeepSpeed beside our own settings, under its own keys (deepspeed.ai/docs/config-json).

    DeepSpeed reads past a key that it does not know, so all that may be set stand here.
    """

    zero_optimization: ZeroOptimization = ZeroOptimization()
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None  # in which gradients travel


class Step(NamedTuple):
    """What came of an update: sums over the global batch, and the gradient's norm before clipping.

    Where an fp16 gradient has overflowed (in any worker), no weight was changed and the next step has a lower scale.
    """

    totals: Totals
    grad_norm: float
    overflowed: bool = False


class Objective(nn.Module):
    """A batch -> its part of the global batch's loss, and its sums in the order of Totals."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision: Precision = precision

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`masked` and `labels` are the global batch's counts of masked positions and next-sentence labels."""
        with autocast(batch.input_ids.device, self.precision):
            mlm_logits, nsp_logits = self.model(
                batch.input_ids,
                batch.token_type_ids,
                batch.attention_mask if batch.padded else None,
                batch.masked_lm_positions,
            )  # [n, vocab]; [b, 2], or None where nothing is learnt of pairs
        mlm_loss = functional.cross_entropy(mlm_logits, batch.masked_lm_labels, reduction="sum")
        nsp_loss, answers = torch.zeros_like(mlm_loss), torch.zeros_like(batch.next_sentence_label)
        if nsp_logits is not None:
            nsp_loss = functional.cross_entropy(
                nsp_logits, batch.next_sentence_label, reduction="sum", ignore_index=IGNORED
            )
            answers = nsp_logits.argmax(-1)
        with torch.no_grad():
            labelled = batch.next_sentence_label != IGNORED
            real = batch.attention_mask * batch.counted[:, None]
            sums = (
                mlm_loss,
                (mlm_logits.argmax(-1) == batch.masked_lm_labels).sum(),
                torch.tensor(batch.masked_lm_labels.numel()),
                nsp_loss,
                (answers == batch.next_sentence_label).sum(),
                labelled.sum(),
                (batch.next_sentence_label == 1).sum(),
                (answers * labelled).sum(),
                batch.counted.sum(),
                real.sum(),
                torch.tensor(real.numel()),
                real.sum(1).square().sum(),
            )
            totals = torch.stack([value.to(mlm_loss.device, torch.float64) for value in sums])
        return mlm_loss / masked + nsp_loss / labels, totals


class Engine:
    """A model under DeepSpeed, in one worker of a process group; learning rate and batches come with each step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerConfig,
        *,
        zero_stage: int = 1,
        precision: Precision = "fp32",
        more: DeepSpeedConfig | None = None,
    ) -> None:
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        deepspeed = _deepspeed(self.device)
        self.model = model
        self.updates = 0
        self.loss_scale = LossScale(_FIRST_SCALE) if precision == "fp16" else None
        self._zero_stage = zero_stage
        self._max_grad_norm = optimizer.max_grad_norm
        added = (more or DeepSpeedConfig()).model_dump(exclude_none=True)
        self._engine, *_ = deepspeed.initialize(
            model=Objective(model, precision).to(self.device),
            optimizer=adamw(parameter_groups(model, optimizer.weight_decay), optimizer),
            config=added
            | {
                "train_micro_batch_size_per_gpu": 1,  # a formality: the sizes are those of the batches that come
                "zero_optimization": {"stage": zero_stage} | added["zero_optimization"],
                "zero_allow_untested_optimizer": True,  # AdamW without bias correction goes element by element as well
                "gradient_clipping": optimizer.max_grad_norm if zero_stage else 0.0,  # stage 0 keeps the norm to itself
            },
        )
        self._make_moments()

    def step(
        self,
        batches: Sequence[Batch],
        learning_rate: float,
        dropout_seed: int,
        leave: Callable[[], bool] = lambda: False,
    ) -> Step | None:
        """One update from this worker's micro-batches. Give each worker and step a `dropout_seed` of its own.

        Where `leave`, asked before each micro-batch but the first, says so in all workers, the step is given up, and
        None returned: weights and moments are as before it, and can be saved, but no other step may follow.
        """
        torch.manual_seed(dropout_seed)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        totals, grad_norm = torch.zeros(len(astuple(Totals())), dtype=torch.float64, device=self.device), 0.0
        masked, labels = self._counts(batches)
        scale = self._set_scale()
        for turn, batch in enumerate(batches, start=1):
            if turn > 1 and leave():
                return None
            self._engine.set_gradient_accumulation_boundary(turn == len(batches))
            loss, sums = self._engine(batch.to(self.device), masked, labels)
            loss = loss * self.workers  # DeepSpeed averages over the workers
            self._engine.backward(loss * scale, scale_wrt_gas=False)
            if turn == len(batches) and not self._zero_stage:
                grad_norm = self._clip(scale)
            self._engine.step()
            totals += sums
        if self._zero_stage:
            grad_norm = math.inf if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())
        return Step(self._summed(totals), grad_norm, self._judged(grad_norm))

    def _set_scale(self) -> float:
        """Tell DeepSpeed of the loss scale; what is left for us to multiply by, as stage 0 has no part in it."""
        factor = self.loss_scale.factor if self.loss_scale else 1.0
        if not self._zero_stage:
            return factor
        if self.loss_scale:
            self._engine.optimizer.override_loss_scale(factor)
        return 1.0

    def _clip(self, scale: float) -> float:
        """The gradient's norm at stage 0, without the scale; there is nothing left to update with if it overflowed."""
        if self.loss_scale:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= scale
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm))
        if self.loss_scale and not math.isfinite(norm):
            self._engine.zero_grad()
        return norm

    def _judged(self, grad_norm: float) -> bool:
        """Count the update; whether there was none, as gradients overflowed for a scale that can still be lowered."""
        scale, overflowed = self.loss_scale, self.loss_scale is not None and not math.isfinite(grad_norm)
        self.updates += not overflowed
        if scale is None:
            return False
        self.loss_scale = scale.after(overflowed)
        return overflowed and scale.can_fall

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Sequence[Batch]]) -> Totals:
        """The sums over all workers' batches, without dropout; each worker brings equally many."""
        self._engine.eval()
        one = torch.ones((), device=self.device)
        totals = torch.zeros(len(astuple(Totals())), dtype=torch.float64, device=self.device)
        for turns in batches:
            for batch in turns:
                totals += self._engine(batch.to(self.device), one, one)[1]
        return self._summed(totals)

    def _counts(self, batches: Sequence[Batch]) -> Tensor:
        """Masked positions and next-sentence labels of the global batch."""
        masked = sum(batch.masked_lm_labels.numel() for batch in batches)
        labels = sum(int((batch.next_sentence_label != IGNORED).sum()) for batch in batches)
        counts = torch.tensor([masked, labels], dtype=torch.float32, device=self.device)
        dist.all_reduce(counts)
        return counts.clamp(min=1)

    def _summed(self, totals: Tensor) -> Totals:
        dist.all_reduce(totals)
        return Totals(*totals.tolist())

    def tensors(self, kept: Collection[str] = KINDS) -> Tensors:
        """fp32 weights and both moments, whole: those kinds that are `kept` here. Every worker has to call it."""
        found: Tensors = {kind: {} for kind in kept}
        for name, parameter in self.model.named_parameters():
            for kind in KINDS:
                value = self._read(parameter, kind)
                if kind in found:
                    found[kind][name] = value.detach().cpu().clone()
        return found

    def load(self, tensors: Tensors, updates: int, loss_scale: LossScale | None = None) -> None:
        """Put back what `tensors` gave after so many updates, whatever stage and number of workers it came from.

        fp16 goes on with the given loss scale, or with that of the first step.
        """
        self.updates = updates
        if self.loss_scale:
            self.loss_scale = loss_scale or LossScale(_FIRST_SCALE)
        for name, parameter in self.model.named_parameters():
            for kind in tensors:
                self._write(parameter, kind, tensors[kind][name].to(self.device))
        for tensor in self._owned():
            self._inner.state[tensor]["step"].fill_(updates)

    def _read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not self._zero_stage:
            return self._plain(parameter, kind)
        model = kind == "model"
        found = safe_get_full_fp32_param(parameter) if model else safe_get_full_optimizer_state(parameter, kind)
        assert found is not None, "not a parameter of DeepSpeed's"
        return found

    def _write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if not self._zero_stage:
            self._plain(parameter, kind).copy_(value)
            return
        if kind == "model":
            self._write_module(parameter, value)
        if self._zero_stage == 3:
            self._write_partition(parameter, kind, value)
        elif kind == "model":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _plain(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """At stage 0 there is nothing but the model and its optimizer."""
        return parameter.data if kind == "model" else self._inner.state[parameter][kind]

    def _write_module(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The weights of the forward pass are a copy of those which the optimizer updates."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._zero_stage == 3):
            if self._zero_stage < 3 or self.rank == 0:
                parameter.data.copy_(value)

    def _write_partition(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Write this worker's part: ZeRO-3's setters of whole tensors want sizes that are multiples of the workers."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = cast(Any, parameter).ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self.workers - value.numel()))
        part = padded.narrow(0, size * self.rank, size)
        if kind == "model":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def _make_moments(self) -> None:
        """Give the optimizer its state before the first step, which is when it would make it: `load` needs it there."""
        for tensor in self._owned():
            moments = {kind: torch.zeros_like(tensor) for kind in _MOMENTS}
            self._inner.state[tensor] = {"step": torch.tensor(0.0, device=tensor.device), **moments}
        if self._zero_stage in (1, 2):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _owned(self) -> list[Tensor]:
        """What this worker's optimizer updates: whole parameters at stage 0, else flat parts of them."""
        optimizer = self._engine.optimizer
        if not self._zero_stage:
            return list(self.model.parameters())
        if self._zero_stage == 3:
            return optimizer.fp32_partitioned_groups_flat
        return optimizer.single_partition_of_fp32_groups

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """Our optimizer, which DeepSpeed wraps from stage 1 on."""
        return self._engine.optimizer.optimizer if self._zero_stage else self._engine.optimizer


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of the device, quiet, and kept from compiling.

    Its all-reduce through shared memory is compiled at the first start on a CPU, for up to a minute; gloo's takes its
    place.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed calls two collectives by names that torch 2.13 has deprecated
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
