"""token shards + vocab -> example shards of one sequence length, masks stored in them or left to be drawn later."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.config import Compute, Config
from pipeline.corpus import Corpus, TokenShard, token_shards
from pipeline.masking import KeyedMaskDraws, MaskRules, mask_batch, mask_rules
from pipeline.pairs import Pair, make_pairs
from pipeline.parallel import for_each
from pipeline.ragged import offsets_of, padded, ragged_ranges
from pipeline.randomness import KeyedDraws, mixed
from pipeline.schema import example_schema, parquet_bytes
from pipeline.tokenizer import CLS, SEP, load, pieces_of

VERSION = 1
_ROWS = 1024  # in a row group, which is what a reader fetches
_ROWS_AT_ONCE = 16 * _ROWS
_SPECIALS = 3  # [CLS] first [SEP] second [SEP]
_PAIRS, _ORDER, _MASKS = 1, 2, 3  # what a random draw is for


class ExamplesConfig(Config):
    """What the examples of every length have in common."""

    dupe_factor: int = Field(default=5, gt=0)  # passes over the documents, each with other draws
    short_seq_prob: float = Field(default=0.1, ge=0, le=1)
    masked_lm_prob: float = Field(default=0.15, gt=0, lt=1)
    masking: Literal["dynamic", "static"] = "dynamic"  # drawn when a batch is made, or stored; held-out: always stored
    whole_word_mask: bool = False
    seed: int = Field(default=1, ge=0)
    workers: Annotated[int, Compute] = Field(default=2, gt=0)


class LengthConfig(ExamplesConfig):
    """And what one length adds. At least 5: [CLS] a [SEP] b [SEP]."""

    max_seq_length: int = Field(ge=5, le=1 << 15)
    max_predictions_per_seq: int = Field(gt=0)


@dataclass(frozen=True)
class Maker:
    """What a worker keeps from shard to shard: the vocabulary, and where every document lies."""

    pieces: list[str]
    shards: list[TokenShard]
    corpora: dict[str, Corpus]  # split -> its documents

    @classmethod
    def open(cls, tokens: Artifact, vocab: Artifact) -> "Maker":
        shards = token_shards(tokens)
        corpora = {split: Corpus(shards, split == "heldout") for split in ("train", "heldout")}
        return cls(pieces_of(load(vocab.location / "tokenizer.json")), shards, corpora)

    def rules(self, config: LengthConfig) -> MaskRules:
        return mask_rules(self.pieces, config.masked_lm_prob, config.max_predictions_per_seq, config.whole_word_mask)


class Plan(NamedTuple):
    """Examples before their ids are looked up: ranges of ids [n, 6] as in Pair, and a key [n] for their randomness."""

    pairs: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]


def plan_shard(corpus: Corpus, shard: int, passes: int, config: LengthConfig) -> Plan:
    """All passes over a shard's documents, in an order of examples that only their own keys decide.

    What becomes of a document depends on (seed, its doc_id, pass) and on the documents of its split.
    """
    indices = corpus.of_shard(shard)
    keys = mixed(config.seed, config.max_seq_length, _PAIRS, corpus.keys[indices][:, None], np.arange(passes))
    found: list[npt.NDArray[np.int64]] = []
    for index, document_keys in zip(indices.tolist(), keys.tolist(), strict=True):
        for key in document_keys:
            draws = KeyedDraws(key)
            pairs = make_pairs(corpus, index, config.max_seq_length - _SPECIALS, config.short_seq_prob, draws)
            found.append(np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, len(Pair._fields)))
    counts = [len(pairs) for pairs in found]
    within = ragged_ranges(np.zeros(len(counts)), counts)
    example_keys = mixed(np.repeat(keys.reshape(-1), counts), within)
    order = np.argsort(mixed(example_keys, _ORDER), kind="stable")
    return Plan(np.concatenate([np.empty((0, len(Pair._fields)), np.int64), *found])[order], example_keys[order])


def example_ids(plan: Plan, shard: int, maker: Maker) -> Iterator[tuple[np.ndarray, npt.NDArray[np.int64]]]:
    """A shard's examples, some thousands at a time: their ids, one example behind the other, and the lengths [n, 5] of
    their parts [CLS], first segment, [SEP], second segment, [SEP]."""
    specials = [maker.pieces.index(CLS), maker.pieces.index(SEP)]
    own = maker.shards[shard].ids()
    elsewhere, second = _second_segments(plan.pairs, shard, len(own) + len(specials), maker.shards)
    source = np.concatenate([own, np.array(specials, own.dtype), *elsewhere])
    cls, sep = len(own), len(own) + 1
    for start in range(0, len(plan.pairs), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        pairs = plan.pairs[rows]
        starts, lengths = np.ones((2, len(pairs), 5), np.int64)
        starts[:, 0], starts[:, 2], starts[:, 4] = cls, sep, sep
        starts[:, 1], lengths[:, 1] = pairs[:, 0], pairs[:, 1] - pairs[:, 0]
        starts[:, 3], lengths[:, 3] = second[rows], pairs[:, 4] - pairs[:, 3]
        yield source[ragged_ranges(starts.reshape(-1), lengths.reshape(-1))], lengths


def _second_segments(
    pairs: npt.NDArray[np.int64], shard: int, base: int, shards: Sequence[TokenShard]
) -> tuple[list[np.ndarray], npt.NDArray[np.int64]]:
    """Fetch the second segments that lie in other shards: (their ids, to be laid from `base` on; where each starts)."""
    starts = pairs[:, 3].copy()
    fetched = []
    for other in np.unique(pairs[:, 2]).tolist():
        if other == shard:
            continue
        rows = np.flatnonzero(pairs[:, 2] == other)
        lengths = pairs[rows, 4] - pairs[rows, 3]
        fetched.append(shards[other].slices(pairs[rows, 3], lengths))
        offsets = offsets_of(lengths)
        starts[rows] = base + offsets[:-1]
        base += int(offsets[-1])
    return fetched, starts


def example_table(
    plan: Plan, shard: int, maker: Maker, config: LengthConfig, masked: bool
) -> tuple[pa.Table, dict[str, int]]:
    """A shard's examples as a table, with how many pieces they hold and, where masks are stored, how many masks."""
    schema = example_schema(len(maker.pieces), masked)
    batches, tokens, hidden, start = [], 0, 0, 0
    for ids, lengths in example_ids(plan, shard, maker):
        offsets = offsets_of(lengths.sum(axis=1))
        rows = slice(start, start + len(lengths))
        columns: list[pa.Array] = []
        if masked:
            draws = KeyedMaskDraws(mixed(plan.keys[rows], _MASKS), len(maker.pieces))
            batch = mask_batch(
                padded(ids, offsets, config.max_seq_length), np.diff(offsets), draws, maker.rules(config)
            )
            ids = batch.input_ids[np.arange(config.max_seq_length) < np.diff(offsets)[:, None]]
            used = np.arange(batch.positions.shape[1]) < batch.counts[:, None]
            places = offsets_of(batch.counts)
            columns = [
                _lists(schema.field("masked_lm_positions"), batch.positions[used], places),
                _lists(schema.field("masked_lm_labels"), batch.labels[used], places),
            ]
            hidden += int(places[-1])
        segment_b = pa.array((lengths[:, 0] + lengths[:, 1] + lengths[:, 2]).astype(np.int32))
        label = pa.array(plan.pairs[rows, 5].astype(np.int8))
        input_ids = _lists(schema.field("input_ids"), ids, offsets)
        batches.append(pa.RecordBatch.from_arrays([input_ids, segment_b, label, *columns], schema=schema))
        tokens += len(ids)
        start += len(lengths)
    sums = {"tokens": tokens, "masked": hidden} if masked else {"tokens": tokens}
    return pa.Table.from_batches(batches, schema=schema), sums


