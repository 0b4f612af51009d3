"""The optimizer of BERT, its learning rate schedule, mixed precision and the loss scale."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from cloze.pipeline.core.config import Config

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_STEP_OFFSET = 1e7  # 0.99999 ** 1e7 is zero, so no bias correction is left; fp32 still counts every step above it
_GROWTH_INTERVAL = 2000  # steps without overflow after which the loss scale is doubled
_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW as in BERT (arXiv:1810.04805, appendix A.2; eps and clipping are those of BERT's code)."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate, reached at the end of the warmup. It then falls linearly to 0 at the end of training, or of
    the last phase before one that starts a new schedule."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: float = Field(default=1e-6, gt=0)
    """Added to the denominator of Adam's update, for numerical stability."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay. It applies to weight matrices, not to biases and LayerNorm parameters."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global L2 norm."""
    bias_correction: bool = False
    """Correct the bias of Adam's moments towards zero. BERT's own optimizer does not."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, as in BERT: matrices with weight decay; biases and LayerNorm parameters without."""
    decay: list[Tensor] = []
    no_decay: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (no_decay if name.endswith("bias") or "norm." in name.lower() else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def initial_optimizer_state(weights: Tensor) -> dict[str, Tensor]:
    """AdamW's state for `weights` before the first update. AdamW itself creates it only at that update."""
    moments = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(0.0, device=weights.device), **moments}


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without bias correction of the moments: the optimizer of BERT's own code.

    Its first update is (1 - beta1) / sqrt(1 - beta2) times Adam's, 3.2 times with the default betas, so it needs a
    warmup. It runs PyTorch's fused AdamW with a step count so high that no correction is left.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        counts = list[Tensor]()
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                if not self.state[parameter]:
                    self.state[parameter] = initial_optimizer_state(parameter)
                counts.append(self.state[parameter]["step"])
        torch._foreach_add_(counts, _STEP_OFFSET)  # pyright: ignore[reportPrivateImportUsage]  # one kernel on a GPU
        loss = super().step(closure)
        torch._foreach_sub_(counts, _STEP_OFFSET)  # pyright: ignore[reportPrivateImportUsage]
        return loss


def adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer. The training loop sets `lr` before every step (see learning_rate_at)."""
    optimizer = torch.optim.AdamW if config.bias_correction else UncorrectedAdamW
    return optimizer(groups, config.learning_rate, config.betas, config.eps, fused=True)


def learning_rate_at(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """The learning rate of update `step` (from 0): linear warmup over warmup_steps, then linear decay to 0.

    No update has rate 0: the first has peak / warmup_steps, the last has peak / (total_steps - warmup_steps).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * max(0, total_steps - step) / max(1, total_steps - config.warmup_steps)


def learning_rate_in_budget(step: int, config: OptimizerConfig, elapsed: float) -> float:
    """The learning rate of update `step` (from 0) when a fraction `elapsed` of the time budget is used up.

    It is linear in time, from the peak to 0 at the end of the budget, times the warmup, which is linear in steps.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * max(0.0, 1 - elapsed)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Compute matrix products in the 16-bit type of `precision`; fp32 disables autocast."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


class LossScale(NamedTuple):
    """The factor that multiplies the loss, and divides its gradients, so that small fp16 gradients do not underflow.

    A power of two, so it adds no rounding error. It is kept as large as possible without overflow
    (arXiv:1710.03740, section 3.2).
    """

    factor: float
    good_steps: int = 0  # steps without overflow since the last change

    @property
    def can_decrease(self) -> bool:
        return self.factor > 1

    def after_step(self, overflowed: bool) -> "LossScale":
        """The scale of the next step, after a step whose gradients overflowed or were finite."""
        if overflowed:
            return LossScale(max(1.0, self.factor / 2))
        if self.good_steps + 1 == _GROWTH_INTERVAL:
            return LossScale(2 * self.factor)
        return self._replace(good_steps=self.good_steps + 1)
