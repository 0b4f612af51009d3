"""Randomness keyed by what it is for (a seed, a document, a pass), so that it is the same wherever it is drawn."""

import random

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(*parts: int | npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Integers, or arrays of them which broadcast -> 64 well-mixed bits that depend on every part and on their order.

    Each part goes through the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators").
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _finalised((state ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return state


def _finalised(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class KeyedDraws:
    """The draws that pairs need, from one key. Python promises the same bits for the same key in every version."""

    def __init__(self, key: int) -> None:
        source = random.Random(key)
        self._unit, self.coins = source.random, source.getrandbits

    def chance(self, probability: float) -> bool:
        return self._unit() < probability

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._unit() * (high - low + 1))
