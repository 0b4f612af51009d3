"""sums over examples -> rows of metrics, each step once however often a run is resumed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from cloze.training.model.totals import Totals
from cloze.training.pretrain.baselines import Baseline, baselines
from cloze.training.pretrain.facts import Row


class Recorder:
    """The rows of metrics so far and the sums since the last of them: all of it is saved with each checkpoint."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self.rows: list[Row] = list(saved.get("rows", []))
        self._totals = Totals(*saved.get("totals", []))
        self._seconds: float = saved.get("seconds", 0.0)
        self._waited: float = saved.get("waited", 0.0)

    def state(self) -> dict[str, Any]:
        return {
            "rows": list(self.rows),  # a checkpoint is written while more are added
            "totals": list(astuple(self._totals)),
            "seconds": self._seconds,
            "waited": self._waited,
        }

    def add(self, totals: Totals, seconds: float, waited: float) -> None:
        self._totals += totals
        self._seconds += seconds
        self._waited += waited

    def train_row(self, step: int, flops: Callable[[Totals], float], peak: float, **of_now: float) -> None:
        """The means of the steps since the last row, and what is `of_now`; the seconds are those of steps alone.

        `mfu` is the model FLOPs utilisation (arXiv:2204.02311, appendix B): `flops` a second, of `peak`.
        """
        totals, seconds = self._totals, max(self._seconds, 1e-9)
        self.rows.append(
            {"split": "train", "step": step, **totals.means(), **of_now}
            | {"sequences_per_second": totals.examples / seconds, "tokens_per_second": totals.tokens / seconds}
            | {"mfu": flops(totals) / seconds / peak}
            | {"wait": self._waited / seconds, "seconds": self._seconds, "time": time.time()}
        )
        self._totals, self._seconds, self._waited = type(totals)(), 0.0, 0.0

    def heldout_row(self, step: int, totals: Totals, unigram: Baseline) -> None:
        """An evaluation beside its baselines, of which `unigram` is that of the masked pieces."""
        self.rows.append(
            {"split": "heldout", "step": step, **totals.means(), **baselines(totals, unigram)}
            | {"examples": int(totals.examples), "time": time.time()}
        )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The last rows of both splits, and the training as a whole."""
    train, heldout = ([row for row in rows if row["split"] == split] for split in ("train", "heldout"))
    seconds = sum(row["seconds"] for row in train)
    sequences = sum(row["sequences_per_second"] * row["seconds"] for row in train)
    return {"train": train[-1], "heldout": heldout[-1], "seconds": seconds, "sequences_per_second": sequences / seconds}
