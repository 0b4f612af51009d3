"""documents -> vocab.txt, tokenizer.json and tokenizer_config.json, which transformers reads.

Words here are those that BERT's tokenizer splits into pieces, with each punctuation mark as a word, not those of
words.py. Ray Data counts the words of each shard; the driver adds the counts and trains the vocabulary. A vocabulary
that is given as a file is only measured on these words.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.manifest_facts import ComparedVocab
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import parquet_bytes, read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import (
    LAYOUTS,
    MAX_CHARS_PER_WORD,
    RESERVED,
    SPECIAL_TOKENS,
    WordSplitter,
    build_tokenizer,
    split_chunks,
    tokenizer_config_json,
)
from cloze.pipeline.vocab.config import VocabConfig
from cloze.pipeline.vocab.quality import measure_quality, vocab_facts
from cloze.pipeline.vocab.wordpiece_trainer import alphabet, train_pieces

VERSION = 3
# One of this many places is for a character of the alphabet, however rare it is, so that a language with a small
# alphabet loses no character. BERT's own vocabulary has 997 characters in 30,522 places.
_PLACES_PER_CHARACTER = 30
_ROW_GROUP = 1 << 16  # rows

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


def train_vocabulary(words: Mapping[str, int], config: VocabConfig) -> list[str]:
    """Counted words -> the vocabulary in file order: special tokens, alphabet, merged pieces in the order of training.

    Places that are still empty go to the characters outside the alphabet, the most frequent first, and then to pieces
    from the words with these characters. Raises UserError if there are no words, or `size` is too small for the
    alphabet.
    """
    short = {word: count for word, count in words.items() if len(word) <= MAX_CHARS_PER_WORD}
    if not short:
        raise UserError("vocab: the documents hold no text to train on; lower extract.heldout_fraction or add sources")
    reserved = LAYOUTS[config.layout]
    room = config.size - len(reserved)
    characters, rare = alphabet(short, config.character_coverage, room // _PLACES_PER_CHARACTER)
    first = [*reserved, *characters]
    if len(first) > config.size:
        raise UserError(
            f"vocab.size: {config.size} has no room for {len(reserved)} special tokens (vocab.layout: {config.layout}) "
            f"and the alphabet's {len(characters)} pieces; set it to {len(first)} at least, or lower "
            f"vocab.character_coverage (now {config.character_coverage:g})"
        )
    pieces = first + train_pieces(short, first, config.size - len(first), config.min_frequency)
    pieces += rare[: config.size - len(pieces)]
    if rare and len(pieces) < config.size:
        pieces += train_pieces(short, pieces, config.size - len(pieces), config.min_frequency)
    return pieces


def count_shard(name: str, documents: Mapping[str, Location], config: VocabConfig, out: Output) -> None:
    """A shard of documents -> its words with their counts in train and held-out text, committed."""
    tokenizer = build_tokenizer(SPECIAL_TOKENS, config.lowercase, config.strip_accents)
    table = read_table(documents[name], ["text", "split"])
    texts: dict[str, list[str]] = {"train": [], "heldout": []}
    for text, split in zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True):
        texts[split].append(text)
    train, heldout = (count_words(split_texts, tokenizer) for split_texts in texts.values())
    words = sorted(train.keys() | heldout.keys())
    rows = {"word": words, "train": [train[word] for word in words], "heldout": [heldout[word] for word in words]}
    schema = pa.schema({"word": pa.string(), "train": pa.int64(), "heldout": pa.int64()})
    data = parquet_bytes(pa.table(rows, schema=schema), row_group_size=_ROW_GROUP)
    counts = {"documents": len(table), "train_words": train.total(), "heldout_words": heldout.total()}
    out.commit(f"words-{name}", {f"words/{name}.parquet": data}, counts)


def _add_counts(files: Iterable[Location]) -> tuple[Counts, Counts]:
    """The shards' words -> the counts of the train split and of the held-out split."""
    train, heldout = Counter[str](), Counter[str]()
    for file in files:
        table = read_table(file)
        words = table["word"].to_pylist()
        for total, column in ((train, "train"), (heldout, "heldout")):
            for word, count in zip(words, table[column].to_pylist(), strict=True):
                if count:
                    total[word] += count
    return train, heldout


def _compare(name: str, pieces: list[str], config: VocabConfig, heldout: Mapping[str, int]) -> ComparedVocab:
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
    with out.reporting_parts(len(shards) + 1, "shards"):
        finished = out.finished_parts([f"words-{name}" for name in shards])
        missing = [name for name in shards if f"words-{name}" not in finished]
        for_each(partial(count_shard, documents=shards, config=config, out=out), missing, config.workers)
        train, heldout = _add_counts(out.location / f"words/{name}.parquet" for name in shards)
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
        counts={"pieces": len(pieces), "distinct_words": len(train)},
        facts=facts,
    )
