"""The metrics, variants and baselines of fine-tuning -> their names and formats, for the report and status."""

_NAMES = {
    "f1": "F1",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "entity_f1": "entity F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "em": "exact match",
}
_CORRELATIONS = ("matthews", "pearson", "spearman")


def metric_name(metric: str, split: str = "test") -> str:
    """macro_f1 -> macro-F1; with the split where it is not test: dev macro-F1."""
    name = _NAMES.get(metric, metric.replace("_", " "))
    return name if split == "test" else f"{split} {name}"


def is_correlation(metric: str) -> bool:
    """Whether a metric is between -1 and 1; others are fractions, shown as percentages."""
    return any(name in metric for name in _CORRELATIONS)


def variant_name(name: str) -> str:
    """A variant or baseline, as the second part of a comparison: "0.4 for the majority class"."""
    names = {"random": "from random weights", "majority": "for the majority class"}
    return names.get(name, f"for {name.replace('_', ' ')}")
