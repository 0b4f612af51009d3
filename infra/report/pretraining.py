"""pretraining's metrics and its checkpoint -> curves, and a paragraph that says what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from cloze.infra import heldout
from cloze.infra.display import duration
from cloze.infra.report.charts import Axis, Reference, Series, line_chart, number, percent
from cloze.infra.report.views import ExamplesView, PretrainView, Stages, StageView
from cloze.training.pretrain.facts import MetricsRow

SHARE: dict[str, Any] = {"tick": lambda value: f"{100 * value:g} %", "value": percent}


@dataclass(frozen=True)
class Section:
    sentence: str
    charts: list[Markup]


def curves(stages: Stages) -> Section | None:
    """From the metrics that there are by now; None before the first."""
    stage = stages.one(PretrainView)
    if not stage.metrics:
        return None
    objective = objective_of(stages)
    return Section(_sentence(stage, objective), _charts(stage.metrics, objective))


def _charts(rows: Sequence[MetricsRow], objective: str | None) -> list[Markup]:
    def both(key: str) -> list[Series]:
        return [
            Series("training", _points(rows, "train", key)),
            Series("held-out", _points(rows, "heldout", key), "b", dots=True),
        ]

    def training(key: str) -> list[Series]:
        return [Series("training", _points(rows, "train", key))]

    def baseline(key: str, label: str) -> Reference | None:
        """A level up to the last evaluation of each phase, at its end: phases have held-out examples of their own."""
        points = _points(rows, "heldout", f"{key}_baseline")
        last = [point for point, (_, after) in pairwise(points) if point[1] != after]
        return Reference(label, [*last, points[-1]]) if points else None

    unigram, pairs = "unigram model", _baseline_of_pairs(rows, objective)
    charts = [
        ("Loss, all of it", both("loss"), Axis("nats"), baseline("loss", "the baselines' sum" if pairs else unigram)),
        ("Learning rate", training("learning_rate"), Axis("per step", include=(0,)), None),
        ("Masked-LM loss", both("mlm_loss"), Axis("nats per masked piece"), baseline("mlm_loss", unigram)),
        (
            "Masked-LM accuracy",
            both("mlm_accuracy"),
            Axis("of masked pieces", **SHARE, include=(0,)),
            baseline("mlm_accuracy", unigram),
        ),
        ("Loss of pairs", both("nsp_loss"), Axis("nats per pair"), baseline("nsp_loss", "best constant answer")),
        ("Accuracy of pairs", both("nsp_accuracy"), Axis("of pairs", **SHARE), baseline("nsp_accuracy", pairs)),
        ("Sequences", training("sequences_per_second"), Axis("per second", include=(0,)), None),
        ("Real pieces, without padding", training("tokens_per_second"), Axis("per second", include=(0,)), None),
        ("Use of the peak (MFU)", training("mfu"), Axis("of the devices' FLOPS", **SHARE, include=(0,)), None),
    ]
    return [
        line_chart(title, series, axis, reference)
        for title, series, axis, reference in charts
        if any(line.points for line in series)
    ]


def _baseline_of_pairs(rows: Sequence[MetricsRow], objective: str | None) -> str:
    """The name of the answer that it always gives, where that is one for all phases; empty where there are no pairs."""
    names = {heldout.constant(row, objective) for row in rows if "pairs" in row}
    return names.pop() if len(names) == 1 else "the more frequent answer" if names else ""


def _points(rows: Sequence[MetricsRow], split: str, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get("split") == split and row.get(key) is not None]


def newest(rows: Sequence[MetricsRow], split: str) -> MetricsRow:
    """The last row of a split; empty when there is none."""
    return next((row for row in reversed(rows) if row.get("split") == split), {})


def _extent(phase: dict[str, Any]) -> str:
    """A phase's steps, or its share of the time."""
    return number(phase["steps"]) if phase["steps"] else f"{percent(phase['share'])} of the time"


def _sentence(stage: PretrainView, objective: str | None) -> str:
    rows = stage.metrics
    train = [row for row in rows if row.get("split") == "train"]
    evaluated = newest(rows, "heldout")
    parts = [f"{number(rows[-1]['step'])} steps"]
    if size := stage.config.get("global_batch_size"):
        parts[0] += f" of {number(size)} sequences"
    if phases := stage.config.get("phases"):
        if len(phases) > 1:
            parts[0] += ", " + ", then ".join(f"{_extent(one)} at length {one['max_seq_length']}" for one in phases)
        else:
            parts[0] += f" of {phases[0]['max_seq_length']} pieces"
    if budget := stage.config.get("budget"):
        parts.append(f"as many as fit into {budget}")
    if workers := stage.facts.workers:
        parts.append(f"{workers} worker{'s' if workers > 1 else ''}, {stage.facts.precision}".rstrip(", "))
    seconds = sum(row.get("seconds", 0.0) for row in train)
    if seconds:
        sequences = sum(row["sequences_per_second"] * row["seconds"] for row in train) / seconds
        pieces = sum(row["tokens_per_second"] * row["seconds"] for row in train) / seconds
        parts.append(
            f"{duration(seconds)} of computing at {number(round(sequences, 1))} sequences "
            f"or {number(round(pieces))} real pieces a second"
        )
    text = "; ".join(parts) + "."
    if evaluated:
        said = " ".join(["", *heldout.verdict(evaluated, objective)])
        text += said.replace(" %", "\N{NO-BREAK SPACE}%")
    return text


def objective_of(stages: Stages) -> str | None:
    """What the examples ask; None where they are gone."""
    return next((stage.config.get("objective") for stage in stages.of(ExamplesView) if stage.manifest), None)


def newest_heldout(stages: Stages) -> MetricsRow:
    """The newest held-out row of pretraining; empty when there is none."""
    return newest(stages.one(PretrainView).metrics, "heldout")


def shape(stage: StageView) -> str:
    """The model in words."""
    model = stage.config.get("model", {})
    words = [("num_hidden_layers", "layers"), ("hidden_size", "hidden"), ("num_attention_heads", "heads")]
    return ", ".join(f"{model[key]} {word}" for key, word in words if key in model)
