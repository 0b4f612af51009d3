"""The documents of a shard -> a plan of its examples: which segments each consists of, its label and its random key."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.keyed_random import KeyedDraws, hash64
from cloze.pipeline.core.ragged import offsets_of, ragged_ranges
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.pairs import DocumentOffsets, Pair, Segment, full_sentences, make_pairs
from cloze.pipeline.text.token_shards import TokenizedDocuments
from cloze.pipeline.text.tokenizer import CLS, SEP

_PACKED_DOCUMENTS = 32  # that are packed together if examples are full sentences
_PAIRS, _ORDER = 1, 2  # the purposes of random numbers; example_assembly.py has 3


class ExamplePlan(NamedTuple):
    """n examples without their ids: example i consists of the segments first[i] to first[i + 1]."""

    segments: npt.NDArray[np.int64]  # [m, 2], as in Segment
    first: npt.NDArray[np.int64]  # [n + 1]
    labels: npt.NDArray[np.int8]  # [n]
    keys: npt.NDArray[np.uint64]  # [n], of their randomness

    def take(self, rows: npt.NDArray[np.int64]) -> "ExamplePlan":
        counts = np.diff(self.first)[rows]
        segments = self.segments[ragged_ranges(self.first[rows], counts)]
        return ExamplePlan(segments, offsets_of(counts), self.labels[rows], self.keys[rows])


def plan_shard(shard: TokenizedDocuments, passes: npt.NDArray[np.int64], config: LengthConfig) -> ExamplePlan:
    """Plan the examples of a token shard, in an order that only their keys determine.

    `passes` [documents]: the number of passes over each document. The examples of a document depend on (seed, its key,
    pass) and on the documents of the shard.
    """
    offsets = DocumentOffsets(shard.document_offsets.data, shard.sentence_offsets.data)
    keys = shard.documents["key"]
    plan = (_plan_full_sentences if config.objective == "mlm" else _plan_pairs)(offsets, keys, passes, config)
    return plan.take(np.argsort(hash64(plan.keys, _ORDER), kind="stable"))


def _plan_pairs(
    offsets: DocumentOffsets, keys: npt.NDArray[np.uint64], passes: npt.NDArray[np.int64], config: LengthConfig
) -> ExamplePlan:
    indices = np.repeat(np.arange(len(passes)), passes)
    pass_numbers = ragged_ranges(np.zeros(len(passes)), passes)
    pass_keys = hash64(config.seed, config.max_seq_length, _PAIRS, keys[indices], pass_numbers)
    max_tokens, swap = config.max_seq_length - len([CLS, SEP, SEP]), config.objective == "mlm+sop"
    batches = [np.empty((0, len(Pair._fields)), np.int64)]
    for index, key in zip(indices.tolist(), pass_keys.tolist(), strict=True):
        pairs = make_pairs(offsets, index, max_tokens, config.short_seq_prob, KeyedDraws(key), swap)
        batches.append(np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, len(Pair._fields)))
    pairs = np.concatenate(batches)
    return ExamplePlan(
        pairs[:, :4].reshape(-1, len(Segment._fields)),
        2 * np.arange(len(pairs) + 1),
        pairs[:, 4].astype(np.int8),
        _example_keys(pass_keys, list(map(len, batches[1:]))),
    )


def _plan_full_sentences(
    offsets: DocumentOffsets, keys: npt.NDArray[np.uint64], passes: npt.NDArray[np.int64], config: LengthConfig
) -> ExamplePlan:
    """Documents are packed together in runs of 32, in the order of their keys.

    Passes over the same documents have the same packs, with different masks if these are stored.
    """
    packs: list[list[Segment]] = []
    run_keys, counts = list[npt.NDArray[np.uint64]](), list[int]()
    for pass_number in range(int(passes.max(initial=0))):
        indices = np.flatnonzero(passes > pass_number)
        for start in range(0, len(indices), _PACKED_DOCUMENTS):
            run = indices[start : start + _PACKED_DOCUMENTS].tolist()
            run_packs = list(full_sentences(offsets, run, config.max_seq_length - len([CLS])))
            packs += run_packs
            run_keys.append(hash64(config.seed, config.max_seq_length, _PAIRS, keys[run[0]], pass_number))
            counts.append(len(run_packs))
    return ExamplePlan(
        np.array(list(chain.from_iterable(packs)), np.int64).reshape(-1, len(Segment._fields)),
        offsets_of(list(map(len, packs))),
        np.full(len(packs), IGNORE_INDEX, np.int8),
        _example_keys(np.concatenate([np.empty(0, np.uint64), *run_keys]), counts),
    )


def _example_keys(keys: npt.NDArray[np.uint64], counts: Sequence[int]) -> npt.NDArray[np.uint64]:
    """A key for each example; `counts` of them come from each of the given keys."""
    return hash64(np.repeat(keys, counts), ragged_ranges(np.zeros(len(counts)), counts))
