"""example shards -> batches, in an order that (seed, epoch, position) alone decides.

The row groups of all shards are permuted anew for each epoch and read in windows of about 65,536 examples. Within a
window every example is shuffled, and rows of like length are put together in small groups whose order is again random,
so that little is padded. The state is one number: how many examples came before. A global batch is the same for any
number of workers and any micro-batch size: sorted by length, it is cut into as many micro-batches as there are turns,
and the workers take them by turns.
"""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.facts import ExamplesFacts
from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of, pad_rows
from cloze.pipeline.core.schema import IGNORE_INDEX, parquet_file
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.masking import KeyedMaskDraws, MaskedBatch, MaskRules, mask_batch

Item = TypeVar("Item")

_WINDOW = 65_536  # examples shuffled together: about 20 MB at length 128
_READERS = 8  # threads that read files: on S3 reading is waiting
_ORDER, _WITHIN = 1, 2  # what a random draw is for


class Masks(NamedTuple):
    """Masks that are stored with their examples: where they are and what stood there."""

    positions: Ragged
    labels: Ragged

    def take(self, rows: Ints) -> "Masks":
        return Masks(self.positions.take(rows), self.labels.take(rows))


@dataclass(frozen=True)
class Rows:
    """Examples as flat arrays."""

    index: Ints  # which example of the split
    epoch: Ints
    input_ids: Ragged
    segment_b: Ints
    next_sentence_label: Ints
    masks: Masks | None
    counted: bool = True  # False: there only because every worker has to take part in every turn

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Ints) -> "Rows":
        return Rows(
            self.index[rows],
            self.epoch[rows],
            self.input_ids.take(rows),
            self.segment_b[rows],
            self.next_sentence_label[rows],
            self.masks and self.masks.take(rows),
        )

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        masks = [part.masks for part in parts if part.masks]
        return Rows(
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.epoch for part in parts]),
            Ragged.concatenate(part.input_ids for part in parts),
            np.concatenate([part.segment_b for part in parts]),
            np.concatenate([part.next_sentence_label for part in parts]),
            Masks(*map(Ragged.concatenate, zip(*masks, strict=True))) if masks else None,
        )


def unmasked(rows: Rows) -> Ints:
    """The pieces of all rows, one row after the other, with stored masks undone."""
    if rows.masks is None:
        return rows.input_ids.values
    ids, (positions, labels) = rows.input_ids.values.copy(), rows.masks
    ids[np.repeat(rows.input_ids.offsets[:-1], positions.lengths) + positions.values] = labels.values
    return ids


@dataclass(frozen=True)
class Masking:
    """Draws the masks of examples that are stored without: by (seed, epoch, example), so each epoch has others."""

    seed: int
    rules: MaskRules

    def __call__(self, ids: Ints, rows: Rows) -> MaskedBatch:
        draws = KeyedMaskDraws(hash64(self.seed, rows.epoch, rows.index), self.rules.vocab_size)
        return mask_batch(ids, rows.input_ids.lengths, draws, self.rules)


class Batch(NamedTuple):
    """What the model and its losses take; b rows, s columns, n masked positions."""

    input_ids: Tensor  # [b, s] int64
    token_type_ids: Tensor  # [b, s] int64
    attention_mask: Tensor  # [b, s] int64, 1 real, 0 padding
    masked_lm_positions: Tensor  # [n] int64, flat indices into b * s
    masked_lm_labels: Tensor  # [n] int64
    next_sentence_label: Tensor  # [b] int64, IGNORE_INDEX where there is no pair, or the row counts for nothing
    counted: Tensor  # [b] int64, 0 for a row that counts for nothing
    padded: bool = True  # whether attention_mask hides anything: training would wait for a GPU to answer that

    def to(self, device: torch.device) -> "Batch":
        """To a GPU from pinned memory: a copy from any other would wait for what the GPU still does."""
        if device.type == "cpu":
            return self
        *tensors, padded = self
        return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors), padded=padded)


