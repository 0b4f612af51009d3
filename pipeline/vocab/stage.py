"""documents -> vocab.txt, tokenizer.json and what transformers reads beside it, tokenizer_config.json.

Words are here what BERT's tokenizer cuts into pieces, a mark of punctuation each, and not those of words.py. Ray Data
counts those of each shard, one machine merges them. Or the pieces are those of a file that somebody brought, and the
words only say how they fare.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator
from tokenizers import Tokenizer

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.facts import ComparedVocab, UncoveredCharacters, VocabFacts, VocabQuality
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import parquet_bytes, read_table
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import (
    LAYOUTS,
    MAX_CHARS_PER_WORD,
    RESERVED,
    SPECIAL_TOKENS,
    UNK,
    WordSplitter,
    build_tokenizer,
    split_chunks,
    tokenizer_config_json,
)
from cloze.pipeline.vocab.wordpiece_trainer import alphabet, learn, spell

VERSION = 3
_SHOWN = 24  # sample pieces in the facts
# For so many places one character is in the alphabet, however rare it is: a language written with few loses none of its
# own. BERT's own vocabulary has 997 characters in 30,522 places.
_PLACES_PER_CHARACTER = 30
_MANY_UNKNOWN = 0.01  # of the words of held-out documents: worth a warning
_ROWS = 1 << 16

Counts = Counter[str]


class VocabConfig(Config):
    """What the vocabulary is learnt from is the train split; `size` counts everything in it.

    Where there is a `file`, nothing is learnt: size, layout, min_frequency, character_coverage say nothing.
    """

    size: int = Field(default=30522, gt=len(SPECIAL_TOKENS))
    layout: Literal["compact", "google"] = "compact"  # special tokens first; or as published, with 994 [unused]
    #: A vocab.txt or tokenizer.json to use instead; its bytes are an input.
    file: Annotated[str | None, InputPath()] = None
    #: Another of these, to be measured on the same held-out text.
    compare: Annotated[str | None, InputPath()] = None
    lowercase: bool = True
    strip_accents: bool | None = None  # None: as `lowercase`
    min_frequency: int = Field(default=2, gt=0)  # of a pair of pieces that is to become one
    #: The alphabet is the most frequent characters that make up this share of the text, and never fewer than a 30th of
    #: `size`. Rarer ones take what places the pairs leave.
    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    workers: Annotated[int, Compute] = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.size <= len(LAYOUTS[self.layout]):
            raise ValueError(
                f"size {self.size} has no room behind the layout's {len(LAYOUTS[self.layout])} pieces; raise it"
            )
        return self


def count_words(texts: Iterable[str], tokenizer: Tokenizer) -> Counts:
    """Texts -> how often each normalised word stands in them. Each distinct chunk is normalised once."""
    chunks: Counts = Counter()
    for text in texts:
        chunks.update(split_chunks(text))
    words: Counts = Counter()
    for some, count in zip(WordSplitter(tokenizer)(chunks), chunks.values(), strict=False):  # [""] for no chunks
        for word in some:
            words[word] += count
    return words


def make_pieces(words: Mapping[str, int], config: VocabConfig) -> list[str]:
    """Counted words -> the vocabulary in file order: special tokens, alphabet, merges as they were found; in places
    that are still empty the characters that the alphabet leaves out, the most frequent first; where all of these have
    one, what is found in the words that they spell as well.

    Raises UserError when there are no words, or when `size` has no room for the alphabet.
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
    pieces = first + learn(short, first, config.size - len(first), config.min_frequency)
    pieces += rare[: config.size - len(pieces)]
    if rare and len(pieces) < config.size:
        pieces += learn(short, pieces, config.size - len(pieces), config.min_frequency)
    return pieces


