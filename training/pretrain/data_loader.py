"""Example shards -> batches, in an order that depends only on (seed, epoch, position).

In each epoch the row groups of all shards are permuted and read in windows of about 65,536 examples. Within a window
all examples are shuffled, and examples of similar length are grouped so that little padding is needed; the order of
these groups is random again. The state is one number: how many examples were consumed. A global batch contains the same
examples for any number of workers and any micro-batch size: it is sorted by length and cut into micro-batches, which
are assigned to the workers in turn (round-robin).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.manifest_facts import ExamplesFacts
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of, pad_rows
from cloze.pipeline.core.schema import IGNORE_INDEX, parquet_file
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.masking import KeyedMaskDraws, MaskedBatch, MaskRules, mask_batch
from cloze.training.pretrain.cloze_choice import Distractors
from cloze.training.pretrain.example_arrays import ExampleArrays, StoredMasks
from cloze.training.pretrain.window_cache import WindowCache

_WINDOW = 65_536  # examples shuffled together: about 20 MB at length 128
_READERS = 8  # threads that read files: reading from S3 is mostly waiting
_ROW_GROUP_ORDER, _EXAMPLE_ORDER = 1, 2  # keys of the random draws


@dataclass(frozen=True)
class DynamicMasking:
    """Draws masks for examples without stored masks, keyed by (seed, epoch, example): new masks in each epoch."""

    seed: int
    rules: MaskRules

    def __call__(self, ids: Ints, examples: ExampleArrays) -> MaskedBatch:
        draws = KeyedMaskDraws(hash64(self.seed, examples.epoch, examples.index), self.rules.vocab_size)
        return mask_batch(ids, examples.input_ids.lengths, draws, self.rules)


class Batch(NamedTuple):
    """The tensors of a micro-batch: b examples, padded to s tokens, with n masked positions in all."""

    input_ids: Tensor  # [b, s] int64
    token_type_ids: Tensor  # [b, s] int64
    attention_mask: Tensor  # [b, s] int64, 1 real, 0 padding
    masked_lm_positions: Tensor  # [n] int64, flat indices into b * s
    masked_lm_labels: Tensor  # [n] int64, IGNORE_INDEX where `n` was padded
    next_sentence_label: Tensor  # [b] int64, IGNORE_INDEX without a pair label and for placeholders
    counted: Tensor  # [b] int64, 0 for a placeholder
    padded: bool = True  # whether attention_mask contains zeros; asking the GPU would wait for it
    distractors: Tensor | None = None  # [n] int64, of held-out examples: see Distractors

    def pinned(self) -> "Batch":
        """The same batch in pinned memory: a copy from other memory to a GPU waits for the GPU's pending work."""
        return self._with_tensors(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        """Copy to a GPU; the copy of a pinned batch does not wait."""
        if device.type == "cpu":
            return self
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_tensors(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        moved = {name: move(value) for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(**moved)


class ShapeMultiples(NamedTuple):
    """The multiples to which `collate` pads, so that few shapes occur and 16-bit products are fast.

    Masked positions are padded to at least one multiple above 1: a placeholder has none.
    """

    length: int = 1  # of tokens in a row
    masked: int = 1  # of masked positions in a micro-batch
    longest: int | None = None  # row in tokens, padding included: the positions of the model


def collate(
    examples: ExampleArrays,
    masking: DynamicMasking | None = None,
    multiples: ShapeMultiples | None = None,
    distractors: Distractors | None = None,
) -> Batch:
    """Examples -> tensors padded to the longest one. `masking` draws the masks if none are stored.

    `distractors` draws those of stored masks; without it the batch has none.
    """
    multiples = multiples or ShapeMultiples()
    lengths = examples.input_ids.lengths
    width = _rounded_up(int(lengths.max()), multiples.length)
    width = min(width, multiples.longest or width)
    ids = pad_rows(*examples.input_ids, width)  # [b, s]
    real = np.arange(width) < lengths[:, None]
    second = (np.arange(width) >= examples.segment_b[:, None]) & real
    starts = np.arange(len(examples)) * width
    if examples.masks:
        flat = np.repeat(starts, examples.masks.positions.lengths) + examples.masks.positions.values
        labels = examples.masks.labels.values
    else:
        assert masking is not None, "these examples are stored without masks"
        ids, positions, targets, counts = masking(ids, examples)
        used = np.arange(positions.shape[1]) < counts[:, None]
        flat, labels = (positions + starts[:, None])[used], targets[used]
    least = 1 if multiples.masked > 1 else 0
    missing = _rounded_up(max(len(labels), least), multiples.masked) - len(labels)

    def padded_ids(ids: Ints) -> npt.NDArray[np.int64]:
        return np.pad(ids.astype(np.int64), (0, missing), constant_values=IGNORE_INDEX)

    flat, labels = np.pad(flat, (0, missing)), padded_ids(labels)
    counted = np.full(len(examples), examples.counted)
    arrays = (ids, second, real, flat, labels, examples.next_sentence_label, counted)
    return Batch(
        *(torch.from_numpy(array.astype(np.int64)) for array in arrays),
        padded=not real.all(),
        distractors=torch.from_numpy(padded_ids(distractors.of_masks(examples))) if distractors else None,
    )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def worker_micro_batches(
    examples: ExampleArrays, rank: int, workers: int, micro_batch_size: int
) -> list[ExampleArrays]:
    """A worker's micro-batches of a global batch: the same number for each worker, none above `micro_batch_size`.

    Their sizes differ by one at most, so any number of workers is possible. With fewer examples than micro-batches, the
    empty ones get a placeholder: every worker must take part in every micro-step.
    """
    micro_steps = -(-len(examples) // (workers * micro_batch_size))
    by_length = np.argsort(examples.input_ids.lengths, kind="stable")
    micro_batches = np.array_split(by_length, micro_steps * workers)[rank::workers]
    return [examples.take(rows) if len(rows) else _placeholder(examples.take(by_length[:1])) for rows in micro_batches]


def _placeholder(example: ExampleArrays) -> ExampleArrays:
    empty = Ragged(np.zeros(0, np.int64), np.zeros(2, np.int64))
    label = np.full(1, IGNORE_INDEX)
    return replace(example, next_sentence_label=label, masks=StoredMasks(empty, empty), counted=False)


def has_pair_labels(phases: Iterable[Artifact]) -> bool:
    """Whether the examples of all phases have pair labels: objective mlm+nsp or mlm+sop, not mlm.

    Raises UserError when their objectives differ: one head cannot learn several.
    """
    objectives = sorted({artifact.manifest.config["objective"] for artifact in phases})
    if len(objectives) > 1:
        raise UserError(
            f"pretrain: the phases' examples have different objectives ({', '.join(objectives)}); "
            "create the examples of all phases with the same examples.objective"
        )
    return objectives[0] != "mlm"


class ExampleDataset:
    """The examples of one split of an artifact, by index: its shards in the order of their names."""

    def __init__(self, artifact: Artifact, split: str, cache: WindowCache | None = None) -> None:
        """Opens no file: the manifest has the numbers of rows. Raises UserError if it lacks them, or if they are 0.

        `cache` shares windows with other workers; it must contain windows of this artifact only.
        """
        self._split, self._cache = split, cache
        self.files: list[Location] = artifact.files(f"{split}/")
        facts, names = ExamplesFacts.of(artifact.manifest), [f"{split}/{file.name}" for file in self.files]
        if unknown := [name for name in names if name not in facts.rows or not facts.row_group_size]:
            raise UserError(
                f"{artifact.location}/manifest.json: the number of rows of {unknown[0]} is missing; "
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
                f"{artifact.location}: contains no {split} examples; "
                "give more documents or change extract.heldout_fraction"
            )
        self.has_stored_masks = split == "heldout" or artifact.manifest.config["masking"] == "static"
        self._footers: dict[int, pq.FileMetaData] = {}  # of the files opened so far

    def __len__(self) -> int:
        return int(self._starts[-1])

    def windows(self, seed: int, epoch: int) -> list[Ints]:
        """The shuffled row groups of an epoch, cut into windows of about _WINDOW examples."""
        order = np.random.default_rng([seed, epoch, _ROW_GROUP_ORDER]).permutation(len(self._groups))
        filled = np.cumsum(np.diff(self._starts)[order])
        cuts = np.flatnonzero(np.diff(filled // _WINDOW, prepend=0)) + 1
        return [window for window in np.split(order, cuts) if len(window)]

    def read(self, groups: Ints, epoch: int = 0) -> ExampleArrays:
        """Row groups -> their examples in the order of their index. Only the files of these groups are opened."""
        by_file: dict[int, list[int]] = {}
        for file, group in (self._groups[number] for number in sorted(groups)):
            by_file.setdefault(file, []).append(group)
        with ThreadPoolExecutor(min(_READERS, len(by_file))) as readers:
            tables = list(readers.map(self._read_table, by_file, by_file.values()))
        index = np.concatenate([np.arange(*self._starts[number : number + 2]) for number in sorted(groups)])
        return ExampleArrays.from_table(pa.concat_tables(tables), index, np.full(len(index), epoch))

    def evenly_spaced(self, count: int) -> ExampleArrays:
        """About `count` examples (or all, if fewer): whole row groups at equal distances, always the same ones."""
        groups = len(self._groups)
        picked = min(groups, -(-count // int(np.diff(self._starts).max())))
        return self.read((2 * np.arange(picked) + 1) * groups // (2 * picked))

    def _read_table(self, file: int, groups: list[int]) -> pa.Table:
        with parquet_file(self.files[file], self._footers.get(file)) as opened:
            self._footers[file] = opened.metadata
            return opened.read_row_groups(groups, use_threads=False)

    def batches(self, seed: int, position: int, size: int, group_size: int = 1) -> Iterator[ExampleArrays]:
        """An endless sequence of global batches of `size`, epoch after epoch, without the first `position` examples.

        Within each window, examples of similar length form groups of `group_size`, in random order. Raises UserError
        when there are fewer examples than one batch needs.
        """
        self.check_batch_size(size)
        return self._batches(seed, position, size, group_size)

    def check_batch_size(self, size: int, key: str = "global_batch_size") -> None:
        """Raises UserError when there are fewer examples than one batch needs. `key` sets the size."""
        if len(self) < size:
            folder = self.files[0].uri.rpartition("/")[0]
            raise UserError(
                f"{folder}: contains {len(self)} examples, fewer than {key} {size}; lower it or give more documents"
            )

    def _batches(self, seed: int, position: int, size: int, group_size: int) -> Iterator[ExampleArrays]:
        parts, missing = list[ExampleArrays](), size  # of the next batch
        for window in self._shuffled(seed, position, group_size):
            start = 0
            while len(window) - start >= missing:
                parts.append(window.slice(start, start + missing))
                yield ExampleArrays.concatenate(parts)
                start += missing
                parts, missing = [], size
            parts.append(window.slice(start, len(window)))
            missing -= len(window) - start

    def _shuffled(self, seed: int, position: int, group_size: int) -> Iterator[ExampleArrays]:
        """The examples in training order, window by window."""
        epoch, skipped = divmod(position, len(self))
        sizes = np.diff(self._starts)
        while True:
            for number, window in enumerate(self.windows(seed, epoch)):
                total = int(sizes[window].sum())
                if skipped < total:
                    read = partial(self._read_shuffled, window, seed, epoch, number, group_size)
                    name = f"{self._split}-{seed}-{group_size}-{epoch:06d}-{number:06d}"
                    examples = self._cache.get(name, read) if self._cache else read()
                    yield examples.slice(skipped, total)
                skipped = max(0, skipped - total)
            epoch += 1

    def _read_shuffled(self, window: Ints, seed: int, epoch: int, number: int, group_size: int) -> ExampleArrays:
        """The examples of window `number` of an epoch, in training order."""
        examples = self.read(window, epoch)
        random = np.random.default_rng([seed, epoch, _EXAMPLE_ORDER, number])
        return examples.take(_length_grouped_order(examples.input_ids.lengths, random, group_size))

    def sample(self, seed: int, count: int, size: int) -> list[ExampleArrays]:
        """`count` examples (or all, if fewer), always the same ones, in batches of at most `size`."""
        first = next(self.batches(seed, 0, min(count, len(self))))
        return [first.take(rows) for rows in np.array_split(np.arange(len(first)), -(-len(first) // size))]


def _length_grouped_order(lengths: Ints, random: np.random.Generator, group_size: int) -> Ints:
    """A random order of examples in which `group_size` examples of similar length follow each other."""
    order = random.permutation(len(lengths))
    if group_size == 1:
        return order
    by_length = order[np.argsort(lengths[order], kind="stable")]
    groups = np.split(by_length, np.arange(group_size, len(by_length), group_size))
    return np.concatenate([groups[number] for number in random.permutation(len(groups))])
