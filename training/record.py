"""sums over examples -> rows of metrics, each step once however often a run is resumed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from training.metrics import Baseline, constant_baseline

if TYPE_CHECKING:
    from training.model import BertConfig

Row = dict[str, Any]


@dataclass(frozen=True)
class Totals:
    """Sums over examples, from which means are made; they add up over micro-batches, workers and steps."""

    mlm_loss: float = 0.0
    mlm_correct: float = 0.0
    masked: float = 0.0
    nsp_loss: float = 0.0
    nsp_correct: float = 0.0
    labels: float = 0.0  # next-sentence ones
    labels_1: float = 0.0  # of these, the pairs whose second segment is random or has changed places
    answers_1: float = 0.0  # of these, the pairs of which the model says so
    examples: float = 0.0
    tokens: float = 0.0  # real ones
    slots: float = 0.0  # with the padding
    squares: float = 0.0  # of each example's real tokens

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def means(self) -> dict[str, float]:
        """The losses and their sum, the accuracies, the share of padding; nothing of pairs where there are none."""
        masked = max(1.0, self.masked)
        mlm_loss = self.mlm_loss / masked
        nsp_loss = self.nsp_loss / self.labels if self.labels else 0.0
        found = {"loss": mlm_loss + nsp_loss, "mlm_loss": mlm_loss, "mlm_accuracy": self.mlm_correct / masked}
        if self.labels:
            found |= {"nsp_loss": nsp_loss, "nsp_accuracy": self.nsp_correct / self.labels}
        return found | {"padding": 1 - self.tokens / max(1.0, self.slots)}


def baselines(totals: Totals, unigram: Baseline) -> dict[str, float]:
    """What is scored without a model on the held-out examples of `totals`, by the names of their means and _baseline;
    how many masked pieces and pairs these are, how many pairs are labelled 1, how many answered with 1."""
    found = {"mlm_loss": unigram.loss, "mlm_accuracy": unigram.accuracy}
    counts = {"masked": int(totals.masked)}
    if totals.labels:
        constant = constant_baseline(totals.labels_1, totals.labels)
        found |= {"nsp_loss": constant.loss, "nsp_accuracy": constant.accuracy}
        counts |= {"pairs": int(totals.labels), "pairs_1": int(totals.labels_1), "answers_1": int(totals.answers_1)}
    found = {"loss": found["mlm_loss"] + found.get("nsp_loss", 0.0)} | found
    return {f"{name}_baseline": value for name, value in found.items()} | counts


def training_flops(totals: Totals, model: "BertConfig", vocab_size: int) -> float:
    """The floating-point operations of matrix products, forward and backward, that these examples need.

    Of real tokens and predictions alone: padding is work that nobody needs, and dropout, norms and the pooled [CLS] are
    little beside. The backward pass costs twice the forward (arXiv:2001.08361, section 2.1).
    """
    hidden, wide = model.hidden_size, model.intermediate_size
    linear = 8 * hidden * hidden + 4 * hidden * wide  # query, key, value and output; into the wide layer and back
    attention = 4 * hidden  # scores and context, for each pair of tokens
    prediction = 2 * hidden * hidden + 2 * hidden * vocab_size
    encoder = model.num_hidden_layers * (linear * totals.tokens + attention * totals.squares)
    return 3 * (encoder + prediction * totals.masked)


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

        `mfu` is the model FLOPs utilisation (arXiv:2204.02311, appendix B): training_flops a second, of `peak`.
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
