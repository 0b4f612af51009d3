"""Pretraining metrics -> learning curves, and a summary of the training and of the held-out evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from cloze.infra import heldout
from cloze.infra.display import duration
from cloze.infra.report.charts import (
    Axis,
    ReferenceLine,
    Series,
    format_number,
    format_percent,
    format_scientific,
    line_chart,
)
from cloze.infra.report.view_models import ExamplesView, PretrainView, Stages, StageView
from cloze.training.pretrain.manifest_facts import MetricsRow


@dataclass(frozen=True)
class PretrainingSection:
    paragraphs: list[str]
    charts: list[Markup]


def pretraining_section(stages: Stages) -> PretrainingSection | None:
    """Returns the section, also of a training in progress; None before its first metrics."""
    stage = stages.single(PretrainView)
    if not stage.metrics:
        return None
    objective = objective_of(stages)
    paragraphs = [_training_summary(stage)]
    if evaluation := latest_row(stage.metrics, "heldout"):
        sentences = heldout.describe(evaluation, objective)
        paragraphs += [sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in sentences]
    return PretrainingSection(paragraphs, _charts(stage.metrics, objective))


def percent_axis(title: str, include: Sequence[float] = ()) -> Axis:
    """Returns an axis for fractions of one."""
    return Axis(title, lambda value: f"{100 * value:g} %", format_percent, include)


def _charts(rows: Sequence[MetricsRow], objective: str | None) -> list[Markup]:
    def train(key: str) -> list[Series]:
        return [Series("training", _points(rows, "train", key))]

    def train_and_heldout(key: str) -> list[Series]:
        return [*train(key), Series("held-out", _points(rows, "heldout", key), "orange", markers=True)]

    def baseline(key: str, label: str) -> ReferenceLine | None:
        """Returns the baseline's level up to each phase's last evaluation: phases have different held-out examples."""
        points = _points(rows, "heldout", f"{key}_baseline")
        phase_ends = [point for point, (_, next_level) in pairwise(points) if point[1] != next_level]
        return ReferenceLine(label, [*phase_ends, points[-1]]) if points else None

    unigram, constant = "unigram model", _pair_baseline(rows, objective)
    pairs = "Sentence-order" if objective == "mlm+sop" else "Next-sentence"
    from_zero = (0.0,)
    charts = [
        (
            "Total loss",
            train_and_heldout("loss"),
            Axis("nats"),
            baseline("loss", "sum of baselines" if constant else unigram),
        ),
        (
            "Learning rate",
            train("learning_rate"),
            Axis("at each step", format_tick=format_scientific, include=from_zero),
            None,
        ),
        (
            "Masked-LM loss",
            train_and_heldout("mlm_loss"),
            Axis("nats per masked token"),
            baseline("mlm_loss", unigram),
        ),
        (
            "Masked-token accuracy",
            train_and_heldout("mlm_accuracy"),
            percent_axis("of masked tokens", from_zero),
            baseline("mlm_accuracy", unigram),
        ),
        (
            "Cloze choice accuracy",
            [Series("held-out", _points(rows, "heldout", "choice_accuracy"), "orange", markers=True)],
            percent_axis("of masks: the true token over one of the same frequency"),
            baseline("choice_accuracy", "chance"),
        ),
        (
            f"{pairs} loss",
            train_and_heldout("nsp_loss"),
            Axis("nats per pair"),
            baseline("nsp_loss", "best constant answer"),
        ),
        (
            f"{pairs} accuracy",
            train_and_heldout("nsp_accuracy"),
            percent_axis("of pairs"),
            baseline("nsp_accuracy", constant),
        ),
        ("Sequence throughput", train("sequences_per_second"), Axis("sequences per second", include=from_zero), None),
        (
            "Token throughput",
            train("tokens_per_second"),
            Axis("tokens per second, without padding", include=from_zero),
            None,
        ),
        ("Model FLOPS utilization (MFU)", train("mfu"), percent_axis("of the devices' peak FLOPS", from_zero), None),
    ]
    return [
        line_chart(title, series, axis, reference)
        for title, series, axis, reference in charts
        if any(one.points for one in series)
    ]


def _pair_baseline(rows: Sequence[MetricsRow], objective: str | None) -> str:
    """Returns the label of the pair baseline; empty without pairs. Phases may have different majority answers."""
    labels = {heldout.constant_answer(row, objective) for row in rows if "pairs" in row}
    return labels.pop() if len(labels) == 1 else "always the majority answer" if labels else ""


def _points(rows: Sequence[MetricsRow], split: str, key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get("split") == split and row.get(key) is not None]


def latest_row(rows: Sequence[MetricsRow], split: str) -> MetricsRow:
    """Returns the last metrics row of a split; empty when there is none."""
    return next((row for row in reversed(rows) if row.get("split") == split), {})


def latest_heldout_row(stages: Stages) -> MetricsRow:
    """Returns pretraining's last held-out evaluation; empty when there is none."""
    return latest_row(stages.single(PretrainView).metrics, "heldout")