def _lists(field: pa.Field, values: np.ndarray, offsets: npt.NDArray[np.int64]) -> pa.Array:
    flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype(), copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat, type=field.type)


@lru_cache(maxsize=1)
def _maker(tokens: Artifact, vocab: Artifact) -> Maker:
    """A worker's own."""
    return Maker.open(tokens, vocab)


def make_shard(name: str, tokens: Artifact, vocab: Artifact, config: LengthConfig, out: Output) -> None:
    """One token shard -> its examples, train/<name>.parquet and heldout/<name>.parquet, committed."""
    maker = _maker(tokens, vocab)
    shard = [shard.name for shard in maker.shards].index(name)
    counts: dict[str, int] = {"documents": len(maker.shards[shard].documents)}
    files: dict[str, bytes] = {}
    for split, corpus in maker.corpora.items():
        train = split == "train"
        masked = config.masking == "static" or not train
        plan = plan_shard(corpus, shard, config.dupe_factor if train else 1, config)
        counts[split] = len(plan.keys)
        if not len(plan.keys):
            continue
        table, sums = example_table(plan, shard, maker, config, masked)
        files[f"{split}/{name}.parquet"] = parquet_bytes(table, row_group_size=_ROWS)
        sums["random_next"] = int(plan.pairs[:, 5].sum())
        counts |= {f"{split}_{what}": count for what, count in sums.items()}
    out.commit(name, files, counts)


def run(config: LengthConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs`: "tokens" and "vocab". Wants a Ray session. Raises UserError."""
    tokens, vocab = inputs["tokens"], inputs["vocab"]
    names = [shard.name for shard in token_shards(tokens)]
    missing = [name for name in names if out.part(name) is None]
    with out.watch(len(names), "shards"):
        for_each(partial(make_shard, tokens=tokens, vocab=vocab, config=config, out=out), missing, config.workers)
    return out.finish(config.model_dump(mode="json"), {name: artifact.fingerprint for name, artifact in inputs.items()})
