"""fine-tuning's scores -> what they mean, in a sentence and in pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

from markupsafe import Markup

from infra.progress import duration
from infra.report.figures import Axis, Estimate, Series, intervals, line_chart, number, percent
from infra.report.pretraining import SHARE, Row
from infra.report.stages import Stages, StageView
from pipeline import json_lines

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
    """A fine-tuning task on the page."""

    name: str
    sentence: str
    verdict: str
    picture: Markup
    charts: list[Markup]
    confusion: Confusion | None
    samples: list[tuple[str, list[Row]]]  # what they are, each {"text", "note"}
    estimates: dict[str, Estimate]


def tasks(stages: Stages) -> list[Task]:
    """The finished fine-tuning tasks."""
    pretrain = stages.get("pretrain")
    return [_task(stage, pretrain) for stage in stages.starting("finetune-") if "scores" in stage.facts]


def _task(stage: StageView, pretrain: StageView) -> Task:
    scores = stage.facts["scores"]
    estimates = {key: _estimate(key, scores[key]) for key in _NAMES}
    return Task(
        name=stage.name.removeprefix("finetune-"),
        sentence=_task_sentence(stage),
        verdict=verdict(**estimates, pretraining=_pretraining(pretrain)),
        picture=intervals("Accuracy on the test part with 95 % intervals", list(estimates.values())),
        charts=_task_charts(stage.facts.get("variants", {})),
        confusion=_confusion(stage),
        samples=_task_samples(stage.facts.get("examples", [])),
        estimates=estimates,
    )


def _estimate(key: str, score: Row) -> Estimate:
    low, high = score["interval"]
    return Estimate(_NAMES[key], score["accuracy"], low, high, _LOOKS[key])


def _pretraining(stage: StageView) -> str:
    """How much of it there was, to begin a sentence with."""
    if stage.manifest is None:
        return "Pretraining"
    seconds = sum(row.get("seconds", 0.0) for row in stage.metrics)
    return f"Pretraining of {number(stage.counts.get('steps', 0))} steps ({duration(seconds)})"


def _task_sentence(stage: StageView) -> str:
    parts = ", ".join(
        f"{number(stage.counts[split])} {split}" for split in ("train", "dev", "test") if split in stage.counts
    )
    labels = stage.facts.get("labels", {}).get("train", {})
    text = f"{len(labels)} labels; {parts} examples." if labels else f"{parts} examples."
    trial = stage.facts.get("variants", {}).get("pretrained", {}).get("trial")
    if trial:
        text += (
            f" Learning rate {number(trial['learning_rate'])}, batch {trial['batch_size']}, the best on dev of "
            f"{trial['epochs']} epochs; the test part was looked at once."
        )
    scores = stage.facts["scores"]["pretrained"]
    notes = "".join(f" {note}." for note in stage.facts.get("notes", []))
    return f"{text} Macro-F1 {scores['macro_f1']:.3f}, Matthews' correlation {scores['matthews']:.3f}.{notes}"


def _task_charts(variants: Mapping[str, Row]) -> list[Markup]:
    def both(key: str, dots: bool) -> list[Series]:
        """A point an epoch where there are dots; (step, loss) pairs otherwise."""
        found = [(_NAMES[name], variants.get(name, {}).get(key, []), _LOOKS[name]) for name in ("pretrained", "random")]
        return [
            Series(name, list(enumerate(values, start=1)) if dots else list(map(tuple, values)), look, dots)
            for name, values, look in found
            if values
        ]

    charts = [
        ("Accuracy on dev", both("dev_accuracy", dots=True), Axis("of examples", **SHARE), "epoch"),
        ("Loss on dev", both("dev_loss", dots=True), Axis("nats"), "epoch"),
        ("Loss while fine-tuning", both("loss", dots=False), Axis("nats", include=(0,)), "step"),
    ]
    return [line_chart(title, series, axis, across=across) for title, series, axis, across in charts if series]


def _confusion(stage: StageView) -> Confusion | None:
    """From the predictions on the test part."""
    assert stage.location
    predictions = json_lines.read(stage.location / "predictions/pretrained.jsonl")
    if not predictions:
        return None
    pairs = Counter((row["label"], row["predicted"]) for row in predictions)
    labels = sorted({label for pair in pairs for label in pair})
    if len(labels) > _CONFUSION_LABELS:
        return None
    return Confusion(labels, [(true, [pairs[true, said] for said in labels]) for true in labels])


def _task_samples(examples: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    right: list[Row] = []
    wrong: list[Row] = []
    for row in examples:
        text = shorten(row["text"], _SAMPLE_CHARS, placeholder=" …")
        if row["label"] == row["predicted"]:
            right.append({"text": text, "note": row["label"]})
        else:
            wrong.append({"text": text, "note": f"is {row['label']}, was called {row['predicted']}"})
    return [(title, rows) for title, rows in (("Some it got right", right), ("Some it got wrong", wrong)) if rows]
