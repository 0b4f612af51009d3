"""A plan of examples -> their ids and stored masks, as record batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.core.ragged import offsets_of, pad_rows, ragged_ranges
from cloze.pipeline.core.schema import example_schema
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.example_planning import ExamplePlan
from cloze.pipeline.text.masking import KeyedMaskDraws, mask_batch, mask_rules
from cloze.pipeline.text.tokenizer import CLS, SEP

ROW_GROUP = 1024  # examples: what a reader fetches at a time
_BATCH_EXAMPLES = 16 * ROW_GROUP
_MASKS = 3  # a purpose of random numbers; example_planning.py has 1 and 2


class ExampleBatch(NamedTuple):
    """Some examples with their ids: example i is ids[offsets[i]:offsets[i + 1]]."""

    plan: ExamplePlan
    ids: np.ndarray
    offsets: npt.NDArray[np.int64]  # [n + 1]
    segment_b: npt.NDArray[np.int64]  # [n]: where the second segment begins; the example's length without a second


def example_batches(
    plan: ExamplePlan, ids: np.ndarray, pieces: list[str], config: LengthConfig, masked: bool
) -> Iterator[pa.RecordBatch]:
    """Yields the examples of a token shard with these ids, some thousands at a time. `masked`: masks are stored."""
    schema = example_schema(len(pieces), masked)
    rules = mask_rules(pieces, config.masked_lm_prob, config.max_predictions_per_seq, config.mask_unit)
    for batch in _assemble(plan, ids, pieces, pairs=config.objective != "mlm"):
        input_ids, mask_columns = batch.ids, list[pa.Array]()
        if masked:
            draws = KeyedMaskDraws(hash64(batch.plan.keys, _MASKS), len(pieces))
            lengths = np.diff(batch.offsets)
            masks = mask_batch(pad_rows(batch.ids, batch.offsets, config.max_seq_length), lengths, draws, rules)
            input_ids = masks.input_ids[np.arange(config.max_seq_length) < lengths[:, None]]
            used = np.arange(masks.positions.shape[1]) < masks.counts[:, None]
            mask_offsets = offsets_of(masks.counts)
            mask_columns = [
                _list_array(schema.field("masked_lm_positions"), masks.positions[used], mask_offsets),
                _list_array(schema.field("masked_lm_labels"), masks.labels[used], mask_offsets),
            ]
        columns = [
            _list_array(schema.field("input_ids"), input_ids, batch.offsets),
            pa.array(batch.segment_b.astype(np.int32)),
            pa.array(batch.plan.labels),
        ]
        yield pa.RecordBatch.from_arrays([*columns, *mask_columns], schema=schema)


def _assemble(plan: ExamplePlan, ids: np.ndarray, pieces: list[str], pairs: bool) -> Iterator[ExampleBatch]:
    """Yields the examples as [CLS] segment [SEP] segment [SEP] ..."""
    source = np.concatenate([ids, np.array([pieces.index(CLS), pieces.index(SEP)], ids.dtype)])
    cls, sep = len(ids), len(ids) + 1
    for begin in range(0, len(plan.keys), _BATCH_EXAMPLES):
        batch = plan.take(np.arange(begin, min(begin + _BATCH_EXAMPLES, len(plan.keys))))
        starts, lengths = batch.segments[:, 0], batch.segments[:, 1] - batch.segments[:, 0]
        examples = np.repeat(np.arange(len(batch.keys)), np.diff(batch.first))
        # The ids are a sequence of ranges of `source`: a [CLS] for each example, then its segments, each with a [SEP].
        segment_ranges = 1 + examples + 2 * np.arange(len(batch.segments))
        range_starts = np.full(len(batch.keys) + 2 * len(batch.segments), sep)
        range_lengths = np.ones_like(range_starts)
        range_starts[batch.first[:-1] * 2 + np.arange(len(batch.keys))] = cls
        range_starts[segment_ranges], range_lengths[segment_ranges] = starts, lengths
        offsets = offsets_of(lengths + 1)[batch.first] + np.arange(len(batch.keys) + 1)
        segment_b = lengths[batch.first[:-1]] + 2 if pairs else np.diff(offsets)
        yield ExampleBatch(batch, source[ragged_ranges(range_starts, range_lengths)], offsets, segment_b)


def _list_array(field: pa.Field, values: np.ndarray, offsets: npt.NDArray[np.int64]) -> pa.Array:
    flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype(), copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=field.type)
