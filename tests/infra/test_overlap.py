"""The sentences about a task's overlap with the pretraining documents."""

from typing import Any

import pytest

from cloze.infra.overlap import describe_overlap, score_without_overlap
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts

NONE = {"examples": 5, "too_short": 0, "overlapping": 0, "overlapping_texts": {"question": 0, "context": 0}}
SOME = {"examples": 10570, "too_short": 3, "overlapping": 312, "overlapping_texts": {"question": 0, "context": 312}}
SCORES = {"all": {"f1": 0.881}, "without_overlap": {"f1": 0.872, "interval": [0.866, 0.878]}}


def facts(**given: Any) -> OverlapFacts:
    return OverlapFacts.model_validate({"metric": "f1", "scored_split": "dev", **given})


def written(value: float) -> str:
    return f"{100 * value:.1f}"


def test_the_counts_and_the_score_without_are_described() -> None:
    found = facts(splits={"dev": SOME, "test": NONE}, scores=SCORES)
    assert score_without_overlap(found, written) == (
        "87.2 without the 312 of 10,570 examples that share 13 words with the pretraining text"
    )
    assert describe_overlap(found, written) == (
        "312 of 10,570 dev examples share 13 words in a row with a pretraining document (question 0, context 312, 3 "
        "too short to check). 0 of 5 test examples share 13 words in a row with a pretraining document. The dev F1 "
        "without them is 87.2 (86.6 to 87.8)."
    )


@pytest.mark.parametrize(
    ("overlapping", "sentences"),
    [
        (0, "0 of 2 dev examples share 13 words in a row with a pretraining document."),
        (
            2,
            "2 of 2 dev examples share 13 words in a row with a pretraining document. "
            "All dev examples overlap: there is no score without them.",
        ),
    ],
)
def test_without_a_second_score_there_is_none_in_the_headline(overlapping: int, sentences: str) -> None:
    dev = {"examples": 2, "too_short": 0, "overlapping": overlapping, "overlapping_texts": {"text": overlapping}}
    found = facts(splits={"dev": dev}, scores={"all": {"f1": 0.5}})
    assert score_without_overlap(found, written) == ""
    assert describe_overlap(found, written) == sentences


def test_models_whose_texts_are_unknown_are_named() -> None:
    unknown = "The pretraining texts of bert are not known: the examples were not compared with them."
    assert describe_overlap(facts(unknown=["bert"]), written) == unknown
    assert describe_overlap(facts(splits={"dev": NONE}, unknown=["bert"]), written).endswith(unknown)
    assert describe_overlap(OverlapFacts(), written) == ""
