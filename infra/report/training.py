"""pretraining and fine-tuning -> curves, fill-ins and scores, with the sentences that say what they mean."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, prod
from typing import Any

from markupsafe import Markup

from infra.progress import duration
from infra.report.figures import Axis, Estimate, Series, intervals, line_chart, number, percent
from infra.report.stages import Stages, StageView

Row = Mapping[str, Any]

_CHANCE_LOSS, _CHANCE = log(2), 0.5  # of the next-sentence coin
_CONFUSION_LABELS = 12
_NAMES = {"pretrained": "pretrained", "random": "random weights", "majority": "majority class"}
_LOOKS = {"pretrained": "a", "random": "b", "majority": "quiet"}
_SHARE: dict[str, Any] = {"tick": lambda value: f"{100 * value:g} %", "value": percent}


@dataclass(frozen=True)
class Section:
    sentence: str
    charts: list[Markup]


def metrics(stage: StageView) -> list[Row]:
    """The rows of metrics that pretraining has written so far; also while it runs."""
    file = stage.location / "metrics.jsonl" if stage.location else None
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def curves(stage: StageView) -> Section | None:
    rows = metrics(stage)
    if not rows:
        return None
    return Section(_sentence(stage, rows), _charts(rows))


def _charts(rows: Sequence[Row]) -> list[Markup]:
    def both(key: str) -> list[Series]:
        return [
            Series("training", _points(rows, "train", key)),
            Series("held-out", _points(rows, "heldout", key), "b", dots=True),
        ]

    def training(key: str) -> list[Series]:
        return [Series("training", _points(rows, "train", key))]

    charts = [
        ("Loss, both objectives together", both("loss"), Axis("nats"), None),
        ("Learning rate", training("learning_rate"), Axis("per step", include=(0,)), None),
        ("Masked-LM loss", both("mlm_loss"), Axis("nats per masked piece"), None),
        ("Masked-LM accuracy", both("mlm_accuracy"), Axis("of masked pieces", **_SHARE, include=(0,)), None),
        ("Next-sentence loss", both("nsp_loss"), Axis("nats per pair"), (_CHANCE_LOSS, "a coin")),
        ("Next-sentence accuracy", both("nsp_accuracy"), Axis("of pairs", **_SHARE), (_CHANCE, "a coin")),
        ("Sequences", training("sequences_per_second"), Axis("per second", include=(0,)), None),
        ("Real pieces, without padding", training("tokens_per_second"), Axis("per second", include=(0,)), None),
    ]
    return [
        line_chart(title, series, axis, reference)
        for title, series, axis, reference in charts
        if any(line.points for line in series)
    ]


def _points(rows: Sequence[Row], split: str, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get("split") == split and row.get(key) is not None]


def last(rows: Sequence[Row], split: str) -> Row:
    return next((row for row in reversed(rows) if row.get("split") == split), {})


def _sentence(stage: StageView, rows: Sequence[Row]) -> str:
    train = [row for row in rows if row.get("split") == "train"]
    newest = last(rows, "heldout")
    parts = [f"{number(rows[-1]['step'])} steps"]
    if size := stage.config.get("global_batch_size"):
        parts[0] += f" of {number(size)} sequences"
    if workers := stage.facts.get("workers"):
        parts.append(f"{workers} worker{'s' if workers > 1 else ''}, {stage.facts.get('precision', '')}".rstrip(", "))
    seconds = sum(row.get("seconds", 0.0) for row in train)
    if seconds:
        sequences = sum(row["sequences_per_second"] * row["seconds"] for row in train) / seconds
        pieces = sum(row["tokens_per_second"] * row["seconds"] for row in train) / seconds
        parts.append(
            f"{duration(seconds)} of computing at {number(round(sequences, 1))} sequences "
            f"or {number(round(pieces))} real pieces a second"
        )
    text = "; ".join(parts) + "."
    if newest:
        text += (
            f" Of documents it was never trained on the model names {percent(newest['mlm_accuracy'])} of the masked "
            f"pieces (loss {newest['mlm_loss']:.3f}) and tells the next sentence from a random one in "
            f"{percent(newest['nsp_accuracy'])} of pairs, where a coin has 50 % (loss {newest['nsp_loss']:.3f})."
        )
    return text


def heldout(stages: Stages) -> Row:
    """The newest held-out row of pretraining; empty when there is none."""
    return last(metrics(stages.get("pretrain")), "heldout")


def weights(stage: StageView) -> int:
    """How many weights the final checkpoint holds, from the header of its file; 0 when there is none."""
    fact = stage.facts.get("checkpoint")
    if stage.location is None or not fact:
        return 0
    with (stage.location / fact["path"] / "model.safetensors").open() as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def shape(stage: StageView) -> str:
    """The model in words."""
    model = stage.config.get("model", {})
    words = [("num_hidden_layers", "layers"), ("hidden_size", "hidden"), ("num_attention_heads", "heads")]
    return ", ".join(f"{model[key]} {word}" for key, word in words if key in model)


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
    looks = {"pretrained": "a", "random": "b", "majority": "quiet"}
    names = {"pretrained": "pretrained", "random": "random weights", "majority": "majority class"}
    estimates = {
        key: Estimate(names[key], scores[key]["accuracy"], *scores[key]["interval"], look)
        for key, look in looks.items()
    }
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


def _pretraining(stage: StageView) -> str:
    """How much of it there was, to begin a sentence with."""
    if stage.manifest is None:
        return "Pretraining"
    seconds = sum(row.get("seconds", 0.0) for row in metrics(stage))
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
            f" Learning rate {number(trial['learning_rate'])}, batch {trial['batch_size']}, {trial['epochs']} epochs"
        )
        text += ", the epoch that was best on dev; the test part was looked at once." if trial else "."
    scores = stage.facts["scores"]["pretrained"]
    return f"{text} Macro-F1 {scores['macro_f1']:.3f}, Matthews' correlation {scores['matthews']:.3f}."


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
        ("Accuracy on dev", both("dev_accuracy", dots=True), Axis("of examples", **_SHARE), "epoch"),
        ("Loss on dev", both("dev_loss", dots=True), Axis("nats"), "epoch"),
        ("Loss while fine-tuning", both("loss", dots=False), Axis("nats", include=(0,)), "step"),
    ]
    return [line_chart(title, series, axis, across=across) for title, series, axis, across in charts if series]


def _confusion(stage: StageView) -> Confusion | None:
    """From the predictions on the test part."""
    assert stage.location
    file = stage.location / "predictions/pretrained.jsonl"
    if not file.exists():
        return None
    pairs = Counter((row["label"], row["predicted"]) for row in map(json.loads, file.read_text().splitlines()))
    labels = sorted({label for pair in pairs for label in pair})
    if len(labels) > _CONFUSION_LABELS:
        return None
    return Confusion(labels, [(true, [pairs[true, said] for said in labels]) for true in labels])


def _task_samples(examples: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    right = [{"text": row["text"], "note": row["label"]} for row in examples if row["label"] == row["predicted"]]
    wrong = [
        {"text": row["text"], "note": f"is {row['label']}, was called {row['predicted']}"}
        for row in examples
        if row["label"] != row["predicted"]
    ]
    return [(title, rows) for title, rows in (("Some it got right", right), ("Some it got wrong", wrong)) if rows]
