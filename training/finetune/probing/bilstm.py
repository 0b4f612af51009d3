"""Vectors of the words of sentences -> a bidirectional LSTM, as the paper puts on BERT's vectors (section 5.3).

A word's tag depends on the vectors of all words of its row, where a regression sees one vector at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from cloze.pipeline.core.ragged import Ints, offsets_of, ragged_ranges
from cloze.training.finetune.tasks.probe import Probabilities
from cloze.training.finetune.tasks.probe_config import BiLSTMConfig
from cloze.training.vectors.pooling import Vectors

_MAX_GRADIENT_NORM = 1.0
_PREDICTED_ROWS = 256  # at once


class _Tagger(nn.Module):
    def __init__(self, dimension: int, label_count: int, config: BiLSTMConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dimension, config.hidden_size, config.num_layers, bidirectional=True)
        self.output = nn.Linear(2 * config.hidden_size, label_count)

    def forward(self, vectors: Tensor, lengths: Ints) -> Tensor:
        """The vectors of the words of some rows [words, dimension] -> logits [words, labels]."""
        packed = pack_sequence(list(vectors.split(lengths.tolist())), enforce_sorted=False)
        states, _ = self.lstm(packed)
        return self.output(torch.cat(unpack_sequence(states)))


@dataclass(frozen=True)
class BiLSTM:
    """A trained BiLSTM with a linear layer."""

    model: _Tagger
    device: torch.device
    converged: bool = True  # it is trained for the epochs that are asked for

    @classmethod
    def fit(
        cls,
        vectors: Vectors,
        targets: Ints,
        row_lengths: Ints,
        label_count: int,
        config: BiLSTMConfig,
        seed: int,
        device: torch.device,
        report: Callable[[int], None],
    ) -> "BiLSTM":
        """Train it on vectors [words, dimension] and their labels [words], in rows of `row_lengths` words.

        `report` is called with the number of each epoch, from 1, as it begins. The same data give the same model on the
        same processor.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _Tagger(vectors.shape[1], label_count, config).to(device)
        optimizer = torch.optim.Adam(model.parameters(), config.learning_rate)
        order, offsets = np.random.default_rng(seed), offsets_of(row_lengths)
        for epoch in range(config.epochs):
            report(epoch + 1)
            shuffled = order.permutation(len(row_lengths))
            for rows in _batches(shuffled, config.batch_size):
                words = ragged_ranges(offsets[rows], row_lengths[rows])
                logits = model(torch.from_numpy(vectors[words]).to(device), row_lengths[rows])
                loss = functional.cross_entropy(logits, torch.from_numpy(targets[words]).to(device))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
                optimizer.step()
        return cls(model.eval(), device)

    @torch.inference_mode()
    def probabilities(self, vectors: Vectors, row_lengths: Ints) -> Probabilities:
        """[words, dimension], in rows of `row_lengths` words -> [words, labels]."""
        found = np.empty((len(vectors), self.model.output.out_features))
        offsets = offsets_of(row_lengths)
        for rows in _batches(np.arange(len(row_lengths)), _PREDICTED_ROWS):
            words = ragged_ranges(offsets[rows], row_lengths[rows])
            logits = self.model(torch.from_numpy(vectors[words]).to(self.device), row_lengths[rows])
            found[words] = logits.double().softmax(-1).cpu().numpy()
        return found


def _batches(rows: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
