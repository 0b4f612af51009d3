"""documents + vocab -> token shards: each document is split into sentences and tokenized once, for all examples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from cloze.pipeline.core.artifacts import Manifest, Output
from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import read_table, text_key
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.sentences import Splitter, document_sentences, load_splitter, split_sentences
from cloze.pipeline.text.token_shards import DOCUMENT_RUN, shard_files
from cloze.pipeline.text.tokenizer import UNK, BulkTokenizer, load_tokenizer

VERSION = 2
_BATCH_CHARACTERS = 1 << 20
_COLUMNS = ["doc_id", "source", "text", "split"]


class TokensConfig(Config):
    """How text is split into sentences. The vocabulary determines the tokens."""

    splitter: Annotated[str | None, InputPath()] = None
    """A Python file that defines split_sentences(paragraph) -> list[str], to use instead of the built-in rules."""
    workers: Annotated[int | None, Compute] = Field(default=None, gt=0)
    """The number of parallel workers. Unset: one for each CPU of this machine or of the Ray cluster."""


class TokenizedDocuments(NamedTuple):
    """The documents of a shard as token ids."""

    ids: np.ndarray
    sentences: npt.NDArray[np.uint32]  # [sentences + 1]: offsets in ids
    documents: npt.NDArray[np.uint32]  # [documents + 1]: offsets in sentences


def tokenize(texts: Sequence[str], tokenizer: BulkTokenizer, split: Splitter = split_sentences) -> TokenizedDocuments:
    """Documents' texts -> token ids. Sentences without tokens are left out."""
    ids, lengths, counts = [], [], []
    for batch in _batches(texts):
        documents = [document_sentences(text, split) for text in batch]
        batch_ids, offsets = tokenizer.encode([sentence for document in documents for sentence in document])
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        batch_lengths = np.diff(offsets)
        counts.append(np.bincount(owners[batch_lengths > 0], minlength=len(documents)))
        ids.append(batch_ids)
        lengths.append(batch_lengths[batch_lengths > 0])
    all_ids = np.concatenate(ids) if ids else tokenizer.encode([])[0]
    offsets = (offsets_of(np.concatenate([[], *some])).astype(np.uint32) for some in (lengths, counts))
    return TokenizedDocuments(all_ids, *offsets)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield texts[start : index + 1]
            start, size = index + 1, 0
    if start < len(texts):
        yield texts[start:]


@lru_cache(maxsize=1)
def _tokenizer(location: Location) -> BulkTokenizer:
    """One for each worker process, whose cache of words is used for all its shards."""
    return BulkTokenizer(load_tokenizer(location))


@lru_cache(maxsize=1)
def _splitter(file: SourceFile | None) -> Splitter:
    return load_splitter(file.location.read_bytes(), file.uri) if file else split_sentences


def tokenize_shard(
    name: str, documents: Mapping[str, Location], vocab: Location, splitter: SourceFile | None, out: Output
) -> None:
    """A shard of documents -> a token shard, committed."""
    tokenizer = _tokenizer(vocab / "tokenizer.json")
    table = read_table(documents[name], _COLUMNS)
    tokenized = tokenize(table["text"].to_pylist(), tokenizer, _splitter(splitter))
    runs = np.zeros(len(table), DOCUMENT_RUN)
    runs["key"] = [text_key(doc_id) for doc_id in table["doc_id"].to_pylist()]
    sources = table["source"].to_pylist()
    keys = {source: text_key(source) for source in set(sources)}
    runs["source"] = [keys[source] for source in sources]
    runs["first"], runs["last"] = tokenized.documents[:-1], tokenized.documents[1:]
    runs["heldout"] = [split == "heldout" for split in table["split"].to_pylist()]
    kept = runs[runs["last"] > runs["first"]]
    counts = {
        "documents": len(kept),
        "heldout": int(kept["heldout"].sum()),
        "sentences": len(tokenized.sentences) - 1,
        "tokens": len(tokenized.ids),
        "unknown": int((tokenized.ids == tokenizer.id_of(UNK)).sum()),
    }
    drops = {"without pieces": len(runs) - len(kept)} if len(kept) < len(runs) else {}
    files = shard_files(name, tokenized.ids, tokenized.sentences, kept) if len(kept) else {}
    out.commit(name, files, counts, drops)


def check(config: TokensConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError for a splitter that cannot be used."""
    _splitter(sources.get("splitter"))


def run(config: TokensConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """`inputs`: the artifacts "documents" (of dedup) and "vocab", and a SourceFile "splitter" if one is set.

    Needs a Ray session. Raises UserError.
    """
    splitter = inputs.get("splitter")
    shards = {file.name.removesuffix(".parquet"): file for file in inputs["documents"].files("documents/")}
    finished = out.finished_parts(list(shards))
    missing = [name for name in shards if name not in finished]
    with out.reporting_parts(len(shards), "shards"):
        vocab = inputs["vocab"].location
        work = partial(tokenize_shard, documents=shards, vocab=vocab, splitter=splitter, out=out)
        for_each(work, missing, config.workers)
    fingerprints = {
        name: source.sha256 if source is splitter else source.fingerprint for name, source in inputs.items()
    }
    return out.finish(out.require_parts(list(shards)), config.model_dump(mode="json"), fingerprints)
