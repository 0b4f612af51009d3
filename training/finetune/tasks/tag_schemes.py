"""Tags of entities in BIO, IOB1 or IOBES: which of these a file uses, and where a tag breaks its rules.

BIO (IOB2): the first word of an entity is B, the others are I. IOB1: all words of an entity are I, and the first one is
B where the entity before it has the same type and ends at the word before it. IOBES: as BIO, the last word is E and a
single word S.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

EntityScheme = Literal["BIO", "IOB1", "IOBES"]
Scheme = Literal["BIO", "IOB1", "IOBES", "none"]

OUTSIDE = "O"
PREFIXES: dict[EntityScheme, str] = {"BIO": "BI", "IOB1": "IB", "IOBES": "BIES"}

_ENTITY_TAG = re.compile(r"O|[BIES](-.+)?")


def is_entity_tag(tag: str) -> bool:
    """Whether a tag is O, or B, I, E or S, with or without a type."""
    return _ENTITY_TAG.fullmatch(tag) is not None


def detect_scheme(sentences: Iterable[Sequence[str]]) -> EntityScheme:
    """The scheme of the tags of sentences: IOBES if any is E or S, else BIO, or IOB1 if fewer sentences break it."""
    tags = list(sentences)
    if any(tag[0] in "ES" for sentence in tags for tag in sentence):
        return "IOBES"
    broken = {scheme: sum(first_invalid(sentence, scheme) is not None for sentence in tags) for scheme in _BIO_OR_IOB1}
    return min(_BIO_OR_IOB1, key=lambda scheme: broken[scheme])


_BIO_OR_IOB1: tuple[EntityScheme, EntityScheme] = ("BIO", "IOB1")


def first_invalid(tags: Sequence[str], scheme: EntityScheme) -> int | None:
    """The position of the first tag that breaks the scheme, or None."""
    previous_prefix, previous_type = OUTSIDE, ""
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, type_ = tag.partition("-")
        is_inside = previous_prefix in ("B", "I") and type_ == previous_type
        if prefix != OUTSIDE and prefix not in PREFIXES[scheme]:
            return position
        if prefix == ("B" if scheme == "IOB1" else "I") and not is_inside:
            return position
        if scheme == "IOBES":
            if prefix == "E" and not is_inside:
                return position
            if previous_prefix in ("B", "I") and not (prefix in ("I", "E") and is_inside):
                return position - 1  # the entity must continue after it
        previous_prefix, previous_type = prefix, type_
    return None


def scheme_tags(tags: Iterable[str], scheme: EntityScheme) -> list[str]:
    """O, and all tags of the scheme for the types of these tags, sorted by type. Train need not have all of them."""
    types = sorted({tag.partition("-")[2] for tag in tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{prefix}-{name}" if name else prefix for name in types for prefix in PREFIXES[scheme])]
