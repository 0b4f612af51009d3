"""documents + vocab -> token shards (Ray Data): each document is split into sentences and tokenized once.

A document's key, a hash of its id, decides its token shard and its place there. So a shard holds documents of all
sources, and is the same however the documents are divided into files.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.tokens.steps import ShardCounts, Steps, cached_splitter, document_groups

VERSION = 3
WORDS_PER_SHARD = 5 << 20  # some 32 million characters of English


class TokensConfig(Config):
    """How text is split into sentences. The vocabulary determines the tokens."""

    splitter: Annotated[str | None, InputPath()] = None
    """A Python file that defines split_sentences(paragraph) -> list[str], to use instead of the built-in rules."""
    workers: Annotated[int | None, Compute] = Field(default=None, gt=0)
    """The number of parallel workers. Unset: one for each CPU of this machine or of the Ray cluster."""


def check(config: TokensConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError for a splitter that cannot be used."""
    cached_splitter(sources.get("splitter"))


def run(
    config: TokensConfig, inputs: Mapping[str, Any], out: Output, words_per_shard: int = WORDS_PER_SHARD
) -> Manifest:
    """`inputs`: the artifacts "documents" (of dedup) and "vocab", and a SourceFile "splitter" if one is set.

    Needs a Ray session. Raises UserError.
    """
    documents, splitter = inputs["documents"], inputs.get("splitter")
    groups, shard_counts = document_groups(documents), ShardCounts.of(documents.manifest.counts, words_per_shard)
    names = shard_counts.names if groups else []
    # Also if nothing is left to do: a run that was killed at its end left its scratch.
    with scratch_folder(out) as scratch:
        finished = out.finished_parts(names)
        if missing := [name for name in names if name not in finished]:
            steps = Steps(groups, shard_counts, inputs["vocab"].location, splitter, scratch, out)
            count = len(groups) + len(names)
            with out.reporting_progress(steps.finished_items, count, "items", listed=count):
                for_each(steps.tokenize_group, steps.unfinished_groups(), config.workers)
                for_each(steps.write_shard, missing, config.workers)
    fingerprints = {
        name: source.sha256 if source is splitter else source.fingerprint for name, source in inputs.items()
    }
    return out.finish(out.require_parts(names), config.model_dump(mode="json"), fingerprints)
