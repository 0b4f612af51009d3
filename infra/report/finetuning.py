"""fine-tuning's scores -> what they mean, in a sentence and in pictures."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from markupsafe import Markup

from cloze.infra.display import duration
from cloze.infra.report.charts import Axis, Estimate, Series, intervals, line_chart, number, percent
from cloze.infra.report.pretraining import SHARE
from cloze.infra.report.views import FinetuneView, PretrainView, Stages
from cloze.training.finetune.facts import CurvesFact, ShownExample

_CONFUSION_LABELS = 12  # a table of more would not be read
_SAMPLE_CHARS = 280
_NAMES = {"pretrained": "pretrained", "random": "random weights", "majority": "majority class"}
_LOOKS = {"pretrained": "a", "random": "b", "majority": "quiet"}


def verdict(pretrained: Estimate, random: Estimate, majority: Estimate, pretraining: str = "Pretraining") -> str:
    """What three scores mean, in one sentence or two: said from the intervals, not from the middle values.

    `pretraining` begins the sentence: how much of it there was.
    """

    def figures(estimate: Estimate) -> str:
        return f"{percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"

    pair = f"{figures(pretrained)} against {figures(random)} from random weights"
    if pretrained.low > random.high:
        said = f"{pretraining} helps: {pair}; the 95 % intervals do not overlap."
    elif pretrained.high < random.low:
        said = f"{pretraining} hurts: {pair}; the 95 % intervals do not overlap."
    else:
        said = f"{pretraining} brings little over random weights: {pair}; the 95 % intervals overlap."
    above = "lies" if pretrained.low > majority.value else "does not lie"
    return f"{said} The pretrained model's interval {above} above the majority class, {figures(majority)}."


@dataclass(frozen=True)
class Confusion:
    """How often a label was called what: rows are true labels, columns what was said."""

    labels: list[str]
    rows: list[tuple[str, list[int]]]


@dataclass(frozen=True)
class Task:
    """A fine-tuning task on the page; `stage` is that which trained it."""

    stage: str
    name: str
    sentence: str
    verdict: str
    picture: Markup
    charts: list[Markup]
    confusion: Confusion | None
    samples: list[tuple[str, list[dict[str, Any]]]]  # what they are, each {"text", "note"}
    estimates: dict[str, Estimate]


def tasks(stages: Stages) -> list[Task]:
    """The finished fine-tuning tasks whose score is an accuracy."""
    pretrain = stages.one(PretrainView)
    return [_task(stage, pretrain) for stage in stages.of(FinetuneView) if stage.facts.accuracies]


def _task(stage: FinetuneView, pretrain: PretrainView) -> Task:
    scores = stage.facts.accuracies
    estimates = {key: Estimate(name, *scores[key], _LOOKS[key]) for key, name in _NAMES.items()}
    return Task(
        stage=stage.name,
        name=stage.task,
        sentence=_task_sentence(stage),
        verdict=verdict(**estimates, pretraining=_pretraining(pretrain)),
        picture=intervals("Accuracy on the test part with 95 % intervals", list(estimates.values())),
        charts=_task_charts(stage.facts.variants),
        confusion=_confusion(stage.predictions),
        samples=_task_samples(stage.facts.examples),
        estimates=estimates,
    )


def _pretraining(stage: PretrainView) -> str:
    """How much of it there was, to begin a sentence with."""
    if stage.manifest is None:
        return "Pretraining"
    seconds = sum(row.get("seconds", 0.0) for row in stage.metrics)
    return f"Pretraining of {number(stage.counts.get('steps', 0))} steps ({duration(seconds)})"


def _task_sentence(stage: FinetuneView) -> str:
    parts = ", ".join(
        f"{number(stage.counts[split])} {split}" for split in ("train", "dev", "test") if split in stage.counts
    )
    labels = stage.facts.labels.get("train", {})
    text = f"{len(labels)} labels; {parts} examples." if labels else f"{parts} examples."
    if (variant := stage.facts.variants.get("pretrained")) and (trial := variant.trial):
        text += (
            f" Learning rate {number(trial.learning_rate)}, batch {trial.batch_size}, the best on dev of "
            f"{trial.epochs} epochs; the test part was looked at once."
        )
    score = stage.facts.scores["pretrained"]
    others = (("Macro-F1", score.macro_f1), ("Matthews' correlation", score.matthews))
    said = ", ".join(f"{name} {value:.3f}" for name, value in others if value is not None)
    notes = "".join(f" {note}." for note in stage.facts.notes)
    return f"{text}{f' {said}.' if said else ''}{notes}"


def _task_charts(variants: Mapping[str, CurvesFact]) -> list[Markup]:
    def both(points: Callable[[CurvesFact], Sequence[tuple[float, float]]], dots: bool) -> list[Series]:
        found = [(name, points(variants[name])) for name in ("pretrained", "random") if name in variants]
        return [Series(_NAMES[name], values, _LOOKS[name], dots) for name, values in found if values]

    charts = [
        (
            "Accuracy on dev",
            both(lambda curves: _by_epoch(curves.dev_accuracy), dots=True),
            Axis("of examples", **SHARE),
            "epoch",
        ),
        ("Loss on dev", both(lambda curves: _by_epoch(curves.dev_loss), dots=True), Axis("nats"), "epoch"),
        ("Loss while fine-tuning", both(lambda curves: curves.loss, dots=False), Axis("nats", include=(0,)), "step"),
    ]
    return [line_chart(title, series, axis, across=across) for title, series, axis, across in charts if series]


def _by_epoch(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(epoch, math.nan if value is None else value) for epoch, value in enumerate(values, start=1)]


def _confusion(predictions: Sequence[dict[str, Any]]) -> Confusion | None:
    """From the predictions on the test part."""
    if not predictions:
        return None
    pairs = Counter((row["label"], row["predicted"]) for row in predictions)
    labels = sorted({label for pair in pairs for label in pair})
    if len(labels) > _CONFUSION_LABELS:
        return None
    return Confusion(labels, [(true, [pairs[true, said] for said in labels]) for true in labels])


def _task_samples(examples: Sequence[ShownExample]) -> list[tuple[str, list[dict[str, Any]]]]:
    right: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for example in examples:
        text = shorten(example.text, _SAMPLE_CHARS, placeholder=" …")
        if example.right:
            right.append({"text": text, "note": example.label})
        else:
            wrong.append({"text": text, "note": f"is {example.label}, was called {example.predicted}"})
    return [(title, rows) for title, rows in (("Some it got right", right), ("Some it got wrong", wrong)) if rows]
