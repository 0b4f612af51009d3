"""Scores by number of labels -> learning curves, and how many labels the others need for what one reaches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from cloze.infra.score_names import is_correlation, metric_name


class LabelsNeeded(NamedTuple):
    """The number of labels with which a curve reaches a score."""

    relation: Literal["about", "at most", "more than"]
    labels: int

    def __str__(self) -> str:
        return f"{self.relation} {self.labels:,}"


@dataclass(frozen=True)
class Curve:
    """The scores of one kind of model: number of labels -> a score for each seed."""

    name: str
    scores: Mapping[int, Sequence[float]]

    def mean(self, labels: int) -> float:
        return fmean(self.scores[labels])

    def spread(self, labels: int) -> float | None:
        """The standard deviation over the seeds, of a sample; None with one seed."""
        return stdev(self.scores[labels]) if len(self.scores[labels]) > 1 else None

    def labels_needed(self, score: float) -> LabelsNeeded:
        """The first number of labels at which the mean reaches a score, on a straight line over the logarithm of the
        number between two that were measured."""
        means = [(labels, self.mean(labels)) for labels in sorted(self.scores)]
        if means[0][1] >= score:
            return LabelsNeeded("at most", means[0][0])
        for (fewer, low), (more, high) in pairwise(means):
            if high >= score:
                fraction = (score - low) / (high - low)
                return LabelsNeeded("about", round(fewer * (more / fewer) ** fraction))
        return LabelsNeeded("more than", means[-1][0])


@dataclass(frozen=True)
class LearningCurves:
    """The curves of a task; the first is that of the checkpoint whose worth is asked for."""

    run: str
    task: str
    metric: str
    split: str  # whose scores these are
    train_rows: int  # labelled rows of the task
    labels: Sequence[int]  # ascending
    seeds: int
    curves: Sequence[Curve]
    majority: float | None  # the score of the most frequent class

    @property
    def metric_name(self) -> str:
        return metric_name(self.metric, self.split)

    def written(self, score: float) -> str:
        """A score as the report writes it."""
        return f"{score:.3f}" if is_correlation(self.metric) else f"{100 * score:.1f} %"

    def cell(self, curve: Curve, labels: int) -> str:
        """The mean of a curve, and its spread."""
        spread = curve.spread(labels)
        text = self.written(curve.mean(labels))
        return text if spread is None else f"{text} ± {self.written(spread).removesuffix(' %')}"

    def saved(self) -> Iterator[tuple[int, float, dict[str, LabelsNeeded]]]:
        """For each number of labels: what the first curve reaches, and how many the others need for as much."""
        first, *others = self.curves
        for labels in self.labels:
            score = first.mean(labels)
            yield labels, score, {other.name: other.labels_needed(score) for other in others}

    def sentences(self) -> list[str]:
        """What pretraining saved, in labels."""
        found = list[str]()
        for labels, score, needed in self.saved():
            others = ", ".join(f"{name} {number}" for name, number in needed.items())
            found.append(
                f"With {labels:,} labels {self.curves[0].name} reaches {self.written(score)}; labels needed for as "
                f"much: {others}."
            )
        return found

    def plain(self) -> dict[str, Any]:
        """The curves as plain JSON."""
        return {
            "run": self.run,
            "task": self.task,
            "metric": self.metric,
            "scored_split": self.split,
            "train_rows": self.train_rows,
            "labels": list(self.labels),
            "seeds": list(range(self.seeds)),
            "curves": {
                curve.name: [
                    {
                        "labels": labels,
                        "scores": list(curve.scores[labels]),
                        "mean": curve.mean(labels),
                        "standard_deviation": curve.spread(labels),
                    }
                    for labels in self.labels
                ]
                for curve in self.curves
            },
            "majority": self.majority,
            "saved": [
                {
                    "labels": labels,
                    "score": score,
                    "needed": {name: number._asdict() for name, number in needed.items()},
                }
                for labels, score, needed in self.saved()
            ],
        }
