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

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.core.facts import ExamplesFacts
from cloze.pipeline.core.keyed_random import KeyedDraws, hash64
from cloze.pipeline.core.ragged import offsets_of, pad_rows, ragged_ranges
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import IGNORE_INDEX, example_schema, parquet_bytes
from cloze.pipeline.examples.pairs import Pair, Segment, full_sentences, make_pairs
from cloze.pipeline.text.masking import KeyedMaskDraws, MaskRules, MaskUnit, mask_batch, mask_rules
from cloze.pipeline.text.token_shards import TokenizedCorpus, TokenShard, token_shards
from cloze.pipeline.text.tokenizer import CLS, SEP, load_tokenizer, pieces_of

VERSION = 2
ROW_GROUP = 1024  # examples: what a reader fetches at a time
_ROWS_AT_ONCE = 16 * ROW_GROUP
_RUN = 32  # documents that are packed one behind the other when examples are full sentences
_PAIRS, _ORDER, _MASKS = 1, 2, 3  # what a random draw is for
_LABELLED = {"mlm+nsp": "random_next", "mlm+sop": "swapped"}  # what label 1 says, by objective


class ExamplesConfig(Config):
    """What the examples of every length have in common."""

    #: What is to be learnt beside the masks: whether the second segment follows, nothing, or the order of the two.
    objective: Literal["mlm+nsp", "mlm", "mlm+sop"] = "mlm+nsp"
    dupe_factor: int = Field(default=5, gt=0)  # passes over the documents, each with other pairs and stored masks
    #: Of the documents of a source, by its name, in place of dupe_factor.
    passes: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    short_seq_prob: float = Field(default=0.1, ge=0, le=1)  # of pairs; objective mlm has none
    masked_lm_prob: float = Field(default=0.15, gt=0, lt=1)
    masking: Literal["dynamic", "static"] = "dynamic"  # drawn when a batch is made, or stored; held-out: always stored
    mask_unit: MaskUnit = "token"
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
    corpora: dict[str, TokenizedCorpus]  # split -> its documents

    @classmethod
    def open(cls, tokens: Artifact, vocab: Artifact) -> "Maker":
        shards = token_shards(tokens)
        corpora = {split: TokenizedCorpus(shards, split == "heldout") for split in ("train", "heldout")}
        return cls(pieces_of(load_tokenizer(vocab.location / "tokenizer.json")), shards, corpora)

    def rules(self, config: LengthConfig) -> MaskRules:
        return mask_rules(self.pieces, config.masked_lm_prob, config.max_predictions_per_seq, config.mask_unit)


class Plan(NamedTuple):
    """n examples before their ids are looked up: example i is the segments first[i] to first[i + 1]."""

    segments: npt.NDArray[np.int64]  # [m, 3], as in Segment
    first: npt.NDArray[np.int64]  # [n + 1]
    labels: npt.NDArray[np.int8]  # [n]
    keys: npt.NDArray[np.uint64]  # [n], for their randomness

    def take(self, rows: npt.NDArray[np.int64]) -> "Plan":
        counts = np.diff(self.first)[rows]
        segments = self.segments[ragged_ranges(self.first[rows], counts)]
        return Plan(segments, offsets_of(counts), self.labels[rows], self.keys[rows])


def plan_shard(corpus: TokenizedCorpus, shard: int, passes: npt.NDArray[np.int64], config: LengthConfig) -> Plan:
    """A shard's examples, in an order that only their own keys decide. `passes`: of every document of the corpus.

    What becomes of a document depends on (seed, its doc_id, pass) and on the documents of its split.
    """
    plan = (_plan_full_sentences if config.objective == "mlm" else _plan_pairs)(corpus, shard, passes, config)
    return plan.take(np.argsort(hash64(plan.keys, _ORDER), kind="stable"))


