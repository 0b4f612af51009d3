"""Fine-tuning scores -> their interpretation in a sentence, charts and sample predictions."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

from markupsafe import Markup

from cloze.infra.display import duration
from cloze.infra.overlap import describe_overlap, score_without_overlap
from cloze.infra.report.charts import (
    PERCENT,
    Axis,
    Color,
    ScoreEstimate,
    Series,
    format_number,
    interval_chart,
    line_chart,
)
from cloze.infra.report.layers_table import LayersTable, layers_table
from cloze.infra.report.pretraining import percent_axis
from cloze.infra.report.trials_table import TrialsTable, trials_table
from cloze.infra.report.view_models import FinetuneView, OverlapView, PretrainView, Stages
from cloze.infra.score_names import baseline_name, is_correlation, metric_name
from cloze.training.finetune.manifest_facts import CurvesFact, FinetuneFacts, ScoreFact, ShownExample
from cloze.training.finetune.metrics.estimates import Estimate

_SPLITS = ("train", "dev", "test")
_MAX_CONFUSION_LABELS = 12  # a larger table is not readable
_MAX_SAMPLE_CHARS = 280
_LABELS = {"random": "random initialization", "majority": "majority class"}
_COLORS: dict[str, Color] = {"pretrained": "blue", "random": "orange"}


def compare_scores(scores: Mapping[str, ScoreEstimate], axis: Axis, pretraining: str = "Pretraining") -> str:
    """Says whether pretraining helps, and whether the model is better than the baselines that there are.

    Judged by the 95 % intervals. `scores` has "pretrained" first, `pretraining` is the subject of the sentence.
    """

    def interval(estimate: ScoreEstimate) -> str:
        low, high = map(axis.format_value, (estimate.low, estimate.high))
        return f"({low.removesuffix(PERCENT)} to {high.removesuffix(PERCENT)})"

    def with_interval(estimate: ScoreEstimate) -> str:
        return f"{axis.format_value(estimate.value)} {interval(estimate)}"

    pretrained, sentences = scores["pretrained"], list[str]()
    if random := scores.get("random"):
        compared = f"{with_interval(pretrained)} versus {with_interval(random)} from random initialization"
        if pretrained.low > random.high:
            sentences.append(f"{pretraining} helps: {compared}; the 95 % intervals do not overlap.")
        elif pretrained.high < random.low:
            sentences.append(f"{pretraining} hurts: {compared}; the 95 % intervals do not overlap.")
        else:
            sentences.append(f"{pretraining} shows no clear gain: {compared}; the 95 % intervals overlap.")
    for name, baseline in scores.items():
        if name not in ("pretrained", "random"):
            limits = "" if sentences else f" {interval(pretrained)}"
            above = "is above" if pretrained.low > baseline.value else "is not above"
            compared = f"{baseline_name(name)}, {with_interval(baseline)}"
            sentences.append(f"The pretrained model's interval{limits} {above} {compared}.")
    return " ".join(sentences)


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of the scored examples: a row per true label, a column per predicted label."""

    labels: list[str]
    rows: list[tuple[str, list[int]]]


class ComparedScore(NamedTuple):
    """The score of another variant or of a baseline, with its name in a chart and in a sentence."""

    label: str
    phrase: str
    score: str


@dataclass(frozen=True)
class TaskSection:
    """A fine-tuning task on the page; `stage` is the name of its stage, `metric` has the split: "test accuracy".

    `estimates` are the scores of the pretrained model, which is the first, and of the other variants and baselines.
    """

    stage: str
    name: str
    metric: str
    of_this_run: bool  # starts from the checkpoint of this run
    is_trained: bool  # otherwise the task scores the pretrained model as it is
    summary: str
    comparison: str  # empty without another variant or baseline
    overlap: str  # with the pretraining documents; empty before it is known
    score_without_overlap: str  # empty if it is the same
    score_charts: list[tuple[str, Markup]]  # (metric, chart): of the scored split, then of each extra file with labels
    charts: list[Markup]
    trials: TrialsTable | None  # with a single trial there is none
    layers: LayersTable | None  # of a probe
    confusion: ConfusionMatrix | None
    samples: list[tuple[str, list[dict[str, Any]]]]  # title, samples of {"text", "note"}
    estimates: dict[str, ScoreEstimate]
    axis: Axis  # of the metric

    @property
    def score(self) -> str:
        return self.axis.format_value(self.estimates["pretrained"].value)

    @property
    def compared(self) -> list[ComparedScore]:
        """The scores of the other variants and the baselines."""
        return [
            ComparedScore(
                estimate.label,
                estimate.label if name == "random" else baseline_name(name),
                self.axis.format_value(estimate.value),
            )
            for name, estimate in self.estimates.items()
            if name != "pretrained"
        ]


