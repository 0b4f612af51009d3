"""A micro-batch -> its part of the global batch's loss, and its sums; what came of a step; what a back end does."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloze.training.model.optim import (
    Precision,
    autocast,
)
from cloze.training.model.totals import Totals
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class Step:
    """What came of an update: sums over the global batch, and the gradient's norm before clipping.

    Both are where the device has them, or will have them: to look at `totals` or `grad_norm` is to wait for it.
    Where an fp16 gradient has overflowed (in any worker), no weight was changed and the next step has a lower scale.
    """

    sums: Tensor  # in the order of Totals
    norm: Tensor | float
    overflowed: bool = False

    @cached_property
    def totals(self) -> Totals:
        return Totals(*self.sums.tolist())

    @cached_property
    def grad_norm(self) -> float:
        return float(self.norm)


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
                nsp_logits, batch.next_sentence_label, reduction="sum", ignore_index=IGNORE_INDEX
            )
            answers = nsp_logits.argmax(-1)
        with torch.no_grad():
            labelled = batch.next_sentence_label != IGNORE_INDEX
            real = batch.attention_mask * batch.counted[:, None]
            sums = (  # what Python counts is filled in by the device: a copy would wait for it
                mlm_loss,
                (mlm_logits.argmax(-1) == batch.masked_lm_labels).sum(),
                mlm_loss.new_full((), batch.masked_lm_labels.numel(), dtype=torch.float64),
                nsp_loss,
                (answers == batch.next_sentence_label).sum(),
                labelled.sum(),
                (batch.next_sentence_label == 1).sum(),
                (answers * labelled).sum(),
                batch.counted.sum(),
                real.sum(),
                mlm_loss.new_full((), real.numel(), dtype=torch.float64),
                real.sum(1).square().sum(),
            )
            totals = torch.stack([value.to(torch.float64) for value in sums])
        return mlm_loss / masked + nsp_loss / labels, totals


class BackEnd(Protocol):
    """How the gradients of all workers become one update.

    A step is `begin`, then `forward` and `backward` for each micro-batch, then `update`. Kinds are those of a
    checkpoint: "model", the weights, and the optimizer's two moments.
    """

    def begin(self, learning_rate: float, scale: float | None) -> None:
        """`scale` is what to multiply losses by and divide gradients by; None where precision is not fp16."""
        ...

    def forward(self, batch: Batch, masked: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What Objective makes of a micro-batch."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch, maybe the last one of the step."""
        ...

    def update(self) -> Tensor | float:
        """Clip and update; the norm of the gradients' sum over all workers, without the scale.

        Nothing is updated by scaled gradients that are not finite.
        """
        ...

    def read(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """A kind of a parameter, whole. All workers have to call it together, as they do `write`."""
        ...

    def write(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None: ...

    def set_updates(self, updates: int) -> None:
        """Have the optimizer count on from so many updates."""
        ...