def _plan_pairs(corpus: TokenizedCorpus, shard: int, passes: npt.NDArray[np.int64], config: LengthConfig) -> Plan:
    own = corpus.of_shard(shard)
    indices, numbers = np.repeat(own, passes[own]), ragged_ranges(np.zeros(len(own)), passes[own])
    keys = hash64(config.seed, config.max_seq_length, _PAIRS, corpus.keys[indices], numbers)
    max_tokens, swap = config.max_seq_length - len([CLS, SEP, SEP]), config.objective == "mlm+sop"
    found = [np.empty((0, len(Pair._fields)), np.int64)]
    for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
        pairs = make_pairs(corpus, index, max_tokens, config.short_seq_prob, KeyedDraws(key), swap)
        found.append(np.fromiter(chain.from_iterable(pairs), np.int64).reshape(-1, len(Pair._fields)))
    pairs = np.concatenate(found)
    segments = np.empty((len(pairs), 2, len(Segment._fields)), np.int64)
    segments[:, 0, 0], segments[:, 0, 1:], segments[:, 1] = shard, pairs[:, :2], pairs[:, 2:5]
    return Plan(
        segments.reshape(-1, len(Segment._fields)),
        2 * np.arange(len(pairs) + 1),
        pairs[:, 5].astype(np.int8),
        _example_keys(keys, list(map(len, found[1:]))),
    )


def _plan_full_sentences(
    corpus: TokenizedCorpus, shard: int, passes: npt.NDArray[np.int64], config: LengthConfig
) -> Plan:
    """Documents are packed in runs of 32, in the order of their keys; a run is its first document's shard's.

    Passes over the same documents have the same packs: what differs are their masks, where these are stored.
    """
    found: list[list[Segment]] = []
    keys, counts = list[npt.NDArray[np.uint64]](), list[int]()
    for number in range(int(passes.max(initial=0))):
        indices = np.flatnonzero(passes > number)
        starts = np.arange(0, len(indices), _RUN)
        for start in starts[corpus.shards_of(indices[starts]) == shard].tolist():
            run_of = indices[start : start + _RUN].tolist()
            packs = list(full_sentences(corpus, run_of, config.max_seq_length - len([CLS])))
            found += packs
            keys.append(hash64(config.seed, config.max_seq_length, _PAIRS, corpus.keys[run_of[0]], number))
            counts.append(len(packs))
    return Plan(
        np.array(list(chain.from_iterable(found)), np.int64).reshape(-1, len(Segment._fields)),
        offsets_of(list(map(len, found))),
        np.full(len(found), IGNORE_INDEX, np.int8),
        _example_keys(np.concatenate([np.empty(0, np.uint64), *keys]), counts),
    )


def _example_keys(keys: npt.NDArray[np.uint64], counts: Sequence[int]) -> npt.NDArray[np.uint64]:
    """Of so many examples each that were made with one key."""
    return hash64(np.repeat(keys, counts), ragged_ranges(np.zeros(len(counts)), counts))


class Laid(NamedTuple):
    """Some examples with their ids: example i is ids[offsets[i]:offsets[i + 1]]."""

    plan: Plan
    ids: np.ndarray
    offsets: npt.NDArray[np.int64]  # [n + 1]
    segment_b: npt.NDArray[np.int64]  # [n]: where the second segment begins; the length where there is none


def laid_out(plan: Plan, shard: int, maker: Maker, pairs: bool) -> Iterator[Laid]:
    """A shard's examples, some thousands at a time, as [CLS] segment [SEP] segment [SEP] ..."""
    own = maker.shards[shard].ids()
    specials = np.array([maker.pieces.index(CLS), maker.pieces.index(SEP)], own.dtype)
    for begin in range(0, len(plan.keys), _ROWS_AT_ONCE):
        some = plan.take(np.arange(begin, min(begin + _ROWS_AT_ONCE, len(plan.keys))))
        elsewhere, starts = _gathered(some.segments, shard, len(own) + len(specials), maker.shards)
        source = np.concatenate([own, specials, *elsewhere])
        lengths = some.segments[:, 2] - some.segments[:, 1]
        examples = np.repeat(np.arange(len(some.keys)), np.diff(some.first))
        places = 1 + examples + 2 * np.arange(len(some.segments))  # a [CLS] for each example, a [SEP] for each segment
        part_starts = np.full(len(some.keys) + 2 * len(some.segments), len(own) + 1)
        part_lengths = np.ones_like(part_starts)
        part_starts[some.first[:-1] * 2 + np.arange(len(some.keys))] = len(own)
        part_starts[places], part_lengths[places] = starts, lengths
        ids = source[ragged_ranges(part_starts, part_lengths)]
        offsets = offsets_of(lengths + 1)[some.first] + np.arange(len(some.keys) + 1)
        segment_b = lengths[some.first[:-1]] + 2 if pairs else np.diff(offsets)
        yield Laid(some, ids, offsets, segment_b)