def left_out(words: Mapping[str, int], pieces: Iterable[str]) -> UncoveredCharacters:
    """Counted words -> which of their characters the pieces lack, and how many words are unknown for that.

    A word that is too long is unknown whatever it is made of: it is counted as such, and its characters are not.
    """
    known = set(pieces)
    found, missing = Counter[str](), Counter[str]()
    unknown = long = 0
    for word, count in words.items():
        if len(word) > MAX_CHARS_PER_WORD:
            long += count
            continue
        spelt = spell(word)
        lacks = [piece for piece in spelt if piece not in known]
        for piece in spelt:
            found[piece] += count
        for piece in lacks:
            missing[piece] += count
        unknown += count * bool(lacks)
    return UncoveredCharacters(
        distinct_characters=len({piece[-1] for piece in missing}),
        of_distinct_characters=len({piece[-1] for piece in found}),
        characters=missing.total(),
        of_characters=found.total(),
        words=unknown,
        long_words=long,
        of_words=sum(words.values()),
        most_frequent=sorted(missing, key=lambda piece: (-missing[piece], piece))[:_SHOWN],
    )


def quality(tokenizer: Tokenizer, words: Mapping[str, int]) -> VocabQuality:
    """How a vocabulary fares on counted words: the share of unknown ones, and pieces per word; nothing of no words."""
    unknown = tokenizer.token_to_id(UNK)
    total = pieces = missed = 0
    encoded = tokenizer.encode_batch_fast([[word] for word in words], is_pretokenized=True, add_special_tokens=False)
    for encoding, count in zip(encoded, words.values(), strict=True):
        total += count
        pieces += count * len(encoding.ids)
        missed += count * (encoding.ids == [unknown])
    if not total:
        return VocabQuality()
    return VocabQuality(words=total, unknown_share=missed / total, pieces_per_word=pieces / total)


def count_shard(name: str, documents: Mapping[str, Location], config: VocabConfig, out: Output) -> None:
    """One shard of documents -> its words with their counts in train and held-out text, committed."""
    tokenizer = build_tokenizer(SPECIAL_TOKENS, config.lowercase, config.strip_accents)
    table = read_table(documents[name], ["text", "split"])
    texts: dict[str, list[str]] = {"train": [], "heldout": []}
    for text, split in zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True):
        texts[split].append(text)
    train, heldout = (count_words(some, tokenizer) for some in texts.values())
    words = sorted(train.keys() | heldout.keys())
    rows = {"word": words, "train": [train[word] for word in words], "heldout": [heldout[word] for word in words]}
    schema = pa.schema({"word": pa.string(), "train": pa.int64(), "heldout": pa.int64()})
    data = parquet_bytes(pa.table(rows, schema=schema), row_group_size=_ROWS)
    counts = {"documents": len(table), "train_words": train.total(), "heldout_words": heldout.total()}
    out.commit(f"words-{name}", {f"words/{name}.parquet": data}, counts)


def _sum(files: Iterable[Location]) -> tuple[Counts, Counts]:
    """The shards' words -> those of the train split and those of the held-out one."""
    train, heldout = Counter[str](), Counter[str]()
    for file in files:
        table = read_table(file)
        words = table["word"].to_pylist()
        for total, column in ((train, "train"), (heldout, "heldout")):
            for word, count in zip(words, table[column].to_pylist(), strict=True):
                if count:
                    total[word] += count
    return train, heldout


