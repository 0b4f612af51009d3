"""The number of documents in each shard -> blocks of a fixed number of consecutive documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.dedup.duplicate_rules import rows_of, shards_of


def num_blocks(documents: int, size: int) -> int:
    """Returns the number of blocks of `size` documents: at least one, which may be empty."""
    return max(-(-documents // size), 1)


@dataclass(frozen=True)
class Blocks:
    """Blocks of `size` documents in the order of their addresses; the last one may be smaller.

    `shard_documents` is the number of documents in each shard.
    """

    shard_documents: Sequence[int]
    size: int

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        return offsets_of(self.shard_documents)

    def __len__(self) -> int:
        return num_blocks(int(self._offsets[-1]), self.size)

    def block_of(self, addresses: Any) -> Any:
        """Returns the number of the block of each document."""
        return self._index(addresses) // self.size

    def rows_in_block(self, addresses: Any, block: int) -> Any:
        """Returns the position of each document in its block."""
        return self._index(addresses) - block * self.size

    def shards_of_block(self, block: int) -> range:
        """Returns the shards that have documents in the block."""
        first, end = block * self.size, min((block + 1) * self.size, self._offsets[-1])
        return range(int(np.searchsorted(self._offsets, first, "right")) - 1, int(np.searchsorted(self._offsets, end)))

    def blocks_of_shard(self, shard: int) -> range:
        """Returns the blocks that have documents of the shard."""
        first, end = self._offsets[shard : shard + 2].tolist()
        return range(first // self.size, -(-end // self.size)) if end > first else range(0)

    def rows(self, block: int, shard: int) -> slice:
        """Returns which rows of a shard are in the block."""
        first, end = block * self.size - self._offsets[shard], (block + 1) * self.size - self._offsets[shard]
        return slice(max(int(first), 0), int(end))

    def _index(self, addresses: Any) -> Any:
        return self._offsets[shards_of(addresses)] + rows_of(addresses)