def _gathered(
    segments: npt.NDArray[np.int64], shard: int, base: int, shards: Sequence[TokenShard]
) -> tuple[list[np.ndarray], npt.NDArray[np.int64]]:
    """Fetch the segments that lie in other shards: (their ids, to be laid from `base` on; where each one starts)."""
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
    plan: Plan, shard: int, maker: Maker, config: LengthConfig, masked: bool
) -> tuple[pa.Table, dict[str, int]]:
    """A shard's examples as a table, with how many pieces they hold and, where masks are stored, how many masks."""
    schema = example_schema(len(maker.pieces), masked)
    batches, tokens, hidden = [], 0, 0
    for laid in laid_out(plan, shard, maker, pairs=config.objective != "mlm"):
        ids, offsets = laid.ids, laid.offsets
        columns: list[pa.Array] = []
        if masked:
            draws = KeyedMaskDraws(hash64(laid.plan.keys, _MASKS), len(maker.pieces))
            batch = mask_batch(
                pad_rows(ids, offsets, config.max_seq_length), np.diff(offsets), draws, maker.rules(config)
            )
            ids = batch.input_ids[np.arange(config.max_seq_length) < np.diff(offsets)[:, None]]
            used = np.arange(batch.positions.shape[1]) < batch.counts[:, None]
            places = offsets_of(batch.counts)
            columns = [
                _lists(schema.field("masked_lm_positions"), batch.positions[used], places),
                _lists(schema.field("masked_lm_labels"), batch.labels[used], places),
            ]
            hidden += int(places[-1])
        segment_b = pa.array(laid.segment_b.astype(np.int32))
        input_ids = _lists(schema.field("input_ids"), ids, offsets)
        columns = [input_ids, segment_b, pa.array(laid.plan.labels), *columns]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        tokens += len(ids)
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
    rows: dict[str, int] = {}
    for split, corpus in maker.corpora.items():
        train = split == "train"
        passes = corpus.passes(config.dupe_factor, config.passes) if train else np.ones(len(corpus), np.int64)
        plan = plan_shard(corpus, shard, passes, config)
        counts[split] = len(plan.keys)
        if not len(plan.keys):
            continue
        table, sums = example_table(plan, shard, maker, config, masked=config.masking == "static" or not train)
        path = f"{split}/{name}.parquet"
        files[path], rows[path] = parquet_bytes(table, ROW_GROUP, numbers=True), len(table)
        if labelled := _LABELLED.get(config.objective):
            sums[labelled] = int(plan.labels.sum())
        counts |= {f"{split}_{what}": count for what, count in sums.items()}
    out.commit(name, files, counts, facts={"rows": rows})


def run(config: LengthConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs`: "tokens" and "vocab". Wants a Ray session. Raises UserError.

    The manifest's facts say how many rows each file holds, in row groups of how many: a reader need not ask the files.
    """
    tokens, vocab = inputs["tokens"], inputs["vocab"]
    names = [shard.name for shard in token_shards(tokens)]
    finished = out.finished_parts(names)
    missing = [name for name in names if name not in finished]
    with out.reporting_parts(len(names), "shards"):
        for_each(partial(make_shard, tokens=tokens, vocab=vocab, config=config, out=out), missing, config.workers)
    parts = out.require_parts(names)
    rows = {path: count for part in parts for path, count in part.facts["rows"].items()}
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    facts = ExamplesFacts(rows=rows, row_group_size=ROW_GROUP)
    return out.finish(parts, config.model_dump(mode="json"), fingerprints, facts=facts)
