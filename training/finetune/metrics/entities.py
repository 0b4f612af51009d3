"""The true and the predicted tags of each sentence -> precision, recall and F1 of entities, by exact span.

Tags are BIO (IOB2), IOB1 or IOBES: one rule reads all three, that of the CoNLL-2000 scorer conlleval and of seqeval's
default mode. It also reads predicted tags that violate their scheme: an I that continues no entity begins one.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloze.training.finetune.metrics.estimates import Estimate, Floats, bootstrap, ratio, require_one_each

TagRows = Sequence[Sequence[str]]  # the tags of each sentence


class Entity(NamedTuple):
    """An entity: its type, and the tokens from `start` up to `end` (exclusive)."""

    type: str
    start: int
    end: int


class EntityScores(NamedTuple):
    """Precision, recall and F1 with their bootstrap intervals over sentences; `support` is the number of true entities.

    Precision is undefined (0 within [0, 1]) without predicted entities, recall without true ones. A resample in which
    a score is undefined has the score 0: the intervals of a type that occurs in few sentences are wide.
    """

    precision: Estimate
    recall: Estimate
    f1: Estimate
    support: int


class EntityReport(NamedTuple):
    """The scores of all entities together (micro-averaged), and those of each type, sorted by name."""

    overall: EntityScores
    by_type: dict[str, EntityScores]


def entity_f1(labels: TagRows, predictions: TagRows) -> EntityReport:
    """Returns the scores of the entities. A predicted entity is correct when its type and both ends are.

    Raises ValueError when the numbers of sentences or of a sentence's tags differ, or for a tag of no scheme.
    """
    require_one_each(labels, predictions, "sentences")
    sentences = []
    for number, (true_tags, predicted_tags) in enumerate(zip(labels, predictions, strict=True)):
        if len(true_tags) != len(predicted_tags):
            raise ValueError(
                f"sentence {number}: {len(predicted_tags)} predicted tags for {len(true_tags)} tags: there must be one "
                "for each"
            )
        true, predicted = set(entities(true_tags)), set(entities(predicted_tags))
        sentences.append([Counter(entity.type for entity in group) for group in (true & predicted, predicted, true)])
    types = sorted({name for counts in sentences for group in counts[1:] for name in group})
    # [sentences, (correct, predicted, true), types]
    counts = np.array([[[group[name] for name in types] for group in counts] for counts in sentences], np.int64)
    return EntityReport(
        _scores(counts.sum(2)), {name: _scores(counts[:, :, index]) for index, name in enumerate(types)}
    )


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yields the entities of a sentence.

    A token continues the entity of the token before it when it is I or E, the one before is B or I, and their types are
    equal; any other token that is not O begins an entity. A tag without a type has the type "".
    """
    start, previous_prefix, previous_type = 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, type_ = tag.partition("-")
        if prefix not in ("B", "I", "E", "S", "O") or (prefix == "O" and type_):
            raise ValueError(f"tag {tag!r} is not O, or B, I, E or S with a type, such as B-PER")
        if prefix in ("I", "E") and previous_prefix in ("B", "I") and type_ == previous_type:
            previous_prefix = prefix
            continue
        if previous_prefix != "O":
            yield Entity(previous_type, start, position)
        start, previous_prefix, previous_type = position, prefix, type_


def _scores(counts: NDArray[np.int64]) -> EntityScores:
    """Counts [sentences, 3] of correct, predicted and true entities -> the scores."""
    _, predicted, true = counts.sum(0).tolist()
    undefined = Estimate(0.0, 0.0, 1.0)
    return EntityScores(
        bootstrap(counts, _precision) if predicted else undefined,
        bootstrap(counts, _recall) if true else undefined,
        bootstrap(counts, _f1) if predicted + true else undefined,
        true,
    )


def _precision(sums: Floats) -> Floats:
    return ratio(sums[:, 0], sums[:, 1])


def _recall(sums: Floats) -> Floats:
    return ratio(sums[:, 0], sums[:, 2])


def _f1(sums: Floats) -> Floats:
    return ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])
