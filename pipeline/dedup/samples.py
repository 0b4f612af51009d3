"""Parts of the stage -> for every reason a few of the documents that were removed for it."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from cloze.pipeline.core.artifacts import Part
from cloze.pipeline.core.manifest_facts import DedupFacts, DroppedDocument
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.dedup.document_shards import read_tables
from cloze.pipeline.dedup.duplicate_rules import REASONS, rows_of, shards_of
from cloze.pipeline.dedup.steps import SAMPLES, Steps

_SHARDS_AT_ONCE = 4  # each may take 20 MB of memory


def removed_samples(parts: Sequence[Part], steps: Steps) -> DedupFacts:
    """For every reason the first documents that were removed, each with the one that was kept in the end."""
    samples: dict[int, list[tuple[int, int]]] = {}
    for part in parts:
        for address, kept, reason in part.facts.get("gone", []):
            if len(some := samples.setdefault(reason, [])) < SAMPLES:
                some.append((address, kept))
    first_kept = [kept for reason in samples for _, kept in samples[reason]]
    finally_kept = dict(zip(first_kept, _finally_kept(steps, first_kept), strict=True))
    removed = [address for reason in samples for address, _ in samples[reason]]
    documents = _read_documents(steps, [*removed, *finally_kept.values()])

    def dropped(address: int, kept: int) -> DroppedDocument:
        kept_sample = DroppedDocument(**documents[finally_kept[kept]])
        return DroppedDocument(**documents[address], kept=kept_sample)

    return DedupFacts(
        samples={REASONS[reason]: [dropped(*pair) for pair in samples[reason]] for reason in sorted(samples)}
    )


def _finally_kept(steps: Steps, addresses: Sequence[int]) -> list[int]:
    """Follow documents that were kept first, and removed by a later step, to those that were kept instead."""
    removed_documents = lru_cache(steps.removed_documents)

    def follow(address: int) -> int:
        removed = removed_documents(shards_of(address))
        while len(found := removed[removed["address"] == address]):
            address = int(found["kept"][0])
            removed = removed_documents(shards_of(address))
        return address

    return map_in_threads(follow, addresses)


def _read_documents(steps: Steps, addresses: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Returns what is shown of each document. Each shard is read once."""
    by_shard: dict[int, list[int]] = {}
    for address in sorted(set(addresses)):
        by_shard.setdefault(shards_of(address), []).append(address)

    def read(shard: int) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for table in read_tables(steps.shards[shard], ["doc_id", "title", "source", "text"]):
            for address in by_shard[shard]:
                if 0 <= (row := int(rows_of(address)) - start) < len(table):
                    shown = table.slice(row, 1).to_pylist()[0]
                    found[address] = {**shown, "text": shown["text"][:300]}
            if len(found) == len(by_shard[shard]):
                break
            start += len(table)
        return found

    documents: dict[int, dict[str, Any]] = {}
    shards = list(by_shard)
    for start in range(0, len(shards), _SHARDS_AT_ONCE):
        for found in map_in_threads(read, shards[start : start + _SHARDS_AT_ONCE]):
            documents |= found
    return documents
