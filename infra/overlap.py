"""A task's overlap with the pretraining documents -> sentences, for the report and status."""

from collections.abc import Callable, Iterator

from cloze.infra.score_names import metric_name
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts, SplitOverlapFact

WriteScore = Callable[[float], str]


def score_without_overlap(facts: OverlapFacts, write: WriteScore) -> str:
    """For example "87.2 % without the 312 of 10,570 examples that share 13 words with the pretraining text"; empty
    if no example of the scored split overlaps, or all of them do."""
    score = facts.scores.get("without_overlap")
    value = score.value(facts.metric) if score else None
    if value is None:
        return ""
    split = facts.splits[facts.scored_split]
    verb = "shares" if split.overlapping == 1 else "share"
    return (
        f"{write(value)} without the {split.overlapping:,} of {split.examples:,} examples that {verb} 13 words with "
        "the pretraining text"
    )


def describe_overlap(facts: OverlapFacts, write: WriteScore) -> str:
    """All counts, the score without the examples that overlap, and the models whose pretraining texts are unknown."""
    return " ".join(_sentences(facts, write))


def _sentences(facts: OverlapFacts, write: WriteScore) -> Iterator[str]:
    for name, split in facts.splits.items():
        yield _describe_split(name, split)
    score, scored = facts.scores.get("without_overlap"), facts.splits.get(facts.scored_split)
    if score and score.interval and (value := score.value(facts.metric)) is not None:
        low, high = map(write, score.interval)
        yield f"The {metric_name(facts.metric, facts.scored_split)} without them is {write(value)} ({low} to {high})."
    elif scored and scored.overlapping:
        yield f"All {facts.scored_split} examples overlap: there is no score without them."
    for model in facts.unknown:
        yield f"The pretraining texts of {model} are not known: the examples were not compared with them."


def _describe_split(name: str, split: SplitOverlapFact) -> str:
    verb = "shares" if split.overlapping == 1 else "share"
    notes = list[str]()
    if split.overlapping and len(split.overlapping_texts) > 1:
        notes += [f"{text} {count:,}" for text, count in split.overlapping_texts.items()]
    if split.too_short:
        notes.append(f"{split.too_short:,} too short to check")
    in_brackets = f" ({', '.join(notes)})" if notes else ""
    counted = f"{split.overlapping:,} of {split.examples:,} {name} examples {verb} 13 words in a row"
    return f"{counted} with a pretraining document{in_brackets}."