def batch(rows: Rows, masking: Masking | None = None) -> Batch:
    """Examples -> tensors no wider than the longest of them; `masking` for those that are stored without masks."""
    lengths, width = rows.input_ids.lengths, int(rows.input_ids.lengths.max())
    ids = pad_rows(*rows.input_ids, width)  # [b, s]
    real = np.arange(width) < lengths[:, None]
    second = (np.arange(width) >= rows.segment_b[:, None]) & real
    starts = np.arange(len(rows)) * width
    if rows.masks:
        flat = np.repeat(starts, rows.masks.positions.lengths) + rows.masks.positions.values
        labels = rows.masks.labels.values
    else:
        assert masking is not None, "these examples are stored without masks"
        ids, positions, targets, counts = masking(ids, rows)
        used = np.arange(positions.shape[1]) < counts[:, None]
        flat, labels = (positions + starts[:, None])[used], targets[used]
    counted = np.full(len(rows), rows.counted)
    arrays = (ids, second, real, flat, labels, rows.next_sentence_label, counted)
    return Batch(*(torch.from_numpy(array.astype(np.int64)) for array in arrays), padded=not real.all())


def share(rows: Rows, rank: int, workers: int, micro_batch_size: int) -> list[Rows]:
    """A worker's micro-batches of a global batch: as many for each worker, none larger than `micro_batch_size`.

    The sizes differ by one at most, so any number of workers will do. Where there are fewer rows than micro-batches,
    those without get a row that counts for nothing: every worker has to take part in every turn.
    """
    turns = -(-len(rows) // (workers * micro_batch_size))
    by_length = np.argsort(rows.input_ids.lengths, kind="stable")
    pieces = np.array_split(by_length, turns * workers)[rank::workers]
    return [rows.take(piece) if len(piece) else _idle(rows.take(by_length[:1])) for piece in pieces]


def _idle(row: Rows) -> Rows:
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(2, np.int64))
    return replace(row, next_sentence_label=np.full(1, IGNORE_INDEX), masks=Masks(nothing, nothing), counted=False)


def paired(phases: Iterable[Artifact]) -> bool:
    """Whether the examples of all phases are labelled pairs: objective mlm+nsp or mlm+sop, not mlm.

    Raises UserError when they are of several objectives, which no one head can learn.
    """
    first, *others = sorted({artifact.manifest.config["objective"] for artifact in phases})
    if others:
        raise UserError(
            f"pretrain: the phases' examples are of the objectives {', '.join([first, *others])}; "
            "make those of all phases with one examples.objective"
        )
    return first != "mlm"


