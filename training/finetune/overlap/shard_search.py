"""Shards of documents -> the texts that share a 13-gram with them. Workers import this: it needs no torch."""

from collections.abc import Iterator, Mapping
from functools import partial

from cloze.pipeline.core.artifacts import Artifact, Part
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import parquet_file
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.overlap.ngrams import NgramIndex

_COLUMNS = ["doc_id", "title", "text", "split"]
_SMALL = 8 << 20  # bytes of shards, which one core searches within a second: a worker takes longer to start


def search(documents: Mapping[str, Artifact], index: NgramIndex, out: Output, workers: int) -> list[Part]:
    """Search the training documents of these outputs of dedup, on up to `workers` workers if they are large.

    Returns a part for each shard, in order. Requires a Ray session.
    """
    shards, size = dict[str, Location](), 0
    for fingerprint, artifact in documents.items():
        for file in artifact.files("documents/"):
            shards[f"{fingerprint}-{file.name.removesuffix('.parquet')}"] = file
            size += artifact.manifest.files[f"documents/{file.name}"].bytes
    search_one = partial(search_shard, shards=shards, index=index, out=out)
    with out.reporting_parts(len(shards), "shards"):
        finished = out.finished_parts(list(shards))
        missing = [name for name in shards if name not in finished]
        if size <= _SMALL:
            for name in missing:
                search_one(name)
        else:
            for_each(search_one, missing, workers)
    return out.require_parts(list(shards))


def search_shard(name: str, shards: Mapping[str, Location], index: NgramIndex, out: Output) -> None:
    """A shard of documents -> the part with the texts that share a 13-gram with its training documents, committed."""
    titles = list[tuple[str, str]]()  # document id and title

    def texts() -> Iterator[str]:
        with parquet_file(shards[name]) as file:
            for group in range(file.num_row_groups):
                for row in file.read_row_group(group, _COLUMNS).to_pylist():
                    if row["split"] == "train":  # held-out documents are not in the training examples
                        titles.append((row["doc_id"], row["title"]))
                        yield row["text"]

    matches = index.first_matches(texts())
    shared = [[text, match.ngram, *titles[match.document]] for text, match in sorted(matches.items())]
    out.commit(name, {}, {"documents": len(titles)}, facts={"shared": shared})
