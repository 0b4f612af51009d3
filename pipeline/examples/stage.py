"""token shards + vocab -> example shards of one sequence length, with stored masks or with masks drawn in training.

A token shard's examples need no other shard: a random second segment comes from another of its documents.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.manifest_facts import ExamplesFacts
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import example_schema, number_parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.example_assembly import ROW_GROUP, example_batches
from cloze.pipeline.examples.example_planning import plan_shard
from cloze.pipeline.text.token_shards import read_token_shard, token_shard_names
from cloze.pipeline.text.tokenizer import load_tokenizer, pieces_of

VERSION = 3
_LABEL_COUNTS = {"mlm+nsp": "random_next", "mlm+sop": "swapped"}  # objective -> the name of the count of label 1


@lru_cache(maxsize=1)
def _cached_pieces(vocab: Location) -> list[str]:
    """The vocabulary, read once by each worker process."""
    return pieces_of(load_tokenizer(vocab / "tokenizer.json"))


def write_examples(name: str, tokens: Location, vocab: Location, config: LengthConfig, out: Output) -> None:
    """A token shard, such as train-00000 -> its examples, in train/00000.parquet, committed."""
    split, _, number = name.partition("-")
    shard, pieces = read_token_shard(tokens, name), _cached_pieces(vocab)
    train, num_documents = split == "train", len(shard.documents)
    passes = shard.passes(config.dupe_factor, config.passes) if train else np.ones(num_documents, np.int64)
    plan = plan_shard(shard, passes, config)
    counts = Counter({"documents": num_documents, "train": 0, "heldout": 0, split: len(plan.keys)})
    files: dict[str, bytes] = {}
    rows: dict[str, int] = {}
    if len(plan.keys):
        masked = config.masking == "static" or not train
        batches = _counted(example_batches(plan, shard.ids, pieces, config, masked), split, counts)
        path = f"{split}/{number}.parquet"
        files[path] = number_parquet_bytes(batches, example_schema(len(pieces), masked), ROW_GROUP)
        rows[path] = len(plan.keys)
        if label_count := _LABEL_COUNTS.get(config.objective):
            counts[f"{split}_{label_count}"] = int(plan.labels.sum())
    out.commit(name, files, counts, facts={"rows": rows})


def _counted(batches: Iterable[pa.RecordBatch], split: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The same batches. Adds their tokens and, if masks are stored, masked tokens to `counts`."""
    for batch in batches:
        counts[f"{split}_tokens"] += len(batch["input_ids"].values)
        if "masked_lm_labels" in batch.schema.names:
            counts[f"{split}_masked"] += len(batch["masked_lm_labels"].values)
        yield batch


def run(config: LengthConfig, inputs: Mapping[str, Artifact], out: Output) -> Manifest:
    """`inputs`: the artifacts "tokens" and "vocab". Needs a Ray session. Raises UserError.

    The manifest's facts hold the number of rows of each file and of a row group, so that readers open no file for them.
    """
    tokens, vocab = inputs["tokens"], inputs["vocab"]
    names = token_shard_names(tokens)
    finished = out.finished_parts(names)
    missing = [name for name in names if name not in finished]
    work = partial(write_examples, tokens=tokens.location, vocab=vocab.location, config=config, out=out)
    with out.reporting_parts(len(names), "shards"):
        for_each(work, missing, config.workers)
    parts = out.require_parts(names)
    rows = {path: count for part in parts for path, count in part.facts["rows"].items()}
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    facts = ExamplesFacts(rows=rows, row_group_size=ROW_GROUP)
    return out.finish(parts, config.model_dump(mode="json"), fingerprints, facts=facts)
