"""DeepSpeed's ZeRO, stages 1 to 3, as a back end of the engine. No other file imports DeepSpeed."""

import logging
import math
import os
import warnings
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.errors import UserError
from cloze.training.model.hardware import worker_device
from cloze.training.model.optim import fresh_state
from cloze.training.pretrain.data_loader import Batch
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig
from cloze.training.pretrain.objective import Objective


class Zero:
    """Moments, from stage 2 on gradients as well, and at 3 weights too, are divided among the workers."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        stage: int,
        more: DeepSpeedConfig,
    ) -> None:
        """Raises UserError where DeepSpeed is not installed."""
        self._stage = stage
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._adamw = optimizer
        added = more.model_dump(exclude_none=True)
        self._engine, *_ = _deepspeed(worker_device(), stage).initialize(
            model=objective,
            optimizer=optimizer,
            config=added
            | {
                "train_micro_batch_size_per_gpu": 1,  # a formality: the sizes are those of the batches that come
                "zero_optimization": {"stage": stage} | added["zero_optimization"],
                "zero_allow_untested_optimizer": True,  # AdamW without bias correction goes element by element as well
                "gradient_clipping": max_grad_norm,
            },
        )
        self._wrapper = self._engine.optimizer  # DeepSpeed's, around ours
        for tensor in self._owned():
            self._adamw.state[tensor] = fresh_state(tensor)
        if stage < 3:
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def begin(self, learning_rate: float, scale: float | None) -> None:
        for group in self._wrapper.param_groups:
            group["lr"] = learning_rate
        if scale is not None:
            self._wrapper.override_loss_scale(scale)

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._engine(batch, masked, labels)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._workers, scale_wrt_gas=False)  # it averages over the workers
        if not last:
            self._engine.step()

    def update(self) -> Tensor | float:
        self._engine.step()
        return math.inf if self._wrapper.overflow else self._engine.get_global_grad_norm()

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        model = kind == "model"
        found = safe_get_full_fp32_param(parameter) if model else safe_get_full_optimizer_state(parameter, kind)
        assert found is not None, "not a parameter of DeepSpeed's"
        return found

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if kind == "model":
            self._write_module(parameter, value)
        if self._stage == 3:
            self._write_partition(parameter, kind, value)
        elif kind == "model":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _write_module(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The weights of the forward pass are a copy of those which the optimizer updates."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
            if self._stage < 3 or self._rank == 0:
                parameter.data.copy_(value)

    def _write_partition(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Write this worker's part: ZeRO-3's setters of whole tensors want sizes that are multiples of the workers."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = cast(Any, parameter).ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self._workers - value.numel()))
        part = padded.narrow(0, size * self._rank, size)
        if kind == "model":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def set_updates(self, updates: int) -> None:
        for tensor in self._owned():
            self._adamw.state[tensor]["step"].fill_(updates)

    def _owned(self) -> list[Tensor]:
        """What this worker's optimizer updates: flat parts of the parameters."""
        optimizer = self._wrapper
        return optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups


def _deepspeed(device: torch.device, stage: int) -> Any:
    """DeepSpeed, told of the device, quiet, and kept from compiling.

    Its all-reduce through shared memory is compiled at the first start on a CPU, for up to a minute; gloo's takes its
    place.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    # DeepSpeed calls two collectives by names that torch 2.13 has deprecated
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise UserError(
            f"pretrain.zero_stage is {stage}, which needs DeepSpeed ({error}); install it (pip install deepspeed) "
            "or set pretrain.zero_stage to 0"
        ) from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
