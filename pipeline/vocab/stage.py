"""documents -> vocab.txt, tokenizer.json and tokenizer_config.json, which transformers reads.

Words here are those that BERT's tokenizer splits into pieces, with each punctuation mark as a word, not those of
words.py. Ray Data counts the words of groups of shards; the driver adds the counts bucket by bucket and trains the
vocabulary. A vocabulary that is given as a file is only measured on these words.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import pyarrow as pa
from tokenizers import Tokenizer

from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.bucket_files import read_bucket, shard_groups, write_buckets
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.manifest_facts import ComparedVocab
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import (
    LAYOUTS,
    RESERVED,
    SPECIAL_TOKENS,
    WordSplitter,
    build_tokenizer,
    split_chunks,
    tokenizer_config_json,
)
from cloze.pipeline.vocab.alphabet import alphabet, count_characters
from cloze.pipeline.vocab.config import VocabConfig
from cloze.pipeline.vocab.quality import measure_quality, vocab_facts
from cloze.pipeline.vocab.word_counts import (
    WordCounts,
    add_counts,
    add_words_files,
    counts_table,
    short_words,
    split_by_hash,
    words_file,
)
from cloze.pipeline.vocab.wordpiece_trainer import train_pieces

VERSION = 3
# One of this many places is for a character of the alphabet, however rare it is, so that a language with a small
# alphabet loses no character. BERT's own vocabulary has 997 characters in 30,522 places.
_PLACES_PER_CHARACTER = 30
_GROUPS_PER_BUCKET = 8  # 250 shards of 32 million characters of English: 6 million rows

Counts = Counter[str]


def count_words(texts: Iterable[str], tokenizer: Tokenizer) -> Counts:
    """Texts -> how often each normalized word occurs in them. Each distinct chunk is normalized once."""
    chunks: Counts = Counter()
    for text in texts:
        chunks.update(split_chunks(text))
    words: Counts = Counter()
    for chunk_words, count in zip(WordSplitter(tokenizer)(chunks), chunks.values(), strict=False):  # [""] for no chunks
        for word in chunk_words:
            words[word] += count
    return words


def train_vocabulary(words: Sequence[WordCounts], config: VocabConfig) -> list[str]:
    """Counted words -> the vocabulary in file order: special tokens, alphabet, merged pieces in the order of training.

    Places that are still empty go to the characters outside the alphabet, the most frequent first, and then to pieces
    from the words with these characters. Raises UserError if there are no words, or `size` is too small for the
    alphabet.
    """
    reserved = LAYOUTS[config.layout]
    room = config.size - len(reserved)
    counts = count_characters(short_words(words))
    characters, rare = alphabet(counts, config.character_coverage, room // _PLACES_PER_CHARACTER)
    if not characters:
        raise UserError("vocab: the documents hold no text to train on; lower extract.heldout_fraction or add sources")
    first = [*reserved, *characters]
    if len(first) > config.size:
        raise UserError(
            f"vocab.size: {config.size} has no room for {len(reserved)} special tokens (vocab.layout: {config.layout}) "
            f"and the alphabet's {len(characters)} pieces; set it to {len(first)} at least, or lower "
            f"vocab.character_coverage (now {config.character_coverage:g})"
        )
    pieces = first + train_pieces(short_words(words), first, config.size - len(first), config.min_frequency)
    pieces += rare[: config.size - len(pieces)]
    if rare and len(pieces) < config.size:
        pieces += train_pieces(short_words(words), pieces, config.size - len(pieces), config.min_frequency)
    return pieces


class _Groups(NamedTuple):
    """Groups of shards, whose counted words are exchanged through files in scratch."""

    shards: Mapping[str, Sequence[str]]  # group -> the names of its shards
    scratch: Location
    num_buckets: int

    @classmethod
    def of(cls, shards: Sequence[str], scratch: Location) -> Self:
        groups = {f"{group.start:05}": shards[group.start : group.stop] for group in shard_groups(len(shards))}
        return cls(groups, scratch, 1 + len(groups) // _GROUPS_PER_BUCKET)

    def file(self, group: str) -> Location:
        return self.scratch / f"words/{group}"

    def missing(self, finished: Container[str]) -> list[str]:
        """Returns the groups without a file in scratch, or with a shard whose part is not finished."""
        written = {file.name for file in (self.scratch / "words").files()}
        return [
            group
            for group, shards in self.shards.items()
            if group not in written or not all(f"words-{shard}" in finished for shard in shards)
        ]

    def add_counts(self) -> tuple[list[WordCounts], list[WordCounts]]:
        """Returns the counted words of the train split and of the held-out split, bucket by bucket."""
        files = [self.file(group) for group in self.shards]
        buckets = [add_words_files(read_bucket(files, self.num_buckets, bucket)) for bucket in range(self.num_buckets)]
        return [train for train, _ in buckets], [heldout for _, heldout in buckets]


def count_group(
    name: str,
    groups: _Groups,
    documents: Mapping[str, Location],
    finished: Container[str],
    config: VocabConfig,
    out: Output,
) -> None:
    """The documents of a group of shards -> the words of each shard, committed, and those of the group in scratch."""
    tables = [
        read_table(out.location / f"words/{shard}.parquet")
        if f"words-{shard}" in finished
        else count_shard(shard, documents[shard], config, out)
        for shard in groups.shards[name]
    ]
    write_buckets(groups.file(name), split_by_hash(add_counts(tables), groups.num_buckets))


def count_shard(name: str, documents: Location, config: VocabConfig, out: Output) -> pa.Table:
    """A shard of documents -> its words with their counts in train and held-out text, committed."""
    tokenizer = build_tokenizer(SPECIAL_TOKENS, config.lowercase, config.strip_accents)
    table = read_table(documents, ["text", "split"])
    texts: dict[str, list[str]] = {"train": [], "heldout": []}
    for text, split in zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True):
        texts[split].append(text)
    train, heldout = (count_words(split_texts, tokenizer) for split_texts in texts.values())
    words = counts_table(train, heldout)
    counts = {"documents": len(table), "train_words": train.total(), "heldout_words": heldout.total()}
    out.commit(f"words-{name}", {f"words/{name}.parquet": words_file(words)}, counts)
    return words


def _compare(name: str, pieces: list[str], config: VocabConfig, heldout: Sequence[WordCounts]) -> ComparedVocab:
    """Measure another vocabulary on the held-out words. With capitals among its pieces, text is not lowercased."""
    has_capitals = any(piece != piece.lower() for piece in pieces if piece not in RESERVED)
    tokenizer = build_tokenizer(pieces, config.lowercase or not has_capitals, config.strip_accents)
    return ComparedVocab(name=name, size=len(pieces), **measure_quality(tokenizer, heldout).plain)


def check(config: VocabConfig, sources: Mapping[str, SourceFile]) -> dict[str, vocab_file.VocabFile]:
    """Read the given vocabularies. Raises UserError for one that cannot be used."""
    given = {name: vocab_file.read_file(source.location) for name, source in sources.items()}
    if "file" in given:
        vocab_file.check_case_and_accents(given["file"], sources["file"].uri, config.lowercase, config.strip_accents)
    return given


def run(config: VocabConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """`inputs`: dedup's artifact "documents", and the SourceFiles "file" and "compare" if they are given.

    Needs a Ray session. Raises UserError.
    """
    documents: Artifact = inputs["documents"]
    sources: dict[str, SourceFile] = {name: source for name, source in inputs.items() if name != "documents"}
    given = check(config, sources)
    shards = {file.name.removesuffix(".parquet"): file for file in documents.files("documents/")}
    with out.reporting_parts(len(shards) + 1, "shards"), scratch_folder(out) as scratch:
        groups = _Groups.of(list(shards), scratch)
        finished = out.finished_parts([f"words-{name}" for name in shards])
        missing = groups.missing(finished)
        for_each(
            partial(count_group, groups=groups, documents=shards, finished=set(finished), config=config, out=out),
            missing,
            config.workers,
        )
        train, heldout = groups.add_counts()
        pieces = given["file"].pieces if "file" in given else train_vocabulary(train, config)
        tokenizer = build_tokenizer(pieces, config.lowercase, config.strip_accents)
        files = {
            "vocab.txt": "".join(f"{piece}\n" for piece in pieces),
            "tokenizer.json": tokenizer.to_str(pretty=True),
            "tokenizer_config.json": tokenizer_config_json(),
        }
        out.commit("vocab", {name: text.encode() for name, text in files.items()})
    facts = vocab_facts(pieces, tokenizer, config, train, heldout)
    if "compare" in given:
        compared = _compare(sources["compare"].location.name, given["compare"].pieces, config, heldout)
        facts = facts.model_copy(update={"compared": compared})
    return out.finish(
        out.require_parts([*(f"words-{name}" for name in shards), "vocab"]),
        config.model_dump(mode="json"),
        {"documents": documents.fingerprint, **{name: source.identity for name, source in sources.items()}},
        counts={"pieces": len(pieces), "distinct_words": sum(len(some.counts) for some in train)},
        facts=facts,
    )
