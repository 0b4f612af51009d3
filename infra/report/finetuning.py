"""Fine-tuning scores -> their interpretation in a sentence, charts and sample predictions."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from markupsafe import Markup

from cloze.infra.display import duration
from cloze.infra.report.charts import (
    Axis,
    Color,
    ScoreEstimate,
    Series,
    format_number,
    format_percent,
    interval_chart,
    line_chart,
)
from cloze.infra.report.pretraining import percent_axis
from cloze.infra.report.view_models import FinetuneView, PretrainView, Stages
from cloze.training.finetune.manifest_facts import CurvesFact, ShownExample

_MAX_CONFUSION_LABELS = 12  # a larger table is not readable
_MAX_SAMPLE_CHARS = 280
_LABELS = {"pretrained": "pretrained", "random": "random initialization", "majority": "majority class"}
_COLORS: dict[str, Color] = {"pretrained": "blue", "random": "orange", "majority": "grey"}


def compare_scores(
    pretrained: ScoreEstimate, random: ScoreEstimate, majority: ScoreEstimate, pretraining: str = "Pretraining"
) -> str:
    """Says whether pretraining helps, judged by whether the 95 % intervals overlap. `pretraining` is the subject."""

    def with_interval(estimate: ScoreEstimate) -> str:
        return f"{format_percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"

    scores = f"{with_interval(pretrained)} versus {with_interval(random)} from random initialization"
    if pretrained.low > random.high:
        text = f"{pretraining} helps: {scores}; the 95 % intervals do not overlap."
    elif pretrained.high < random.low:
        text = f"{pretraining} hurts: {scores}; the 95 % intervals do not overlap."
    else:
        text = f"{pretraining} shows no clear gain: {scores}; the 95 % intervals overlap."
    above = "is" if pretrained.low > majority.value else "is not"
    return f"{text} The pretrained model's interval {above} above the majority class, {with_interval(majority)}."


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of test examples: a row per true label, a column per predicted label."""

    labels: list[str]
    rows: list[tuple[str, list[int]]]


@dataclass(frozen=True)
class TaskSection:
    """A fine-tuning task on the page; `stage` is the name of its stage."""

    stage: str
    name: str
    summary: str
    comparison: str
    score_chart: Markup
    charts: list[Markup]
    confusion: ConfusionMatrix | None
    samples: list[tuple[str, list[dict[str, Any]]]]  # title, samples of {"text", "note"}
    estimates: dict[str, ScoreEstimate]  # pretrained, random, majority


def task_sections(stages: Stages) -> list[TaskSection]:
    """Returns the finished fine-tuning tasks that are scored by accuracy."""
    pretrain = stages.single(PretrainView)
    return [_task_section(stage, pretrain) for stage in stages.of_type(FinetuneView) if stage.facts.accuracies]


def _task_section(stage: FinetuneView, pretrain: PretrainView) -> TaskSection:
    scores = stage.facts.accuracies
    estimates = {key: ScoreEstimate(label, *scores[key], _COLORS[key]) for key, label in _LABELS.items()}
    return TaskSection(
        stage=stage.name,
        name=stage.task,
        summary=_summary(stage),
        comparison=compare_scores(**estimates, pretraining=_pretraining_extent(pretrain)),
        score_chart=interval_chart("Test accuracy with 95 % confidence intervals", list(estimates.values())),
        charts=_charts(stage.facts.variants),
        confusion=_confusion_matrix(stage.predictions),
        samples=_sample_predictions(stage.facts.examples),
        estimates=estimates,
    )


def _pretraining_extent(stage: PretrainView) -> str:
    """Returns for example "Pretraining for 640 steps (49 s)"."""
    if stage.manifest is None:
        return "Pretraining"
    seconds = sum(row.get("seconds", 0.0) for row in stage.metrics)
    return f"Pretraining for {format_number(stage.counts.get('steps', 0))} steps ({duration(seconds)})"


def _summary(stage: FinetuneView) -> str:
    splits = ", ".join(
        f"{format_number(stage.counts[split])} {split}" for split in ("train", "dev", "test") if split in stage.counts
    )
    labels = stage.facts.labels.get("train", {})
    text = f"{len(labels)} labels; {splits} examples." if labels else f"{splits} examples."
    if (variant := stage.facts.variants.get("pretrained")) and (trial := variant.trial):
        text += (
            f" Learning rate {format_number(trial.learning_rate)}, batch size {trial.batch_size}, {trial.epochs} "
            "epochs; the best epoch on the dev split is evaluated once on the test split."
        )
    score = stage.facts.scores["pretrained"]
    metrics = (("Macro-F1", score.macro_f1), ("Matthews correlation", score.matthews))
    values = ", ".join(f"{name} {value:.3f}" for name, value in metrics if value is not None)
    notes = "".join(f" {note}." for note in stage.facts.notes)
    return f"{text}{f' {values}.' if values else ''}{notes}"


def _charts(variants: Mapping[str, CurvesFact]) -> list[Markup]:
    def series(points: Callable[[CurvesFact], Sequence[tuple[float, float]]], markers: bool) -> list[Series]:
        curves = [(name, points(variants[name])) for name in ("pretrained", "random") if name in variants]
        return [Series(_LABELS[name], values, _COLORS[name], markers) for name, values in curves if values]

    accuracy = series(lambda curves: _by_epoch(curves.dev_accuracy), markers=True)
    loss = series(lambda curves: _by_epoch(curves.dev_loss), markers=True)
    train_loss = series(lambda curves: curves.loss, markers=False)
    charts = [
        ("Dev accuracy", accuracy, percent_axis("of dev examples"), "epoch"),
        ("Dev loss", loss, Axis("nats"), "epoch"),
        ("Training loss", train_loss, Axis("nats", include=(0,)), "step"),
    ]
    return [line_chart(title, lines, axis, x_title=x_title) for title, lines, axis, x_title in charts if lines]


def _by_epoch(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(epoch, math.nan if value is None else value) for epoch, value in enumerate(values, start=1)]


def _confusion_matrix(predictions: Sequence[dict[str, Any]]) -> ConfusionMatrix | None:
    """Counts the predictions on the test split; None without predictions or with too many labels."""
    if not predictions:
        return None
    counts = Counter((row["label"], row["predicted"]) for row in predictions)
    labels = sorted({label for pair in counts for label in pair})
    if len(labels) > _MAX_CONFUSION_LABELS:
        return None
    return ConfusionMatrix(labels, [(true, [counts[true, predicted] for predicted in labels]) for true in labels])


def _sample_predictions(examples: Sequence[ShownExample]) -> list[tuple[str, list[dict[str, Any]]]]:
    correct: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for example in examples:
        text = shorten(example.text, _MAX_SAMPLE_CHARS, placeholder=" …")
        if example.is_correct:
            correct.append({"text": text, "note": example.label})
        else:
            wrong.append({"text": text, "note": f"label: {example.label}; predicted: {example.predicted}"})
    return [(title, rows) for title, rows in (("Correct predictions", correct), ("Wrong predictions", wrong)) if rows]
