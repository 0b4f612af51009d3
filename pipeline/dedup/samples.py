"""Parts of the stage -> for every reason a few of the documents that were removed for it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from cloze.pipeline.core.artifacts import Part
from cloze.pipeline.core.manifest_facts import DedupFacts, DroppedDocument
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.dedup.document_shards import read_tables
from cloze.pipeline.dedup.duplicate_rules import REASONS, rows_of, shards_of
from cloze.pipeline.dedup.steps import SAMPLES, Steps


def removed_samples(parts: Sequence[Part], steps: Steps) -> DedupFacts:
    """For every reason the first documents that were removed, each with the one that was kept in the end."""
    first: dict[int, list[tuple[int, int]]] = {}
    for part in parts:
        for address, kept, reason in part.facts.get("gone", []):
            if len(samples := first.setdefault(reason, [])) < SAMPLES:
                samples.append((address, kept))
    # The samples of a reason at once: a few, as each may take 20 MB of memory.
    samples = {REASONS[reason]: map_in_threads(partial(_sample, steps), first[reason]) for reason in sorted(first)}
    return DedupFacts(samples=samples)


def _sample(steps: Steps, removed: tuple[int, int]) -> DroppedDocument:
    address, kept = removed
    kept_sample = DroppedDocument(**_read_document(steps, _finally_kept(steps, kept)))
    return DroppedDocument(**_read_document(steps, address), kept=kept_sample)


def _finally_kept(steps: Steps, address: int) -> int:
    """Follow a document that was kept first, and removed by a later step, to the one that was kept instead."""
    removed = steps.removed_documents(shards_of(address))
    while len(found := removed[removed["address"] == address]):
        address = int(found["kept"][0])
        removed = steps.removed_documents(shards_of(address))
    return address


def _read_document(steps: Steps, address: int) -> dict[str, Any]:
    row = int(rows_of(address))
    for table in read_tables(steps.shards[shards_of(address)], ["doc_id", "title", "source", "text"]):
        if row < len(table):
            shown = table.slice(row, 1).to_pylist()[0]
            return {**shown, "text": shown["text"][:300]}
        row -= len(table)
    raise AssertionError(f"no document at {address}")