def _phase_extent(phase: dict[str, Any]) -> str:
    """Returns a phase's steps, or its fraction of the time budget."""
    return (
        f"{format_number(phase['steps'])} steps" if phase["steps"] else f"{format_percent(phase['share'])} of the time"
    )


def _batch_size(size: int | None) -> str:
    """Returns the end of a phrase about training with that global batch size; empty if it is not known."""
    return f" with a global batch of {format_number(size)} sequences" if size else ""


def _training_summary(stage: PretrainView) -> str:
    rows = stage.metrics
    train = [row for row in rows if row.get("split") == "train"]
    parts = [f"{format_number(rows[-1]['step'])} steps"]
    phases, default_size = stage.config.get("phases") or [], stage.config.get("global_batch_size")
    batch_sizes = [phase.get("global_batch_size") or default_size for phase in phases] or [default_size]
    is_one_size = len(set(batch_sizes)) == 1
    if is_one_size:
        parts[0] += _batch_size(batch_sizes[0])
    if len(phases) > 1:
        extents = [f"{_phase_extent(phase)} at sequence length {phase['max_seq_length']}" for phase in phases]
        if not is_one_size:
            extents = [extent + _batch_size(size) for extent, size in zip(extents, batch_sizes, strict=True)]
        parts.append(", then ".join(extents))
    elif phases:
        parts.append(f"sequence length {phases[0]['max_seq_length']}")
    if budget := stage.config.get("budget"):
        parts.append(f"time budget {budget}")
    if workers := stage.facts.workers:
        parts.append(f"{workers} worker{'s' if workers > 1 else ''}, {stage.facts.precision}".rstrip(", "))
    seconds = sum(row.get("seconds", 0.0) for row in train)
    if seconds:
        sequences = sum(row["sequences_per_second"] * row["seconds"] for row in train) / seconds
        tokens = sum(row["tokens_per_second"] * row["seconds"] for row in train) / seconds
        parts.append(
            f"{duration(seconds)} of training steps at {format_number(round(sequences, 1))} sequences "
            f"({format_number(round(tokens))} tokens, without padding) per second"
        )
    return "; ".join(parts) + "."


def objective_of(stages: Stages) -> str | None:
    """Returns the pretraining objective of the examples; None when no examples stage is finished."""
    return next((stage.config.get("objective") for stage in stages.of_type(ExamplesView) if stage.manifest), None)


def model_size(stage: StageView) -> str:
    """Returns for example "2 layers, 128 hidden, 2 heads"."""
    model = stage.config.get("model", {})
    fields = [("num_hidden_layers", "layers"), ("hidden_size", "hidden"), ("num_attention_heads", "heads")]
    return ", ".join(f"{model[key]} {label}" for key, label in fields if key in model)
