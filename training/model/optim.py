"""parameters + settings -> parameter groups, the optimizer; the learning rate, precision and loss scale of a step."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from cloze.pipeline.core.config import Config

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_LONG_AGO = 1e7  # steps: 0.99999 to their power is nothing, and fp32 still counts every one
_GROWTH = 2000  # good steps after which a loss scale is tried doubled
_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Adam as BERT has it (arXiv:1810.04805, appendix A.2; the eps and the clipping are those of its code)."""

    learning_rate: float = Field(gt=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    bias_correction: bool = False


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, as BERT has it: matrices with weight decay; biases and LayerNorm's gains without."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (free if name.endswith("bias") or "norm." in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def fresh_state(weights: Tensor) -> dict[str, Tensor]:
    """AdamW's state of some weights before their first update, which is when it would make it: no moments yet."""
    moments = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(0.0, device=weights.device), **moments}


class UncorrectedAdamW(torch.optim.AdamW):
    """AdamW without the correction of the moments' bias towards zero: the optimizer of BERT's own code.

    Its first update is (1 - beta1) / sqrt(1 - beta2) of Adam's, 3.2 times as large with the usual betas: it wants a
    warmup. It is torch's fused AdamW, told that so many steps are over that nothing is left to correct.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update each parameter that has a gradient."""
        parameters = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = fresh_state(parameter)
            self.state[parameter]["step"] += _LONG_AGO
        loss = super().step(closure)
        for parameter in parameters:
            self.state[parameter]["step"] -= _LONG_AGO
        return loss


def adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of these settings; the engine sets `lr` before every step (see learning_rate_at)."""
    kind = torch.optim.AdamW if config.bias_correction else UncorrectedAdamW
    return kind(groups, config.learning_rate, config.betas, config.eps, fused=True)


def learning_rate_at(step: int, config: OptimizerConfig, total_steps: int) -> float:
    """The rate of update number `step` (from 0): a line from 0 up to the peak over warmup_steps, then a line down to 0.

    No update is spent at rate 0: the first has peak / warmup_steps, the last one step's share of the way down.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return config.learning_rate * max(0, total_steps - step) / max(1, total_steps - config.warmup_steps)


def learning_rate_in_time(step: int, config: OptimizerConfig, spent: float) -> float:
    """The rate of update number `step` (from 0) when such a share of the time is over: a line from the peak down to 0
    at the end of the time, however many steps it takes, times that of the warmup, which is of warmup_steps."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * max(0.0, 1 - spent)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Products in the precision's 16 bits; fp32 leaves them as they are."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


class LossScale(NamedTuple):
    """What a loss is multiplied by, and its gradients divided by, that small ones do not vanish in fp16.

    A power of two, so that it rounds nothing away: as large as the gradients bear (arXiv:1710.03740, section 3.2).
    """

    factor: float
    good: int = 0  # steps since it was changed

    @property
    def can_fall(self) -> bool:
        return self.factor > 1

    def after(self, overflowed: bool) -> "LossScale":
        """The scale of the step after one whose gradients were finite, or were not."""
        if overflowed:
            return LossScale(max(1.0, self.factor / 2))
        return LossScale(2 * self.factor) if self.good + 1 == _GROWTH else self._replace(good=self.good + 1)
