"""Sums over examples, from which the means of losses and accuracies are made."""

from dataclasses import astuple, dataclass


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
