"""The hidden states of every layer -> the vectors of the chosen layers, as in table 7 of BERT's paper."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.training.vectors.hidden_states import LayeredEncoder

_LAST_LAYERS = 4  # of sum-last-4 and concat-last-4

#: A layer by its number, 0 being the output of the embeddings, or a name.
Layers = Annotated[int, Field(ge=0)] | Literal["last", "second-to-last", "sum-all", "sum-last-4", "concat-last-4"]
LAYER_NAMES = ("last", "second-to-last", "sum-all", "sum-last-4", "concat-last-4")


class Representation(Config):
    """Which vector stands for a text."""

    layers: Layers = "last"
    """Number of a layer (0: the output of the embeddings), or last, second-to-last, sum-all (all layers, without the
    embeddings), sum-last-4 or concat-last-4."""
    pooling: Literal["mean", "cls"] = "mean"
    """mean: over the tokens of the text; cls: the vector of the first token, [CLS]."""
    special_tokens: bool = True
    """Whether [CLS] and [SEP] count in the mean, as in sentence-transformers. Padding never does."""


def check_special_tokens(name: str, pooling: str, special_tokens: bool) -> None:
    """Raises ValueError when the task of this name leaves special tokens out of a mean that it does not compute."""
    if pooling == "cls" and not special_tokens:
        raise ValueError(f"{name}: special_tokens has no meaning with pooling: cls; leave it out")


def layer_numbers(layers: Layers, num_layers: int) -> list[int]:
    """The layers that are read, of an encoder with this many. Raises UserError when it has too few."""
    if isinstance(layers, int):
        if layers > num_layers:
            raise UserError(
                f"layers {layers}: the encoder has {num_layers} layers; give a number from 0 to {num_layers}"
            )
        return [layers]
    if layers in ("sum-last-4", "concat-last-4"):
        if num_layers < _LAST_LAYERS:
            raise UserError(
                f"layers {layers}: the encoder has only {num_layers} layers; give another choice, such as last"
            )
        return list(range(num_layers - _LAST_LAYERS + 1, num_layers + 1))
    return {"last": [num_layers], "second-to-last": [num_layers - 1], "sum-all": list(range(1, num_layers + 1))}[layers]


def dimension(layers: Layers, encoder: LayeredEncoder) -> int:
    """The length of the vectors. Raises UserError when the encoder has too few layers."""
    read = layer_numbers(layers, encoder.num_layers)
    return encoder.hidden_size * (len(read) if layers == "concat-last-4" else 1)


def combine(hidden_states: Sequence[Tensor], layers: Layers) -> Tensor:
    """[layers + 1] tensors [batch, seq, hidden] -> one [batch, seq, dimension], in fp32.

    Raises UserError when there are too few layers.
    """
    read = [hidden_states[number].float() for number in layer_numbers(layers, len(hidden_states) - 1)]
    return torch.cat(read, -1) if layers == "concat-last-4" else torch.stack(read).sum(0)
