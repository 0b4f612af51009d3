"""The scores that BERT's paper reports on a benchmark: Devlin et al. 2019 (arXiv:1810.04805)."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class PublishedScore(NamedTuple):
    """The scores of BERT-base and BERT-large in percent, as the paper has them; None where it has none."""

    split: str
    metric: str
    base: float | None
    large: float | None
    table: int  # of the paper


PUBLISHED = {
    "SQuAD-v1.1": (PublishedScore("dev", "f1", 88.5, 90.9, 2), PublishedScore("dev", "exact_match", 80.8, 84.1, 2)),
    "SQuAD-v2.0": (PublishedScore("dev", "f1", None, 81.9, 3),),
    "SWAG": (PublishedScore("dev", "accuracy", 81.6, 86.6, 4), PublishedScore("test", "accuracy", None, 86.3, 4)),
    "CoNLL-2003": (PublishedScore("dev", "f1", 96.4, 96.6, 7), PublishedScore("test", "f1", 92.4, 92.8, 7)),
}

#: The dev F1 on CoNLL-2003 of a BiLSTM of two layers on the vectors of BERT-base, by its layers (table 7).
CONLL_LAYERS: dict[int | str, float] = {
    0: 0.910,
    "second-to-last": 0.956,
    "last": 0.949,
    "sum-last-4": 0.959,
    "concat-last-4": 0.961,
    "sum-all": 0.955,
}


def published_fact(benchmark: str | None) -> dict[str, Any]:
    """The scores of PUBLISHED on a benchmark as the manifest has them; empty if there are none."""
    scores = published_scores(benchmark, PUBLISHED.get(benchmark or "", ()))
    return {"published": scores} if scores else {}


def published_scores(benchmark: str | None, scores: Sequence[PublishedScore]) -> list[dict[str, Any]]:
    """The scores as the manifest has them."""
    return [
        {
            "benchmark": benchmark,
            "split": one.split,
            "metric": one.metric,
            **{name: round(value / 100, 4) for name in ("base", "large") if (value := getattr(one, name)) is not None},
            "source": f"arXiv:1810.04805, table {one.table}",
        }
        for one in scores
    ]
