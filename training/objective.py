"""a batch -> its part of the global batch's loss, and the sums that metrics are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data import IGNORED, Batch
from training.device import Precision, autocast


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
                mlm_loss.new_full((), batch.masked_lm_labels.numel(), dtype=torch.float64),  # filled by the device:
                nsp_loss,
                (answers == batch.next_sentence_label).sum(),
                labelled.sum(),
                (batch.next_sentence_label == 1).sum(),
                (answers * labelled).sum(),
                batch.counted.sum(),
                real.sum(),
                mlm_loss.new_full((), real.numel(), dtype=torch.float64),  # a copy would wait for it
                real.sum(1).square().sum(),
            )
            totals = torch.stack([value.to(torch.float64) for value in sums])
        return mlm_loss / masked + nsp_loss / labels, totals
