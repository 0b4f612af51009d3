"""The facts in the manifest of a task's overlap with the pretraining documents, which the report and status read."""

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts
from cloze.training.finetune.manifest_facts import ScoreFact


class SplitOverlapFact(Fact):
    """The examples of a split. An example overlaps if one of its texts shares 13 consecutive words with a document."""

    examples: int
    too_short: int  # all texts have fewer than 13 words
    overlapping: int
    overlapping_texts: dict[str, int]  # examples by the name of the overlapping text, such as context


class OverlapFacts(Facts):
    """`splits` is empty if no pretraining document is known. `scores` has "all" and, if some examples of the scored
    split overlap and some do not, "without_overlap"."""

    splits: dict[str, SplitOverlapFact] = Field(default={})
    documents: list[str] = Field(default=[])  # the outputs of dedup: "dedup/FINGERPRINT"
    unknown: list[str] = Field(default=[])  # names of models whose pretraining texts are not known
    metric: str = "accuracy"
    scored_split: str = "test"
    scores: dict[str, ScoreFact] = Field(default={})
