"""A plan of examples -> their ids and stored masks, as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import offsets_of, pad_rows, ragged_ranges
from cloze.pipeline.core.schema import example_schema
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.example_planning import ExamplePlan
from cloze.pipeline.text.masking import KeyedMaskDraws, MaskRules, mask_batch, mask_rules
from cloze.pipeline.text.token_shards import TokenizedCorpus, TokenShard, token_shards
from cloze.pipeline.text.tokenizer import CLS, SEP, load_tokenizer, pieces_of

ROW_GROUP = 1024  # examples: what a reader fetches at a time
_BATCH_EXAMPLES = 16 * ROW_GROUP
_MASKS = 3  # a purpose of random numbers; example_planning.py has 1 and 2


@dataclass(frozen=True)
class ExampleInputs:
    """The inputs of the stage, which a worker keeps from shard to shard: vocabulary, token shards, and their index."""

    pieces: list[str]
    shards: list[TokenShard]
    corpora: dict[str, TokenizedCorpus]  # split -> its documents

    @classmethod
    def open(cls, tokens: Artifact, vocab: Artifact) -> "ExampleInputs":
        shards = token_shards(tokens)
        corpora = {split: TokenizedCorpus(shards, split == "heldout") for split in ("train", "heldout")}
        return cls(pieces_of(load_tokenizer(vocab.location / "tokenizer.json")), shards, corpora)

    def mask_rules(self, config: LengthConfig) -> MaskRules:
        return mask_rules(self.pieces, config.masked_lm_prob, config.max_predictions_per_seq, config.mask_unit)


class ExampleBatch(NamedTuple):
    """Some examples with their ids: example i is ids[offsets[i]:offsets[i + 1]]."""

    plan: ExamplePlan
    ids: np.ndarray
    offsets: npt.NDArray[np.int64]  # [n + 1]
    segment_b: npt.NDArray[np.int64]  # [n]: where the second segment begins; the example's length without a second


def assemble_batches(plan: ExamplePlan, shard: int, inputs: ExampleInputs, pairs: bool) -> Iterator[ExampleBatch]:
    """The ids of a shard's examples, some thousands at a time, as [CLS] segment [SEP] segment [SEP] ..."""
    own = inputs.shards[shard].ids()
    specials = np.array([inputs.pieces.index(CLS), inputs.pieces.index(SEP)], own.dtype)
    for begin in range(0, len(plan.keys), _BATCH_EXAMPLES):
        batch = plan.take(np.arange(begin, min(begin + _BATCH_EXAMPLES, len(plan.keys))))
        fetched, starts = _fetch_segments(batch.segments, shard, len(own) + len(specials), inputs.shards)
        source = np.concatenate([own, specials, *fetched])
        lengths = batch.segments[:, 2] - batch.segments[:, 1]
        examples = np.repeat(np.arange(len(batch.keys)), np.diff(batch.first))
        # The ids are a sequence of ranges of `source`: a [CLS] for each example, then its segments, each with a [SEP].
        segment_ranges = 1 + examples + 2 * np.arange(len(batch.segments))
        range_starts = np.full(len(batch.keys) + 2 * len(batch.segments), len(own) + 1)
        range_lengths = np.ones_like(range_starts)
        range_starts[batch.first[:-1] * 2 + np.arange(len(batch.keys))] = len(own)
        range_starts[segment_ranges], range_lengths[segment_ranges] = starts, lengths
        ids = source[ragged_ranges(range_starts, range_lengths)]
        offsets = offsets_of(lengths + 1)[batch.first] + np.arange(len(batch.keys) + 1)
        segment_b = lengths[batch.first[:-1]] + 2 if pairs else np.diff(offsets)
        yield ExampleBatch(batch, ids, offsets, segment_b)


def _fetch_segments(
    segments: npt.NDArray[np.int64], shard: int, base: int, shards: Sequence[TokenShard]
) -> tuple[list[np.ndarray], npt.NDArray[np.int64]]:
    """Fetch the segments in other shards. Returns their ids, to be placed from index `base` on, and where each of all
    segments starts.
    """
    starts = segments[:, 1].copy()
    fetched = []
    for other in np.unique(segments[:, 0]).tolist():
        if other == shard:
            continue
        rows = np.flatnonzero(segments[:, 0] == other)
        lengths = segments[rows, 2] - segments[rows, 1]
        fetched.append(shards[other].slices(segments[rows, 1], lengths))
        offsets = offsets_of(lengths)
        starts[rows] = base + offsets[:-1]
        base += int(offsets[-1])
    return fetched, starts


def example_table(
    plan: ExamplePlan, shard: int, inputs: ExampleInputs, config: LengthConfig, masked: bool
) -> tuple[pa.Table, dict[str, int]]:
    """A shard's examples as a table, with the number of tokens and, if masks are stored, of masked tokens."""
    schema = example_schema(len(inputs.pieces), masked)
    batches, tokens, num_masked = [], 0, 0
    for batch in assemble_batches(plan, shard, inputs, pairs=config.objective != "mlm"):
        ids, offsets = batch.ids, batch.offsets
        mask_columns: list[pa.Array] = []
        if masked:
            draws = KeyedMaskDraws(hash64(batch.plan.keys, _MASKS), len(inputs.pieces))
            padded_ids = pad_rows(ids, offsets, config.max_seq_length)
            masks = mask_batch(padded_ids, np.diff(offsets), draws, inputs.mask_rules(config))
            ids = masks.input_ids[np.arange(config.max_seq_length) < np.diff(offsets)[:, None]]
            used = np.arange(masks.positions.shape[1]) < masks.counts[:, None]
            mask_offsets = offsets_of(masks.counts)
            mask_columns = [
                _list_array(schema.field("masked_lm_positions"), masks.positions[used], mask_offsets),
                _list_array(schema.field("masked_lm_labels"), masks.labels[used], mask_offsets),
            ]
            num_masked += int(mask_offsets[-1])
        segment_b = pa.array(batch.segment_b.astype(np.int32))
        input_ids = _list_array(schema.field("input_ids"), ids, offsets)
        columns = [input_ids, segment_b, pa.array(batch.plan.labels), *mask_columns]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        tokens += len(ids)
    counts = {"tokens": tokens, "masked": num_masked} if masked else {"tokens": tokens}
    return pa.Table.from_batches(batches, schema=schema), counts


def _list_array(field: pa.Field, values: np.ndarray, offsets: npt.NDArray[np.int64]) -> pa.Array:
    flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype(), copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=field.type)
