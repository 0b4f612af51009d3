"""The current phase's examples -> one worker's batches, prepared by a thread while the model trains."""

import math
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.text.masking import mask_rules
from cloze.training.cluster.collectives import broadcast_object, workers_on_this_node
from cloze.training.pretrain.baselines import Baseline, training_counts, unigram_baseline
from cloze.training.pretrain.cloze_choice import Distractors
from cloze.training.pretrain.data_loader import (
    Batch,
    DynamicMasking,
    ExampleDataset,
    ShapeMultiples,
    collate,
    worker_micro_batches,
)
from cloze.training.pretrain.example_arrays import ExampleArrays
from cloze.training.pretrain.loss_spikes import nth_kept_batch
from cloze.training.pretrain.train_state import PretrainSetup, TrainState
from cloze.training.pretrain.window_cache import WindowCache

Item = TypeVar("Item")

#: Padding on a GPU, so that few shapes occur. On the quickstart's examples of length 128, in groups of 64, the fraction
#: of padding rises from 0.056 to 0.060.
GPU_MULTIPLES = ShapeMultiples(length=32, masked=256)

_HELDOUT_SEED = 0  # the same held-out examples in every run
_NO_COUNTS = np.zeros(0, np.int64)  # of the workers that do not count


class GlobalBatch(NamedTuple):
    """The examples of one step, over all workers."""

    number: int  # position in the phase's data
    arrays: ExampleArrays
    micro_batches: list[Batch]  # this worker's

    @property
    def examples(self) -> list[list[int]]:
        """The epoch and the index of each example."""
        return [[int(epoch), int(index)] for epoch, index in zip(self.arrays.epoch, self.arrays.index, strict=True)]


class PhaseData:
    """One worker's training batches and held-out batches of the current phase."""

    def __init__(self, setup: PretrainSetup, rank: int, workers: int, device: torch.device) -> None:
        self._setup, self._rank, self._workers, self._device = setup, rank, workers, device
        self._batches: Prefetcher[GlobalBatch] | None = None
        self._cache: WindowCache | None = None
        self.phase = -1
        self.heldout: list[list[Batch]] = []  # the micro-batches of each global batch that is evaluated
        self.unigram = Baseline(math.nan, math.nan)  # the score of a unigram model on `heldout`

    def open(self, state: TrainState) -> None:
        """Start before the batch of the next step. Does nothing if that phase is already open."""
        if self._batches and self.phase == state.phase:
            return
        self.close()
        self.phase, config, artifact = state.phase, self._setup.config, self._setup.examples[state.phase]
        cache_name = broadcast_object(uuid.uuid4().hex)
        self._cache = WindowCache(cache_name) if workers_on_this_node() > 1 else None
        train, heldout = (ExampleDataset(artifact, split, self._cache) for split in ("train", "heldout"))
        seed = config.data_seeds[self.phase]
        masking = None if train.has_stored_masks else _dynamic_masking(seed, artifact, self._setup.pieces)
        size = config.global_batch_sizes[self.phase]
        sample = heldout.sample(_HELDOUT_SEED, config.eval_batches * size, size)
        # only one worker needs to read the examples that are counted
        counts = broadcast_object(training_counts(train, self._setup.pieces) if self._rank == 0 else _NO_COUNTS)
        self.unigram = unigram_baseline(counts, sample)
        distractors = Distractors(counts, self._setup.pieces)
        self.heldout = [self._micro_batches(arrays, distractors=distractors) for arrays in sample]
        skipped = {skip.batch for skip in state.skipped if skip.phase == state.phase}
        first = nth_kept_batch(state.step - state.phase_start, skipped)
        self._batches = Prefetcher(self._batches_from(first, train, masking, skipped))

    def next(self) -> tuple[GlobalBatch, float]:
        """The next batch, and the seconds spent waiting for it."""
        assert self._batches
        before = self._batches.waited
        return next(self._batches), self._batches.waited - before

    def close(self) -> None:
        if self._batches:
            self._batches.close()
            self._batches = None
        if self._cache:
            self._cache.close()
            self._cache = None

    def _batches_from(
        self, first: int, train: ExampleDataset, masking: DynamicMasking | None, skipped: set[int]
    ) -> Iterator[GlobalBatch]:
        """The phase's batches from number `first` on, without the skipped ones."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread, which pins memory
        config, size = self._setup.config, self._setup.config.global_batch_sizes[self.phase]
        batches = train.batches(config.data_seeds[self.phase], first * size, size, config.group_by_length)
        for number, arrays in enumerate(batches, first):
            if number not in skipped:
                yield GlobalBatch(number, arrays, self._micro_batches(arrays, masking))

    def _micro_batches(
        self, arrays: ExampleArrays, masking: DynamicMasking | None = None, distractors: Distractors | None = None
    ) -> list[Batch]:
        micro_batch_size = self._setup.config.micro_batch_sizes[self.phase]
        parts = worker_micro_batches(arrays, self._rank, self._workers, micro_batch_size)
        if self._device.type == "cpu":
            return [collate(part, masking, distractors=distractors) for part in parts]
        multiples = GPU_MULTIPLES._replace(longest=self._setup.config.model.max_position_embeddings)
        return [collate(part, masking, multiples, distractors).pinned() for part in parts]


def _dynamic_masking(seed: int, examples: Artifact, pieces: Sequence[str]) -> DynamicMasking:
    """Masks are drawn by the rules that the examples stage used for the held-out examples."""
    config = examples.manifest.config
    settings = ("masked_lm_prob", "max_predictions_per_seq", "mask_unit")
    return DynamicMasking(seed, mask_rules(pieces, *(config[name] for name in settings)))


class Prefetcher(Generic[Item]):
    """An iterator that computes the next items in a thread; `waited` counts the seconds spent waiting for them."""

    def __init__(self, items: Iterator[Item], depth: int = 2) -> None:
        self.waited = 0.0
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self._thread.start()

    def _fill(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # raised where the next item is requested
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
