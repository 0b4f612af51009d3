"""model + batches -> updates of its weights: the only file that knows DeepSpeed.

A step sees the whole global batch: its loss is the mean over all masked positions plus the mean over all next-sentence
labels, however unevenly these fall on workers and micro-batches. Weights, gradients and moments are fp32 and bf16 is
autocast's: every ZeRO stage then has one kind of state, and bf16 products take the time that counts.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Tensors
from training.data import IGNORED, Batch
from training.optim import OptimizerConfig, adamw, parameter_groups
from training.record import Totals

Precision = Literal["fp32", "bf16"]

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


class Step(NamedTuple):
    """What came of an update: sums over the global batch, and the gradient's norm before clipping."""

    totals: Totals
    grad_norm: float


def worker_device() -> torch.device:
    """This worker's GPU if its process group works on GPUs, else the CPU."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is the faster: on GPUs that have it and processors with instructions for it (others lose half)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not _BF16_FLAGS.isdisjoint(_cpuinfo("flags").split())


def processor(device: torch.device) -> str:
    """The name of the GPU, or of the processor, that does the work."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpuinfo("model name") or "CPU"


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


class Objective(nn.Module):
    """A batch -> its part of the global batch's loss, and its sums in the order of Totals."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.bf16 = precision == "bf16"

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`masked` and `labels` are the global batch's counts of masked positions and next-sentence labels."""
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            mlm_logits, nsp_logits = self.model(
                batch.input_ids,
                batch.token_type_ids,
                batch.attention_mask if batch.padded else None,
                batch.masked_lm_positions,
            )  # [n, vocab]; [b, 2], or None where nothing is learnt of pairs
        mlm_loss = functional.cross_entropy(mlm_logits, batch.masked_lm_labels, reduction="sum")
        nsp_loss, nsp_correct = torch.zeros_like(mlm_loss), torch.zeros_like(mlm_loss)
        if nsp_logits is not None:
            nsp_loss = functional.cross_entropy(
                nsp_logits, batch.next_sentence_label, reduction="sum", ignore_index=IGNORED
            )
            nsp_correct = (nsp_logits.argmax(-1) == batch.next_sentence_label).sum()
        with torch.no_grad():
            sums = (
                mlm_loss,
                (mlm_logits.argmax(-1) == batch.masked_lm_labels).sum(),
                torch.tensor(batch.masked_lm_labels.numel()),
                nsp_loss,
                nsp_correct,
                (batch.next_sentence_label != IGNORED).sum(),
                batch.counted.sum(),
                batch.attention_mask.sum(),
                torch.tensor(batch.attention_mask.numel()),
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
    ) -> None:
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        deepspeed = _deepspeed(self.device)
        self.model = model
        self.updates = 0
        self._zero_stage = zero_stage
        self._max_grad_norm = optimizer.max_grad_norm
        self._engine, *_ = deepspeed.initialize(
            model=Objective(model, precision).to(self.device),
            optimizer=adamw(parameter_groups(model, optimizer.weight_decay), optimizer),
            config={
                "train_micro_batch_size_per_gpu": 1,  # a formality: the sizes are those of the batches that come
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,  # AdamW without bias correction goes element by element as well
                "gradient_clipping": optimizer.max_grad_norm if zero_stage else 0.0,  # stage 0 keeps the norm to itself
            },
        )
        self._make_moments()

    def step(self, batches: Sequence[Batch], learning_rate: float, noise: int) -> Step:
        """One update from this worker's micro-batches. `noise` seeds the dropout: give each worker and step its own."""
        torch.manual_seed(noise)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.train()
        totals, grad_norm = torch.zeros(len(astuple(Totals())), dtype=torch.float64, device=self.device), 0.0
        masked, labels = self._counts(batches)
        for turn, batch in enumerate(batches, start=1):
            self._engine.set_gradient_accumulation_boundary(turn == len(batches))
            loss, sums = self._engine(batch.to(self.device), masked, labels)
            self._engine.backward(loss * self.workers, scale_wrt_gas=False)  # DeepSpeed averages over the workers
            if turn == len(batches) and not self._zero_stage:
                grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
            self._engine.step()
            totals += sums
        self.updates += 1
        if self._zero_stage:
            grad_norm = self._engine.get_global_grad_norm()
        return Step(self._summed(totals), float(grad_norm))

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

    def tensors(self) -> Tensors | None:
        """fp32 weights and both moments, gathered in worker 0; None in the others. Every worker has to call it."""
        found: Tensors = {kind: {} for kind in ("model", *_MOMENTS)}
        for name, parameter in self.model.named_parameters():
            for kind in found:
                value = self._read(parameter, kind)
                if self.rank == 0:
                    found[kind][name] = value.detach().cpu().clone()
        return found if self.rank == 0 else None

    def load(self, tensors: Tensors, updates: int) -> None:
        """Put back what `tensors` gave after so many updates, whatever stage and number of workers it came from."""
        self.updates = updates
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