class Examples:
    """The examples of one split of an artifact, by index: shard after shard in the order of their names."""

    def __init__(self, artifact: Artifact, split: str) -> None:
        """Opens no file: the manifest says what is in them. Raises UserError when it does not, or there are none."""
        self.files: list[Location] = artifact.files(f"{split}/")
        facts, names = ExamplesFacts.of(artifact.manifest), [f"{split}/{file.name}" for file in self.files]
        if unsaid := [name for name in names if name not in facts.rows or not facts.row_group_size]:
            raise UserError(
                f"{artifact.location}/manifest.json: does not say how many rows {unsaid[0]} has; "
                "delete that folder and run again"
            )
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        sizes: list[int] = []
        for number, name in enumerate(names):
            rows = facts.row_groups(name)
            sizes += rows
            self._groups += [(number, group) for group in range(len(rows))]
        self._starts = offsets_of(sizes)
        if not len(self):
            raise UserError(
                f"{artifact.location}: holds no {split} examples; "
                "give more documents or change extract.heldout_fraction"
            )
        self.masked = split == "heldout" or artifact.manifest.config["masking"] == "static"  # masks are stored
        self._footers: dict[int, pq.FileMetaData] = {}  # of the files that were opened

    def __len__(self) -> int:
        return int(self._starts[-1])

    def windows(self, seed: int, epoch: int) -> list[Ints]:
        """The row groups of an epoch in their order, cut where a window's examples reach _WINDOW."""
        order = np.random.default_rng([seed, epoch, _ORDER]).permutation(len(self._groups))
        filled = np.cumsum(np.diff(self._starts)[order])
        cuts = np.flatnonzero(np.diff(filled // _WINDOW, prepend=0)) + 1
        return [window for window in np.split(order, cuts) if len(window)]

    def read(self, groups: Ints, epoch: int = 0) -> Rows:
        """Row groups -> their examples, by index; only the files that hold them are opened."""
        wanted: dict[int, list[int]] = {}
        for file, group in (self._groups[number] for number in sorted(groups)):
            wanted.setdefault(file, []).append(group)
        with ThreadPoolExecutor(min(_READERS, len(wanted))) as readers:
            tables = list(readers.map(self._table, wanted, wanted.values()))
        index = np.concatenate([np.arange(*self._starts[number : number + 2]) for number in sorted(groups)])
        return _rows(pa.concat_tables(tables), index, epoch)

    def spread(self, count: int) -> Rows:
        """About `count` examples (all, if there are fewer), the same each time: whole row groups, evenly spread."""
        groups = len(self._groups)
        picked = min(groups, -(-count // int(np.diff(self._starts).max())))
        return self.read((2 * np.arange(picked) + 1) * groups // (2 * picked))

    def _table(self, file: int, groups: list[int]) -> pa.Table:
        with parquet_file(self.files[file], self._footers.get(file)) as opened:
            self._footers[file] = opened.metadata
            return opened.read_row_groups(groups, use_threads=False)

    def batches(self, seed: int, position: int, size: int, group: int = 1) -> Iterator[Rows]:
        """Global batches of `size` without end, the first `position` examples left out; epochs follow on each other.

        Of each window the rows of like length come together, so many in a `group`, the groups in random order. Raises
        UserError when there are fewer examples than a batch holds.
        """
        if len(self) < size:
            folder = self.files[0].uri.rpartition("/")[0]
            raise UserError(
                f"{folder}: holds {len(self)} examples, fewer than global_batch_size {size}; "
                "lower it or give more documents"
            )
        return self._batches(seed, position, size, group)

    def _batches(self, seed: int, position: int, size: int, group: int) -> Iterator[Rows]:
        rest: list[Rows] = []
        for rows in self._shuffled(seed, position, group):
            joined = Rows.join([*rest, rows])
            whole = len(joined) - len(joined) % size
            for start in range(0, whole, size):
                yield joined.take(np.arange(start, start + size))
            rest = [joined.take(np.arange(whole, len(joined)))]

    def _shuffled(self, seed: int, position: int, group: int) -> Iterator[Rows]:
        epoch, skipped = divmod(position, len(self))
        sizes = np.diff(self._starts)
        while True:
            for number, window in enumerate(self.windows(seed, epoch)):
                total = int(sizes[window].sum())
                if skipped < total:
                    rows = self.read(window, epoch)
                    order = _order(rows.input_ids.lengths, np.random.default_rng([seed, epoch, _WITHIN, number]), group)
                    yield rows.take(order[skipped:])
                skipped = max(0, skipped - total)
            epoch += 1

    def sample(self, seed: int, count: int, size: int) -> list[Rows]:
        """The same `count` examples each time (all, if there are fewer), in batches of at most `size`."""
        first = next(self.batches(seed, 0, min(count, len(self))))
        return [first.take(part) for part in np.array_split(np.arange(len(first)), -(-len(first) // size))]


def _order(lengths: Ints, draw: np.random.Generator, group: int) -> Ints:
    """A random order of rows in which those of like length come together, `group` at a time."""
    order = draw.permutation(len(lengths))
    if group == 1:
        return order
    by_length = order[np.argsort(lengths[order], kind="stable")]
    groups = np.split(by_length, np.arange(group, len(by_length), group))
    return np.concatenate([groups[number] for number in draw.permutation(len(groups))])


def _rows(table: pa.Table, index: Ints, epoch: int) -> Rows:
    masked = "masked_lm_positions" in table.column_names
    return Rows(
        index=index,
        epoch=np.full(len(index), epoch),
        input_ids=_ragged(table, "input_ids"),
        segment_b=table.column("segment_b").to_numpy(),
        next_sentence_label=table.column("next_sentence_label").to_numpy(),
        masks=Masks(_ragged(table, "masked_lm_positions"), _ragged(table, "masked_lm_labels")) if masked else None,
    )


def _ragged(table: pa.Table, name: str) -> Ragged:
    lists = pa.concat_arrays(table.column(name).chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return Ragged(lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0])


class Prefetched(Generic[Item]):
    """An iterator whose next items a thread makes ready while the last is used; `waited` counts seconds of waiting."""

    def __init__(self, items: Iterator[Item], ahead: int = 2) -> None:
        self.waited = 0.0
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self._thread.start()

    def _fill(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # it belongs to whoever asks for the next item
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.monotonic()
        item, error = self._queue.get()
        self.waited += time.monotonic() - start
        if error is not None:
            raise error
        assert item is not None
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