def task_sections(stages: Stages) -> list[TaskSection]:
    """Returns the finished fine-tuning tasks."""
    pretrain = stages.single(PretrainView)
    overlaps = {stage.task: stage for stage in stages.of_type(OverlapView)}
    return [
        _task_section(stage, pretrain, overlaps.get(stage.task, OverlapView("", "not part of this run")))
        for stage in stages.of_type(FinetuneView)
        if stage.facts.metric_scores
    ]


def _task_section(stage: FinetuneView, pretrain: PretrainView, overlap: OverlapView) -> TaskSection:
    facts, axis = stage.facts, _metric_axis(stage.facts.metric)
    labels = {name: _label(name) for name in facts.variants}
    scores = {facts.scored_split: facts.metric_scores, **facts.extra_metric_scores}
    all_estimates = {split: _estimates(found) for split, found in scores.items()}
    metric, estimates = f"{facts.scored_split} {metric_name(facts.metric)}", all_estimates[facts.scored_split]
    of_this_run = pretrain.name in stage.upstream
    return TaskSection(
        stage=stage.name,
        name=stage.task,
        metric=metric,
        of_this_run=of_this_run,
        is_trained=any(variant.loss for variant in facts.variants.values()),
        summary=_summary(stage),
        comparison=compare_scores(estimates, axis, _pretraining_extent(pretrain) if of_this_run else "Pretraining"),
        overlap=describe_overlap(overlap.facts, axis.format_value),
        score_without_overlap=score_without_overlap(overlap.facts, axis.format_value),
        score_charts=[
            _score_chart(f"{split} {metric_name(facts.metric)}", found, axis) for split, found in all_estimates.items()
        ],
        charts=_charts(facts),
        trials=trials_table(facts, metric_name(facts.metric), axis, labels),
        layers=layers_table(facts, metric_name(facts.metric), axis, labels),
        confusion=_confusion_matrix(stage.predictions) if facts.labels else None,
        samples=_sample_predictions(facts.examples),
        estimates=estimates,
        axis=axis,
    )


def _estimates(scores: Mapping[str, Estimate]) -> dict[str, ScoreEstimate]:
    return {name: ScoreEstimate(_label(name), *score, _COLORS.get(name, "grey")) for name, score in scores.items()}


def _score_chart(metric: str, estimates: Mapping[str, ScoreEstimate], axis: Axis) -> tuple[str, Markup]:
    title = _capitalized(metric)
    return title, interval_chart(f"{title} with 95 % confidence intervals", list(estimates.values()), axis)


def _label(variant: str) -> str:
    return _LABELS.get(variant, variant.replace("_", " "))


def _metric_axis(metric: str) -> Axis:
    """Returns the axis of a metric's chart, and how its values are written."""
    return Axis("", format_value=lambda value: f"{value:.3f}") if is_correlation(metric) else percent_axis("")


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pretraining_extent(stage: PretrainView) -> str:
    """Returns for example "Pretraining for 640 steps (49 s)"."""
    if stage.manifest is None:
        return "Pretraining"
    seconds = sum(row.get("seconds", 0.0) for row in stage.metrics)
    return f"Pretraining for {format_number(stage.counts.get('steps', 0))} steps ({duration(seconds)})"


def _summary(stage: FinetuneView) -> str:
    extra = stage.facts.extra_scores
    splits = ", ".join(
        f"{format_number(stage.counts[split])} {split}" for split in (*_SPLITS, *extra) if stage.counts.get(split)
    )
    labels = stage.facts.labels.get("train", {})
    text = f"{len(labels)} labels; {splits} examples." if labels else f"{splits} examples."
    if (variant := stage.facts.variants.get("pretrained")) and (trial := variant.trial):
        text += (
            f" Learning rate {format_number(trial.learning_rate)}, batch size {trial.batch_size}, {trial.epochs} "
            f"epoch{'s' if trial.epochs > 1 else ''}"
            f"{f', stopped after epoch {stopped}' if (stopped := variant.stopped_epoch) else ''}; "
        )
        text += (
            "the best epoch on the dev split is evaluated once on the test split."
            if stage.facts.scored_split == "test"
            else "the scores are those of the best epoch on the dev split, as there is no test split with labels."
        )
    values = _other_scores(stage.facts.scores["pretrained"], stage.facts.metric)
    notes = "".join(f" {note}." for note in stage.facts.notes)
    return f"{text}{f' {values}.' if values else ''}{_chance(stage.facts)}{_published(stage.facts)}{notes}"


