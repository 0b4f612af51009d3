"""The metrics, variants and baselines of fine-tuning -> their names and formats, for the report and status."""

import re

_NAMES = {
    "accuracy_at_1": "accuracy@1",
    "accuracy_at_10": "accuracy@10",
    "f1": "F1",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "matthews": "Matthews correlation",
    "mrr": "MRR",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
_CORRELATIONS = ("matthews", "pearson", "spearman")


def metric_name(metric: str, split: str = "test") -> str:
    """macro_f1 -> macro-F1; with the split where it is not test: dev macro-F1."""
    name = _NAMES.get(metric) or re.sub(r"\bf1\b", "F1", metric.replace("_", " "))
    return name if split == "test" else f"{split} {name}"


def is_correlation(metric: str) -> bool:
    """Whether a metric is between -1 and 1; others are fractions, shown as percentages."""
    return any(name in metric for name in _CORRELATIONS)


def baseline_name(name: str) -> str:
    """A baseline inside a sentence: the majority class, the bag of words baseline."""
    return "the majority class" if name == "majority" else f"the {name.replace('_', ' ')} baseline"
