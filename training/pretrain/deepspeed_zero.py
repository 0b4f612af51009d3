"""DeepSpeed's ZeRO, stages 1 to 3, as a backend of the engine. The only file that imports DeepSpeed."""

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
from cloze.training.model.optim import initial_optimizer_state
from cloze.training.pretrain.data_loader import Batch
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig
from cloze.training.pretrain.objective import Objective

#: Elements of the gradient bucket, DeepSpeed's default. It allocates the bucket whole, also for a smaller model.
_MAX_BUCKET = 500_000_000


class DeepSpeedBackend:
    """Partitions moments over the workers; from stage 2 on also gradients, and at stage 3 also weights."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        stage: int,
        deepspeed: DeepSpeedConfig,
    ) -> None:
        """Raises UserError when DeepSpeed is not installed."""
        self._stage = stage
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._adamw = optimizer
        user_config = deepspeed.model_dump(exclude_none=True)
        bucket = min(sum(parameter.numel() for parameter in objective.parameters()), _MAX_BUCKET)
        self._engine, *_ = _import_deepspeed(worker_device(), stage).initialize(
            model=objective,
            optimizer=optimizer,
            config=user_config
            | {
                "train_micro_batch_size_per_gpu": 1,  # required, but not used: batches have their own sizes
                "zero_optimization": {"stage": stage, "reduce_bucket_size": bucket} | user_config["zero_optimization"],
                "zero_allow_untested_optimizer": True,  # our AdamW is elementwise, too
                "gradient_clipping": max_grad_norm,
            },
        )
        self._zero_optimizer = self._engine.optimizer  # DeepSpeed's wrapper of `optimizer`
        for tensor in self._partitions():
            self._adamw.state[tensor] = initial_optimizer_state(tensor)
        if stage < 3:
            self._zero_optimizer._lazy_init_hp_params_optimizer_state()

    def start_step(self, learning_rate: float, loss_scale: float | None) -> None:
        for group in self._zero_optimizer.param_groups:
            group["lr"] = learning_rate
        if loss_scale is not None:
            self._zero_optimizer.override_loss_scale(loss_scale)

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._engine(batch, masked, labels)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self._workers, scale_wrt_gas=False)  # DeepSpeed averages over the workers
        if not is_last:
            self._engine.step()

    def optimizer_step(self) -> Tensor | float:
        self._engine.step()
        return math.inf if self._zero_optimizer.overflow else self._engine.get_global_grad_norm()

    def read_tensor(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        is_weights = kind == "model"
        value = safe_get_full_fp32_param(parameter) if is_weights else safe_get_full_optimizer_state(parameter, kind)
        assert value is not None, "DeepSpeed does not manage this parameter"
        return value

    def write_tensor(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
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
        """Write the weights used in the forward pass: a copy of those that the optimizer updates."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3):
            if self._stage < 3 or self._rank == 0:
                parameter.data.copy_(value)

    def _write_partition(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Write this worker's partition: ZeRO-3 sets whole tensors only if the number of workers divides their size."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = cast(Any, parameter).ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self._workers - value.numel()))
        part = padded.narrow(0, size * self._rank, size)
        if kind == "model":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def set_update_count(self, updates: int) -> None:
        for tensor in self._partitions():
            self._adamw.state[tensor]["step"].fill_(updates)

    def _partitions(self) -> list[Tensor]:
        """The flat partitions of the parameters that this worker's optimizer updates."""
        optimizer = self._zero_optimizer
        return optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups


def _import_deepspeed(device: torch.device, stage: int) -> Any:
    """Import DeepSpeed for this device, without its log messages and without compilation.

    On a CPU, DeepSpeed's shared-memory all-reduce would be compiled at the first start, for up to a minute; gloo is
    used in its place.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    # DeepSpeed calls two collectives by names that PyTorch 2.13 deprecates
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
