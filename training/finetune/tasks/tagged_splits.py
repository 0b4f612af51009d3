"""Sentences as read -> valid ones, each in a split, with the scheme of their tags and the labels of train."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cloze.pipeline.core.errors import UserError
from cloze.training.finetune.tasks.invalid_rows import InvalidRow, valid_rows
from cloze.training.finetune.tasks.labelled_files import check_splits, with_splits
from cloze.training.finetune.tasks.tag_schemes import (
    EntityScheme,
    Scheme,
    detect_scheme,
    first_invalid,
    is_entity_tag,
    scheme_tags,
)
from cloze.training.finetune.tasks.tagged_files import TaggedSentence

_MIN_DOCUMENTS = 10  # so that a tenth is at least one


def valid_sentences(
    sentences: Sequence[TaggedSentence],
    scheme: Scheme | None,
    seed: int,
    where: object,
    skipped: Counter[str] | None,
) -> tuple[list[TaggedSentence], Scheme, list[str]]:
    """The valid sentences, each in a split; the scheme, detected if it is None; and the labels.

    Invalid ones are counted in `skipped` by reason. Without it, and when there is nothing to learn from or to score,
    raises UserError.
    """
    valid = list(sentences)
    if scheme != "none":
        valid = valid_rows(valid, _with_entity_tags, skipped)
        scheme = scheme or detect_scheme([one.label for one in valid if one.label is not None])
        valid = valid_rows(valid, _follows(scheme), skipped)
    valid = divided(valid, seed)
    check_splits(valid, where)
    found = {tag for one in valid if one.split == "train" for tag in one.label}
    labels = sorted(found) if scheme == "none" else scheme_tags(found, scheme)
    if len(labels) < 2:
        raise UserError(f"{where}: all words of train have the tag {labels[0]!r}; check columns.tag")
    valid = valid_rows(valid, _known_to(set(labels)), skipped)
    check_splits(valid, where)  # once more without the sentences that have unknown tags
    return valid, scheme, labels


def divided(sentences: Sequence[TaggedSentence], seed: int) -> list[TaggedSentence]:
    """The sentences, those without a split divided: documents are kept whole if there are at least ten."""
    documents = {one.document for one in sentences if one.split in ("", "train") and one.document is not None}
    by_document = len(documents) >= _MIN_DOCUMENTS
    units = dict[Any, list[int]]()
    for number, one in enumerate(sentences):
        unit = number if one.document is None or not by_document else (one.split, one.document)
        units.setdefault(unit, []).append(number)
    firsts = with_splits([sentences[members[0]] for members in units.values()], seed, lambda example: 0)
    splits = {number: first.split for first, members in zip(firsts, units.values(), strict=True) for number in members}
    return [replace(one, split=splits[number]) for number, one in enumerate(sentences)]


def _with_entity_tags(sentence: TaggedSentence) -> TaggedSentence:
    """The sentence. Raises InvalidRow for a tag that is not of entities."""
    for position, tag in enumerate(sentence.label or ()):
        if not is_entity_tag(tag):
            raise InvalidRow(
                f"{sentence.where_of(position)}: the tag {tag!r} is not O, or B, I, E or S with a type, such as B-PER; "
                "correct it, or set columns.tag to another column, or scheme: none for tags such as parts of speech",
                "invalid tag",
            )
    return sentence


def _follows(scheme: EntityScheme) -> Callable[[TaggedSentence], TaggedSentence]:
    """A function that returns a sentence. It raises InvalidRow for a tag that breaks the scheme."""

    def check(sentence: TaggedSentence) -> TaggedSentence:
        tags = sentence.label or ()
        if (position := first_invalid(tags, scheme)) is not None:
            before = tags[position - 1] if position else "the beginning of a sentence"
            after = tags[position + 1] if position + 1 < len(tags) else "its end"
            raise InvalidRow(
                f"{sentence.where_of(position)}: the tag {tags[position]!r} between {before} and {after} is not "
                f"{scheme}; correct it or set scheme",
                "tag that breaks the scheme",
            )
        return sentence

    return check


def _known_to(labels: set[str]) -> Callable[[TaggedSentence], TaggedSentence]:
    """A function that returns a sentence. It raises InvalidRow for a tag that is not among the labels."""

    def check(sentence: TaggedSentence) -> TaggedSentence:
        for position, tag in enumerate(sentence.label or ()):
            if tag not in labels:
                raise InvalidRow(
                    f"{sentence.where_of(position)}: the tag {tag!r} of {sentence.split} is not in train; correct it "
                    "or add examples there",
                    "unknown tag",
                )
        return sentence

    return check
