"""Rows of token ids with special tokens -> batches as the arguments of an encoder."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloze.pipeline.core.ragged import Ints, Ragged, pad_rows
from cloze.training.vectors.hidden_states import RowIndices


@dataclass(frozen=True)
class TextInputs:
    """Token ids with special tokens, and where the second segment begins: a row's length if it has none."""

    ids: Ragged
    segment_b: Ints

    @property
    def lengths(self) -> Ints:
        return self.ids.lengths

    def batch(self, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask, each [batch, length of the longest row]."""
        ids = self.ids.take(rows)
        width = int(ids.lengths.max())
        real = np.arange(width) < ids.lengths[:, None]
        second = (np.arange(width) >= self.segment_b[rows][:, None]) & real
        arrays = (pad_rows(*ids, width), second.astype(np.int64), real)  # any token id pads: padding is masked
        return tuple(torch.from_numpy(array).to(device) for array in arrays)  # type: ignore[return-value]
