"""Rows of an examples table -> NumPy arrays, column by column, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cloze.pipeline.core.ragged import Ints, Ragged


class StoredMasks(NamedTuple):
    """Masks that are stored with their examples: the masked positions and the original ids."""

    positions: Ragged
    labels: Ragged

    def take(self, rows: Ints) -> "StoredMasks":
        return StoredMasks(self.positions.take(rows), self.labels.take(rows))

    def slice(self, start: int, end: int) -> "StoredMasks":
        return StoredMasks(self.positions.slice(start, end), self.labels.slice(start, end))


@dataclass(frozen=True)
class ExampleArrays:
    """A number of examples, column by column."""

    index: Ints  # position of the example in its split
    epoch: Ints
    input_ids: Ragged
    segment_b: Ints
    next_sentence_label: Ints
    masks: StoredMasks | None
    counted: bool = True  # False for a placeholder, which is ignored in all losses and metrics

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Ints) -> "ExampleArrays":
        return ExampleArrays(
            self.index[rows],
            self.epoch[rows],
            self.input_ids.take(rows),
            self.segment_b[rows],
            self.next_sentence_label[rows],
            self.masks and self.masks.take(rows),
        )

    def slice(self, start: int, end: int) -> "ExampleArrays":
        """Returns the examples from `start` to `end`; nothing large is copied."""
        return ExampleArrays(
            self.index[start:end],
            self.epoch[start:end],
            self.input_ids.slice(start, end),
            self.segment_b[start:end],
            self.next_sentence_label[start:end],
            self.masks and self.masks.slice(start, end),
        )

    @staticmethod
    def concatenate(parts: Sequence["ExampleArrays"]) -> "ExampleArrays":
        if len(parts) == 1:
            return parts[0]
        masks = [part.masks for part in parts if part.masks]
        return ExampleArrays(
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.epoch for part in parts]),
            Ragged.concatenate(part.input_ids for part in parts),
            np.concatenate([part.segment_b for part in parts]),
            np.concatenate([part.next_sentence_label for part in parts]),
            StoredMasks(*map(Ragged.concatenate, zip(*masks, strict=True))) if masks else None,
        )

    @staticmethod
    def from_table(table: pa.Table, index: Ints, epoch: Ints) -> "ExampleArrays":
        """Arrays of the columns of a file of examples. If each column is one chunk, large ones are not copied."""
        masked = "masked_lm_positions" in table.column_names
        return ExampleArrays(
            index,
            epoch,
            _ragged(table, "input_ids"),
            table.column("segment_b").to_numpy(),
            table.column("next_sentence_label").to_numpy(),
            StoredMasks(_ragged(table, "masked_lm_positions"), _ragged(table, "masked_lm_labels")) if masked else None,
        )

    def to_table(self) -> pa.Table:
        """The columns that `from_table` reads, with `index` and `epoch`."""
        columns = {
            "index": self.index,
            "epoch": self.epoch,
            "input_ids": _lists(self.input_ids),
            "segment_b": self.segment_b,
            "next_sentence_label": self.next_sentence_label,
        }
        if self.masks:
            columns |= {
                "masked_lm_positions": _lists(self.masks.positions),
                "masked_lm_labels": _lists(self.masks.labels),
            }
        return pa.table(columns)


def unmasked_ids(examples: ExampleArrays) -> Ints:
    """The ids of all examples, concatenated, with the original ids at stored masks."""
    if examples.masks is None:
        return examples.input_ids.values
    ids, (positions, labels) = examples.input_ids.values.copy(), examples.masks
    ids[np.repeat(examples.input_ids.offsets[:-1], positions.lengths) + positions.values] = labels.values
    return ids


def _ragged(table: pa.Table, name: str) -> Ragged:
    chunks = table.column(name).chunks
    lists = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64, copy=False)
    return Ragged(lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


def _lists(ragged: Ragged) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(ragged.offsets, ragged.values)
