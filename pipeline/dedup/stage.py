"""documents -> documents without duplicates (Beam).

Beam distributes the items of each step (steps.py); only their numbers travel through it. All rules
(duplicate_rules.py) order by what the documents contain, never by where they are stored: of a doc_id, the newest
revision is kept (then the longest); of equal contents and of near duplicates, the longest (then the newest revision);
ties are broken by the digest of doc_id and at last by a digest of everything else, including the record's place in its
source's file.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from cloze.pipeline.core import cpu_time
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.beam import pipeline, run_item
from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.core.manifest_facts import DedupFacts
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import minhash, steps
from cloze.pipeline.dedup.progress import reporting_items
from cloze.pipeline.dedup.samples import removed_samples
from cloze.pipeline.dedup.steps import Item, Steps

VERSION = 3

_BYTES_PER_CPU_SECOND = 5e6  # of Parquet

_SAMPLES_PART = "samples"


class DedupConfig(Config):
    """When documents count as near duplicates, and where the stage runs."""

    near_threshold: float = Field(default=0.8, ge=0, le=1)
    """Documents that share at least this fraction of their shingles are near duplicates: 0.7 to 1, or 0 to keep all."""
    beam: Annotated[list[str] | None, Compute] = None
    """Apache Beam's pipeline options, each as --name=value. Unset: all CPUs of the Ray cluster, or of this machine if
    the input is large enough to gain."""

    @field_validator("near_threshold")
    @classmethod
    def _bands_find_pairs(cls, threshold: float) -> float:
        if 0 < threshold < 0.7:
            raise ValueError("the bands find too few pairs below 0.7; give 0.7 to 1, or 0 to keep near duplicates")
        return threshold


def run(config: DedupConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs["documents"]` is the artifact of the stage extract."""
    documents = inputs["documents"]
    shards = documents.files("documents/")
    shard_parts = [f"{number:05}" for number in range(len(shards))]
    names = [*shard_parts, _SAMPLES_PART]
    # Also if nothing is left to do: a run that was killed at its end left its scratch.
    with scratch_folder(out) as folder:
        finished = out.finished_parts(names)
        if len(finished) < len(names):
            size = sum(file.bytes for name, file in documents.manifest.files.items() if name.startswith("documents/"))
            work = _steps(documents, out, folder, config)
            _run_steps(work, config.beam, size / _BYTES_PER_CPU_SECOND)
            finished = {part.name: part for part in out.require_parts(shard_parts)}
            facts = removed_samples(list(finished.values()), work).plain
            finished[_SAMPLES_PART] = out.commit(_SAMPLES_PART, {}, facts=facts)
    facts = DedupFacts(**finished[_SAMPLES_PART].facts)
    inputs_used = {"documents": documents.fingerprint}
    return out.finish(list(finished.values()), config.model_dump(mode="json"), inputs_used, facts=facts)


def _steps(documents: Artifact, out: Output, scratch: Location, config: DedupConfig) -> Steps:
    count = documents.manifest.counts.get("documents", 0)
    return Steps(
        documents.files("documents/"),
        out,
        scratch,
        config.near_threshold,
        num_documents=count,
        num_buckets=1 + count // steps.BUCKET_RECORDS,
        num_band_buckets=1 + count * minhash.NUM_BANDS // steps.BUCKET_RECORDS,
        block_documents=steps.BLOCK_DOCUMENTS,
    )


def _run_steps(work: Steps, beam_options: list[str] | None, cpu_seconds: float) -> None:
    """Run every item of every step, each step after the previous one is finished."""
    counts = work.item_counts()
    with (
        reporting_items(work, counts),
        pipeline(beam_options, max(counts.values()), cpu_seconds) as running,
    ):
        import apache_beam as beam

        done: Any = running | "Start" >> beam.Create([0])
        for step, count in counts.items():
            items = [Item(step, number) for number in range(count)]
            done = (
                done
                | f"Wait before {step}" >> beam.GroupBy(lambda _: 0)
                | f"Items of {step}" >> beam.FlatMap(lambda _, items: items, items).with_output_types(Any)
                | f"Spread {step}" >> beam.Reshuffle()
                | step.capitalize() >> beam.Map(run_item, work.run_item, cpu_time.PROCESS)
            )
