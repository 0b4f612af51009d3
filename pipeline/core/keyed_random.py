"""Random numbers keyed by their purpose (such as seed, document, pass): the same on any worker and in any order."""

import random

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash64(*parts: int | npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Integers, or arrays of them that broadcast -> a 64-bit hash of all of them, in their order.

    Each part goes through the finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
    generators").
    """
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _splitmix64((state ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return state


def _splitmix64(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


class KeyedDraws:
    """Random draws from one key. Python guarantees the same bits for the same key in every version."""

    def __init__(self, key: int) -> None:
        generator = random.Random(key)
        self._uniform, self.getrandbits = generator.random, generator.getrandbits

    def chance(self, probability: float) -> bool:
        return self._uniform() < probability

    def randint(self, low: int, high: int) -> int:
        """Returns an integer from low to high, both included."""
        return low + int(self._uniform() * (high - low + 1))
