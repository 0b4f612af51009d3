"""Sums over examples -> the rows of metrics.jsonl, each step once even if a run is resumed several times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from cloze.training.model.batch_totals import Totals
from cloze.training.pretrain.baselines import Baseline, baseline_metrics
from cloze.training.pretrain.manifest_facts import MetricsRow


class MetricsRecorder:
    """The rows so far, and the sums since the last row. Each checkpoint stores both."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.rows: list[MetricsRow] = list(saved.get("rows", []))
        self._totals = Totals(*saved.get("totals", []))
        self._seconds: float = saved.get("seconds", 0.0)
        self._waited: float = saved.get("waited", 0.0)

    def to_json(self) -> dict[str, Any]:
        """The argument of the constructor."""
        return {
            "rows": list(self.rows),  # a copy: rows are added while a checkpoint is written
            "totals": list(astuple(self._totals)),
            "seconds": self._seconds,
            "waited": self._waited,
        }

    def add_step(self, totals: Totals, seconds: float, waited: float) -> None:
        self._totals += totals
        self._seconds += seconds
        self._waited += waited

    def add_train_row(self, step: int, flops: Callable[[Totals], float], peak_flops: float, **current: float) -> None:
        """Add the means since the last train row, and `current` values. Only the time of steps counts as seconds.

        `mfu` is the model FLOPs utilization (arXiv:2204.02311, appendix B): achieved FLOPS divided by `peak_flops`.
        """
        totals, seconds = self._totals, max(self._seconds, 1e-9)
        self.rows.append(
            {"split": "train", "step": step, **totals.means(), **current}
            | {"sequences_per_second": totals.examples / seconds, "tokens_per_second": totals.tokens / seconds}
            | {"mfu": flops(totals) / seconds / peak_flops}
            | {"wait": self._waited / seconds, "seconds": self._seconds, "time": time.time()}
        )
        self._totals, self._seconds, self._waited = Totals(), 0.0, 0.0

    def add_heldout_row(self, step: int, totals: Totals, unigram: Baseline) -> None:
        """Add an evaluation and its baselines; `unigram` is the baseline of the masked pieces."""
        self.rows.append(
            {"split": "heldout", "step": step, **totals.means(), **baseline_metrics(totals, unigram)}
            | {"examples": int(totals.examples), "time": time.time()}
        )


def summary(rows: Sequence[MetricsRow]) -> dict[str, Any]:
    """The last row of each split, and the speed of the whole training."""
    train, heldout = ([row for row in rows if row["split"] == split] for split in ("train", "heldout"))
    seconds = sum(row["seconds"] for row in train)
    sequences = sum(row["sequences_per_second"] * row["seconds"] for row in train)
    return {"train": train[-1], "heldout": heldout[-1], "seconds": seconds, "sequences_per_second": sequences / seconds}