def facts(
    pieces: list[str],
    tokenizer: Tokenizer,
    config: VocabConfig,
    train: Mapping[str, int],
    heldout: Mapping[str, int],
) -> VocabFacts:
    """What is to be said of a vocabulary; its warnings are for whoever started the run."""
    of_text = [piece for piece in pieces if piece not in RESERVED]
    step = max(1, len(pieces) // _SHOWN)
    facts = VocabFacts(
        size=len(pieces),
        longest=sorted(of_text, key=lambda piece: (-len(piece.removeprefix("##")), piece))[:_SHOWN],
        sample=of_text[::step][:_SHOWN],
        heldout=quality(tokenizer, heldout),
    )
    more: dict[str, Any] = {}
    if config.file:
        more["note"] = f"The pieces are those of {Location(config.file).name}; none is learnt from this text."
    else:
        left = left_out(train, pieces)
        more |= {"asked": config.size, "left_out": left}
        if note := _note(left):
            more["note"] = note
    facts = facts.model_copy(update=more)
    return facts.model_copy(update={"warnings": list(_warnings(facts, config))})


def _note(left: UncoveredCharacters) -> str:
    """What was left out, in words; empty when nothing was."""
    said: list[str] = []
    if left.characters:
        said.append(
            f"The vocabulary leaves out {left.distinct_characters:,} of the training text's "
            f"{left.of_distinct_characters:,} different characters, which are {left.characters:,} of all its "
            f"{left.of_characters:,}; for them {left.words:,} of its {left.of_words:,} words are unknown."
        )
    if left.long_words:
        said.append(
            f"Words of more than {MAX_CHARS_PER_WORD} characters are unknown too: {left.long_words:,} of "
            f"{left.of_words:,}."
        )
    return " ".join(said)


def _warnings(facts: VocabFacts, config: VocabConfig) -> Iterator[str]:
    """What a person should know before days of training on this vocabulary."""
    if not config.file and facts.size < config.size:
        yield (
            f"vocab.size: {config.size} cannot be reached, the text gives {facts.size} pieces: every character has a "
            f"place and no other pair of pieces occurs vocab.min_frequency ({config.min_frequency}) times; lower "
            f"vocab.size to {facts.size} or add sources"
        )
    share = facts.heldout.unknown_share
    if share > _MANY_UNKNOWN:
        if config.file:
            mend = "give another vocab.file"
        elif facts.left_out.words:
            mend = f"raise vocab.size or vocab.character_coverage (now {config.character_coverage:g})"
        else:
            mend = (
                f"add sources, for these words have characters that the training text lacks, or they have more than "
                f"{MAX_CHARS_PER_WORD} and want spaces"
            )
        yield f"vocab: {100 * share:.1f} % of the words of held-out documents are unknown; {mend}"


def _has_capitals(pieces: Iterable[str]) -> bool:
    return any(piece != piece.lower() for piece in pieces if piece not in RESERVED)


def check(config: VocabConfig, sources: Mapping[str, SourceFile]) -> dict[str, vocab_file.VocabFile]:
    """What the vocabularies that are given hold. Raises UserError for one that cannot be used."""
    given = {name: vocab_file.read_file(source.location) for name, source in sources.items()}
    if "file" in given:
        vocab_file.check_case_and_accents(given["file"], sources["file"].uri, config.lowercase, config.strip_accents)
    return given


def run(config: VocabConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """`inputs`: dedup's artifact "documents", and the SourceFiles "file" and "compare" where they are given.

    Wants a Ray session. Raises UserError.
    """
    documents: Artifact = inputs["documents"]
    sources: dict[str, SourceFile] = {name: source for name, source in inputs.items() if name != "documents"}
    given = check(config, sources)
    shards = {file.name.removesuffix(".parquet"): file for file in documents.files("documents/")}
    with out.reporting_parts(len(shards) + 1, "shards"):
        finished = out.finished_parts([f"words-{name}" for name in shards])
        missing = [name for name in shards if f"words-{name}" not in finished]
        for_each(partial(count_shard, documents=shards, config=config, out=out), missing, config.workers)
        train, heldout = _sum(out.location / f"words/{name}.parquet" for name in shards)
        pieces = given["file"].pieces if "file" in given else make_pieces(train, config)
        tokenizer = build_tokenizer(pieces, config.lowercase, config.strip_accents)
        files = {
            "vocab.txt": "".join(f"{piece}\n" for piece in pieces),
            "tokenizer.json": tokenizer.to_str(pretty=True),
            "tokenizer_config.json": tokenizer_config_json(),
        }
        out.commit("vocab", {name: text.encode() for name, text in files.items()})
    said = facts(pieces, tokenizer, config, train, heldout)
    if "compare" in given:
        theirs = given["compare"].pieces
        lowercase = config.lowercase or not _has_capitals(theirs)
        fares = quality(build_tokenizer(theirs, lowercase, config.strip_accents), heldout)
        compared = ComparedVocab(name=sources["compare"].location.name, size=len(theirs), **fares.plain)
        said = said.model_copy(update={"compared": compared})
    return out.finish(
        out.require_parts([*(f"words-{name}" for name in shards), "vocab"]),
        config.model_dump(mode="json"),
        {"documents": documents.fingerprint, **{name: source.identity for name, source in sources.items()}},
        counts={"pieces": len(pieces), "distinct_words": len(train)},
        facts=said,
    )
