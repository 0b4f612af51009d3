"""The choices of layers of a probe -> a table with a row for each."""

from dataclasses import dataclass
from statistics import fmean, stdev

from cloze.infra.report.charts import PERCENT, Axis
from cloze.training.finetune.manifest_facts import FinetuneFacts, LayersFact


@dataclass(frozen=True)
class LayersRow:
    """A choice of layers: `cells` are its scores, of one variant after the other, then that of the paper."""

    layers: str
    dimension: int
    cells: list[str]
    is_chosen: bool  # for the pretrained model
    notes: str


@dataclass(frozen=True)
class LayersTable:
    """The choices of layers of a probe; `titles` are those of the columns of scores."""

    titles: list[str]
    rows: list[LayersRow]
    explanation: str


def layers_table(facts: FinetuneFacts, metric: str, axis: Axis, labels: dict[str, str]) -> LayersTable | None:
    """Returns the table of a probe, None for other tasks. `metric` is the name to show, `labels` those of variants."""
    by_variant = {variant: curves.layers for variant, curves in facts.variants.items() if curves.layers}
    if not by_variant:
        return None
    has_published = any(row.published is not None for row in by_variant["pretrained"])
    titles = [title for variant in by_variant for title in _titles(facts, metric, labels[variant])]
    rows = []
    for of_variants in zip(*by_variant.values(), strict=True):
        cells = [cell for row in of_variants for cell in _cells(facts, row, axis)]
        published = of_variants[0].published
        paper = [] if not has_published else ["–" if published is None else axis.format_value(published)]
        notes = [
            f"{labels[variant]}: not converged"
            for variant, row in zip(by_variant, of_variants, strict=True)
            if not row.converged
        ]
        first = of_variants[0]
        rows.append(
            LayersRow(_name(first.layers), first.dimension, [*cells, *paper], first.is_chosen, "; ".join(notes))
        )
    return LayersTable(
        [*titles, *(["BERT-base with a BiLSTM, dev"] if has_published else [])],
        rows,
        _explanation(facts, has_published),
    )


def _titles(facts: FinetuneFacts, metric: str, variant: str) -> list[str]:
    prefix = f"{variant}: " if len(facts.variants) > 1 else ""
    scored = [] if facts.scored_split == "dev" else [f"{facts.scored_split} {metric}"]
    folds = ["folds of train"] if _has_folds(facts) else []
    inverse_penalty = [] if _is_bilstm(facts) else ["C"]
    return [f"{prefix}{name}" for name in (*inverse_penalty, *folds, f"dev {metric}", *scored)]


def _cells(facts: FinetuneFacts, row: LayersFact, axis: Axis) -> list[str]:
    folds = []
    if row.folds:
        mean, deviation = axis.format_value(fmean(row.folds)), axis.format_value(stdev(row.folds))
        folds = [f"{mean.removesuffix(PERCENT)} ± {deviation}"]
    low, high = map(axis.format_value, row.interval)
    scored = f"{axis.format_value(row.score)} ({low.removesuffix(PERCENT)} to {high.removesuffix(PERCENT)})"
    inverse_penalty = [] if row.C is None else [f"{row.C:g}"]
    return [*inverse_penalty, *folds, axis.format_value(row.dev), *([] if facts.scored_split == "dev" else [scored])]


def _name(layers: int | str) -> str:
    if layers == 0:
        return "embeddings"
    return f"layer {layers}" if isinstance(layers, int) else layers.replace("-", " ")


def _has_folds(facts: FinetuneFacts) -> bool:
    return any(row.folds for curves in facts.variants.values() for row in curves.layers)


def _is_bilstm(facts: FinetuneFacts) -> bool:
    return all(row.C is None for curves in facts.variants.values() for row in curves.layers)


def _explanation(facts: FinetuneFacts, has_published: bool) -> str:
    by = "the mean of the folds of train" if _has_folds(facts) else "dev"
    if is_bilstm := _is_bilstm(facts):
        text = f"A BiLSTM on the vectors of a model that is not trained. The layers in bold are the best by {by}."
    else:
        text = (
            "Logistic regression on the vectors of a model that is not trained. C, and the layers in bold, are the "
            f"best by {by}."
        )
    if facts.scored_split == "dev" and by == "dev":
        text += " There is no labelled test split: these scores are of the split that has chosen."
    if has_published:
        text += " The last column is the BERT paper's (arXiv:1810.04805, table 7): BERT-base, and on its vectors a "
        text += "BiLSTM of two layers" + ("." if is_bilstm else ", where here there is a logistic regression.")
    return text
