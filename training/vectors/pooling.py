"""An encoder + token ids -> a vector for each text, or for some of its tokens."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloze.pipeline.core.ragged import Ragged, ragged_ranges
from cloze.training.vectors.hidden_states import Inputs, LayeredEncoder, hidden_states
from cloze.training.vectors.representation import Layers, Representation, combine, dimension

Vectors = NDArray[np.float32]


def text_vectors(
    encoder: LayeredEncoder,
    inputs: Inputs,
    representations: Sequence[Representation],
    special_ids: Collection[int],
    report: Callable[[int], None] = lambda rows: None,
) -> list[Vectors]:
    """For each representation [texts, dimension], in the order of the texts; the encoder runs once for all.

    `special_ids`: those of [CLS] and [SEP]. The vector of a text depends on the other texts by rounding only. A mean
    over no token is zero. `report` is called with the number of texts that have been computed so far.

    Raises UserError when the encoder has too few layers.
    """
    shapes = [(len(inputs.lengths), dimension(one.layers, encoder)) for one in representations]
    vectors = [np.empty(shape, np.float32) for shape in shapes]
    special, finished = torch.tensor(sorted(special_ids), device=encoder.device), 0
    for rows, (input_ids, _, attention_mask), states in hidden_states(encoder, inputs):
        for representation, found in zip(representations, vectors, strict=True):
            combined = combine(states, representation.layers)
            counted = counted_tokens(input_ids, attention_mask, representation, special)
            found[rows] = mean(combined, counted).cpu().numpy()
        report(finished := finished + len(rows))
    return vectors


def counted_tokens(
    input_ids: Tensor, attention_mask: Tensor, representation: Representation, special_ids: Tensor
) -> Tensor:
    """Which tokens a text's vector is the mean of, two [batch, seq] -> [batch, seq]: [CLS] alone, or all real ones."""
    if representation.pooling == "cls":
        return (torch.arange(input_ids.shape[1], device=input_ids.device) == 0).expand_as(input_ids)
    counted = attention_mask.bool()
    return counted if representation.special_tokens else counted & ~torch.isin(input_ids, special_ids)


def mean(vectors: Tensor, counted: Tensor) -> Tensor:
    """[batch, seq, dimension], and which tokens count [batch, seq] -> [batch, dimension]; zero where none does."""
    total = (vectors * counted[..., None]).sum(1)
    return total / counted.sum(1, keepdim=True).clamp(min=1)


def token_vectors(
    encoder: LayeredEncoder,
    inputs: Inputs,
    layers: Sequence[Layers],
    positions: Ragged,
    report: Callable[[int], None] = lambda rows: None,
) -> list[Vectors]:
    """For each choice of layers [tokens, dimension]: the vectors at these positions of the rows, in their order.

    `positions`: of each row of the inputs, from 0, that of [CLS]. `report` is called with the number of rows
    that have been computed so far. Raises UserError when the encoder has too few layers.
    """
    vectors = [np.empty((len(positions.values), dimension(one, encoder)), np.float32) for one in layers]
    finished = 0
    for rows, _, states in hidden_states(encoder, inputs):
        lengths = positions.lengths[rows]
        in_batch = np.repeat(np.arange(len(rows)), lengths), positions.take(rows).values
        targets = ragged_ranges(positions.offsets[:-1][rows], lengths)
        row, position = (torch.from_numpy(one).to(encoder.device) for one in in_batch)
        for one, found in zip(layers, vectors, strict=True):
            found[targets] = combine([state[row, position] for state in states], one).cpu().numpy()
        report(finished := finished + len(rows))
    return vectors
