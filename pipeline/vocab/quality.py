"""How well a vocabulary fits counted words: figures, notes and warnings for the manifest."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cloze.pipeline.core.manifest_facts import UncoveredCharacters, VocabFacts, VocabQuality
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import MAX_CHARS_PER_WORD, RESERVED, UNK
from cloze.pipeline.vocab.alphabet import CharacterSpelling, count_characters
from cloze.pipeline.vocab.config import VocabConfig
from cloze.pipeline.vocab.word_counts import WordCounts, short_words

_SHOWN = 24  # sample pieces in the facts
_MAX_UNKNOWN = 0.01  # of the words of held-out documents; a higher fraction is a warning
_BATCH_WORDS = 1 << 14  # that are tokenized at once; an encoding takes about 1 kB


def count_left_out(words: Sequence[WordCounts], pieces: Sequence[str]) -> UncoveredCharacters:
    """Counted words -> which of their characters the pieces lack, and how many words are unknown for that reason.

    Words that are too long are always unknown: they are counted separately, and their characters are not.
    """
    spelling = CharacterSpelling(pieces)
    counts = count_characters(short_words(words)).pieces()
    missing = {piece: counts[piece] for piece in counts.keys() - set(pieces)}
    unknown = short = 0
    for some in short_words(words):
        ids, offsets = spelling(some)
        lacking = np.unique(np.searchsorted(offsets, np.flatnonzero(ids < 0), "right") - 1)
        unknown += int(some.counts[lacking].sum())
        short += int(some.counts.sum())
    total = sum(int(some.counts.sum()) for some in words)
    return UncoveredCharacters(
        distinct_characters=len({piece[-1] for piece in missing}),
        of_distinct_characters=len({piece[-1] for piece in counts}),
        characters=sum(missing.values()),
        of_characters=sum(counts.values()),
        words=unknown,
        long_words=total - short,
        of_words=total,
        most_frequent=sorted(missing, key=lambda piece: (-missing[piece], piece))[:_SHOWN],
    )


def measure_quality(tokenizer: Tokenizer, words: Iterable[WordCounts]) -> VocabQuality:
    """Counted words -> the fraction of unknown ones, and pieces per word. Without words, all fields stay unset."""
    unknown_id = tokenizer.token_to_id(UNK)
    total = pieces = unknown = 0
    for some in words:
        for start in range(0, len(some.counts), _BATCH_WORDS):
            batch = [[word] for word in some.words[start : start + _BATCH_WORDS].to_pylist()]
            encoded = tokenizer.encode_batch_fast(batch, is_pretokenized=True, add_special_tokens=False)
            for encoding, count in zip(encoded, some.counts[start : start + _BATCH_WORDS].tolist(), strict=True):
                total += count
                pieces += count * len(encoding.ids)
                unknown += count * (encoding.ids == [unknown_id])
    if not total:
        return VocabQuality()
    return VocabQuality(words=total, unknown_share=unknown / total, pieces_per_word=pieces / total)


def vocab_facts(
    pieces: list[str],
    tokenizer: Tokenizer,
    config: VocabConfig,
    train: Sequence[WordCounts],
    heldout: Sequence[WordCounts],
) -> VocabFacts:
    """The facts of a vocabulary's manifest. `train` and `heldout` are the counted words of the two splits."""
    text_pieces = [piece for piece in pieces if piece not in RESERVED]
    step = max(1, len(pieces) // _SHOWN)
    facts = VocabFacts(
        size=len(pieces),
        longest=sorted(text_pieces, key=lambda piece: (-len(piece.removeprefix("##")), piece))[:_SHOWN],
        sample=text_pieces[::step][:_SHOWN],
        heldout=measure_quality(tokenizer, heldout),
    )
    more: dict[str, Any] = {}
    if config.file:
        more["note"] = f"The pieces are those of {Location(config.file).name}; none is learnt from this text."
    else:
        left_out = count_left_out(train, pieces)
        more |= {"asked": config.size, "left_out": left_out}
        if note := _note(left_out):
            more["note"] = note
    facts = facts.model_copy(update=more)
    return facts.model_copy(update={"warnings": list(_warnings(facts, config))})


def _note(left_out: UncoveredCharacters) -> str:
    """Which characters and words the vocabulary leaves out, as text; empty if it leaves out none."""
    sentences: list[str] = []
    if left_out.characters:
        sentences.append(
            f"The vocabulary leaves out {left_out.distinct_characters:,} of the training text's "
            f"{left_out.of_distinct_characters:,} different characters, which are {left_out.characters:,} of all its "
            f"{left_out.of_characters:,}; for them {left_out.words:,} of its {left_out.of_words:,} words are unknown."
        )
    if left_out.long_words:
        sentences.append(
            f"Words of more than {MAX_CHARS_PER_WORD} characters are unknown too: {left_out.long_words:,} of "
            f"{left_out.of_words:,}."
        )
    return " ".join(sentences)


def _warnings(facts: VocabFacts, config: VocabConfig) -> Iterator[str]:
    """What a user should know before training for days with this vocabulary."""
    if not config.file and facts.size < config.size:
        yield (
            f"vocab.size: {config.size} cannot be reached, the text gives {facts.size} pieces: every character has a "
            f"place and no other pair of pieces occurs vocab.min_frequency ({config.min_frequency}) times; lower "
            f"vocab.size to {facts.size} or add sources"
        )
    unknown = facts.heldout.unknown_share
    if unknown > _MAX_UNKNOWN:
        if config.file:
            fix = "give another vocab.file"
        elif facts.left_out.words:
            fix = f"raise vocab.size or vocab.character_coverage (now {config.character_coverage:g})"
        else:
            fix = (
                f"add sources, for these words have characters that the training text lacks, or they have more than "
                f"{MAX_CHARS_PER_WORD} and want spaces"
            )
        yield f"vocab: {100 * unknown:.1f} % of the words of held-out documents are unknown; {fix}"
