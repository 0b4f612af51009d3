"""Sums over examples -> mean losses and accuracies."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Totals:
    """Sums over examples. They add up over micro-batches, workers and steps."""

    mlm_loss: float = 0.0
    mlm_correct: float = 0.0
    masked: float = 0.0  # masked positions
    nsp_loss: float = 0.0
    nsp_correct: float = 0.0
    labels: float = 0.0  # pairs with a next-sentence label
    labels_1: float = 0.0  # pairs labelled 1: the second segment is random, or the segments are swapped
    answers_1: float = 0.0  # pairs for which the model predicts 1
    examples: float = 0.0
    tokens: float = 0.0  # without padding
    slots: float = 0.0  # tokens and padding
    squares: float = 0.0  # sum over examples of the squared number of tokens
    choices: float = 0.0  # masked positions with a distractor, in evaluations only
    choices_correct: float = 0.0  # of these, those whose true piece is more likely; half of the ties

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def means(self) -> dict[str, float]:
        """The losses and their sum, the accuracies and the fraction of padding.

        No pair metrics without pair labels, and no cloze choice without distractors.
        """
        masked = max(1.0, self.masked)
        mlm_loss = self.mlm_loss / masked
        nsp_loss = self.nsp_loss / self.labels if self.labels else 0.0
        means = {"loss": mlm_loss + nsp_loss, "mlm_loss": mlm_loss, "mlm_accuracy": self.mlm_correct / masked}
        if self.labels:
            means |= {"nsp_loss": nsp_loss, "nsp_accuracy": self.nsp_correct / self.labels}
        if self.choices:
            means["choice_accuracy"] = self.choices_correct / self.choices
        return means | {"padding": 1 - self.tokens / max(1.0, self.slots)}