def _chance(facts: FinetuneFacts) -> str:
    """What a contrastive task's texts are compared with, and what a random order would have; empty for other tasks."""
    if (value := facts.chance.get(facts.metric)) is None:
        return ""
    return (
        f" The second text of each pair is looked for among the {format_number(facts.candidates)} of the "
        f"{facts.scored_split} split: in random order {metric_name(facts.metric)} is "
        f"{_metric_axis(facts.metric).format_value(value)}."
    )


def _published(facts: FinetuneFacts) -> str:
    """Returns the scores that BERT's paper reports on the task's benchmark; empty without any."""
    scores = list[str]()
    for one in facts.published:
        models = {"BERT-base": one.base, "BERT-large": one.large}
        write = _metric_axis(one.metric).format_value
        values = " and ".join(f"{write(value)} with {model}" for model, value in models.items() if value is not None)
        scores.append(f"{one.benchmark} {one.split} {metric_name(one.metric)} {values}")
    sources = ", ".join(dict.fromkeys(one.source for one in facts.published))
    return f" The BERT paper reports: {'; '.join(scores)} ({sources})." if scores else ""


def _other_scores(score: ScoreFact, metric: str) -> str:
    """Returns for example "Macro-F1 0.812, Matthews correlation 0.745": the scores besides the task's metric."""
    numbers = {name: value for name, value in score.plain.items() if isinstance(value, float) and name != metric}
    return _capitalized(", ".join(f"{metric_name(name)} {value:.3f}" for name, value in numbers.items()))


def _charts(facts: FinetuneFacts) -> list[Markup]:
    def series(points: Callable[[CurvesFact], Sequence[tuple[float, float]]], markers: bool) -> list[Series]:
        curves = [(name, points(variant)) for name, variant in facts.variants.items()]
        return [Series(_label(name), values, _COLORS.get(name, "grey"), markers) for name, values in curves if values]

    metric = series(lambda curves: _by_epoch(curves.dev(facts.metric)), markers=True)
    metric_axis = _metric_axis(facts.metric)._replace(title="of dev examples" if facts.metric == "accuracy" else "")
    loss = series(lambda curves: _by_epoch(curves.dev_loss), markers=True)
    train_loss = series(lambda curves: curves.loss, markers=False)
    unit = "mean squared error" if facts.metric in ("pearson", "spearman") else "nats"
    by_epoch = " by epoch" if facts.scored_split == "dev" else ""  # not the final score, which is of dev as well
    charts = [
        (f"Dev {metric_name(facts.metric)}{by_epoch}", metric, metric_axis, "epoch"),
        ("Dev loss", loss, Axis(unit), "epoch"),
        ("Training loss", train_loss, Axis(unit, include=(0,)), "step"),
    ]
    return [line_chart(title, lines, axis, x_title=x_title) for title, lines, axis, x_title in charts if lines]


def _by_epoch(values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(epoch, math.nan if value is None else value) for epoch, value in enumerate(values, start=1)]


def _confusion_matrix(predictions: Sequence[dict[str, Any]]) -> ConfusionMatrix | None:
    """Counts the predictions on the scored split; None without predictions, with too many labels, or where an example
    has several labels."""
    pairs = [(row["label"], row["predicted"]) for row in predictions]
    if not pairs or not all(isinstance(label, str) for pair in pairs for label in pair):
        return None
    counts = Counter(pairs)
    labels = sorted({label for pair in counts for label in pair})
    if len(labels) > _MAX_CONFUSION_LABELS:
        return None
    return ConfusionMatrix(labels, [(true, [counts[true, predicted] for predicted in labels]) for true in labels])


def _sample_predictions(examples: Sequence[ShownExample]) -> list[tuple[str, list[dict[str, Any]]]]:
    correct: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for example in examples:
        text = shorten(example.text, _MAX_SAMPLE_CHARS, placeholder=" …")
        label, predicted = _shown(example.label), _shown(example.predicted)
        if example.is_correct:
            correct.append({"text": text, "note": label})
        else:
            wrong.append({"text": text, "note": f"label: {label}; predicted: {predicted}"})
    of_numbers = any(isinstance(example.predicted, float) for example in examples)  # never quite equal
    titles = ("Exact predictions", "Sample predictions") if of_numbers else ("Correct predictions", "Wrong predictions")
    return [(title, rows) for title, rows in zip(titles, (correct, wrong), strict=True) if rows]


def _shown(answer: Any) -> str:
    """A label or prediction as text: a word, a number, or several."""
    if isinstance(answer, list):
        text = ", ".join(map(_shown, answer))
    elif isinstance(answer, int | float):
        text = format_number(answer)
    else:
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return shorten(text, _MAX_SAMPLE_CHARS, placeholder=" …") or "(none)"
