"""token shards + vocab -> example shards of one sequence length, with stored masks or with masks drawn in training."""

from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.manifest_facts import ExamplesFacts
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.example_assembly import ROW_GROUP, ExampleInputs, example_table
from cloze.pipeline.examples.example_planning import plan_shard
from cloze.pipeline.text.token_shards import token_shards

VERSION = 2
_LABEL_COUNTS = {"mlm+nsp": "random_next", "mlm+sop": "swapped"}  # objective -> the name of the count of label 1


@lru_cache(maxsize=1)
def _cached_inputs(tokens: Artifact, vocab: Artifact) -> ExampleInputs:
    """One for each worker process."""
    return ExampleInputs.open(tokens, vocab)


def write_examples(name: str, tokens: Artifact, vocab: Artifact, config: LengthConfig, out: Output) -> None:
    """A token shard -> its examples, train/<name>.parquet and heldout/<name>.parquet, committed."""
    inputs = _cached_inputs(tokens, vocab)
    shard = [shard.name for shard in inputs.shards].index(name)
    counts: dict[str, int] = {"documents": len(inputs.shards[shard].documents)}
    files: dict[str, bytes] = {}
    rows: dict[str, int] = {}
    for split, corpus in inputs.corpora.items():
        train = split == "train"
        passes = corpus.passes(config.dupe_factor, config.passes) if train else np.ones(len(corpus), np.int64)
        plan = plan_shard(corpus, shard, passes, config)
        counts[split] = len(plan.keys)
        if not len(plan.keys):
            continue
        masked = config.masking == "static" or not train
        table, split_counts = example_table(plan, shard, inputs, config, masked)
        path = f"{split}/{name}.parquet"
        files[path], rows[path] = parquet_bytes(table, ROW_GROUP, numbers=True), len(table)
        if label_count := _LABEL_COUNTS.get(config.objective):
            split_counts[label_count] = int(plan.labels.sum())
        counts |= {f"{split}_{key}": count for key, count in split_counts.items()}
    out.commit(name, files, counts, facts={"rows": rows})


def run(config: LengthConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs`: the artifacts "tokens" and "vocab". Needs a Ray session. Raises UserError.

    The manifest's facts hold the number of rows of each file and of a row group, so that readers open no file for them.
    """
    tokens, vocab = inputs["tokens"], inputs["vocab"]
    names = [shard.name for shard in token_shards(tokens)]
    finished = out.finished_parts(names)
    missing = [name for name in names if name not in finished]
    with out.reporting_parts(len(names), "shards"):
        for_each(partial(write_examples, tokens=tokens, vocab=vocab, config=config, out=out), missing, config.workers)
    parts = out.require_parts(names)
    rows = {path: count for part in parts for path, count in part.facts["rows"].items()}
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    facts = ExamplesFacts(rows=rows, row_group_size=ROW_GROUP)
    return out.finish(parts, config.model_dump(mode="json"), fingerprints, facts=facts)
