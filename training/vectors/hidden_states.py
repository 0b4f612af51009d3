"""An encoder + token ids -> the hidden states of every layer, in batches of rows of similar length."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cloze.pipeline.core.ragged import Ints

_BATCH_TOKENS = 8192  # padding included: 13 layers of 768 in fp32 are then 330 MB

RowIndices = NDArray[np.int64]


class Inputs(Protocol):
    """Rows of token ids with special tokens, such as TextInputs."""

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each row."""
        ...

    def batch(self, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask (1 real, 0 padding) of some rows, each [batch, seq]."""
        ...


@contextmanager
def hooks(registered: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks of modules for the time of a block."""
    handles = list(registered)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LayeredEncoder(nn.Module):
    """An encoder, in evaluation mode, whose output is the hidden states of every layer."""

    def __init__(
        self,
        encoder: nn.Module,
        hidden_states: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]],
        num_layers: int,
        hidden_size: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self._hidden_states = hidden_states
        self.eval()

    @classmethod
    def of_modules(cls, encoder: nn.Module, num_layers: int, hidden_size: int) -> "LayeredEncoder":
        """Of one of Cloze's own encoders: what its modules `embeddings` and `layers` return."""

        def hidden_states(input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
            found = list[Tensor]()
            modules = [encoder.get_submodule("embeddings"), *encoder.get_submodule("layers").children()]
            with hooks(module.register_forward_hook(lambda *call: found.append(call[-1])) for module in modules):
                encoder(input_ids, token_type_ids, attention_mask)
            return found

        return cls(encoder, hidden_states, num_layers, hidden_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
        """Three [batch, seq] -> [layers + 1] tensors [batch, seq, hidden], as transformers' `hidden_states`.

        The first is the output of the embeddings, after their LayerNorm.
        """
        return self._hidden_states(input_ids, token_type_ids, attention_mask)


def hidden_states(
    encoder: LayeredEncoder, inputs: Inputs
) -> Iterator[tuple[RowIndices, tuple[Tensor, Tensor, Tensor], Sequence[Tensor]]]:
    """Yields batches: the numbers of its rows, the encoder's inputs, and the hidden states of every layer.

    The shortest rows come first. What else is in a batch changes a row's hidden states by rounding only.
    """
    for rows in batches(inputs.lengths):
        batch = inputs.batch(rows, encoder.device)
        with torch.inference_mode():
            yield rows, batch, encoder(*batch)


def batches(lengths: Ints) -> Iterator[RowIndices]:
    """The numbers of all rows in batches of similar length, the shortest first; equally long ones in their order."""
    order, start = np.argsort(lengths, kind="stable"), 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= _BATCH_TOKENS:
            stop += 1
        yield order[start:stop]
        start = stop
