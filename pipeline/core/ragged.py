"""Rows of different lengths, stored as one flat array and offsets."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

Ints = NDArray[np.integer]


class Ragged(NamedTuple):
    """Rows of different lengths: row i is values[offsets[i] : offsets[i + 1]]."""

    values: Ints
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def take(self, rows: Ints) -> "Ragged":
        """Returns the rows with these indices, in their order."""
        lengths = self.lengths[rows]
        return Ragged(self.values[ragged_ranges(self.offsets[:-1][rows], lengths)], offsets_of(lengths))

    def slice(self, start: int, end: int) -> "Ragged":
        """Returns the rows from `start` to `end`; their values are not copied."""
        offsets = self.offsets[start : end + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    @staticmethod
    def concatenate(parts: Iterable["Ragged"]) -> "Ragged":
        values, lengths = zip(*((part.values, part.lengths) for part in parts), strict=True)
        return Ragged(np.concatenate(values), offsets_of(np.concatenate(lengths)))


def offsets_of(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Lengths [n] -> offsets [n + 1], from 0."""
    lengths = np.asarray(lengths, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def ragged_ranges(starts: npt.ArrayLike, lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Returns the indices start, start + 1, ... of each range, concatenated: [sum of lengths]."""
    starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    total, before = int(lengths.sum()), np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total)


def pad_rows(flat: np.ndarray, offsets: npt.NDArray[np.int64], width: int) -> np.ndarray:
    """Rows -> [rows, width], padded with zeros at the end."""
    lengths = np.diff(offsets)
    out = np.zeros((len(lengths), width), flat.dtype)
    out.reshape(-1)[ragged_ranges(np.arange(len(lengths)) * width, lengths)] = flat[offsets[0] : offsets[-1]]
    return out
