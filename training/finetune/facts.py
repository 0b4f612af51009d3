"""What the manifests of pretraining and fine-tuning tell their readers: the planner, the report, the card, status.

The stage writes the model, `Facts.of` reads it back. Defaults stand for what manifests of earlier versions lack.
"""

from typing import Any, NamedTuple

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts


class TrialFact(Fact):
    """One way to fine-tune."""

    learning_rate: float
    batch_size: int
    epochs: int


class CurvesFact(Fact, extra="allow"):
    """What a trial gave, or the best one of a variant: (step, loss) points, and `dev_` figures an epoch, which are the
    task's own. JSON has no NaN: a figure that is none is None.
    """

    trial: TrialFact | None = None
    precision: str = ""
    loss: list[tuple[int, float]] = Field(default=[])
    dev_accuracy: list[float] = Field(default=[])
    dev_loss: list[float | None] = Field(default=[])
    best_epoch: int = 0  # from 1
    merit: list[float | None] = Field(default=[])


class ScoreFact(Fact, extra="allow"):
    """On the test part, by the task's own measures: these are classification's."""

    accuracy: float | None = None
    interval: tuple[float, float] | None = None  # 95 %
    macro_f1: float | None = None
    matthews: float | None = None


class ShownExample(Fact, extra="allow"):
    """An example of the test part."""

    text: str
    label: Any
    predicted: Any

    @property
    def right(self) -> bool:
        return self.label == self.predicted


class Accuracy(NamedTuple):
    """With its 95 % interval."""

    value: float
    low: float
    high: float


class FinetuneFacts(Facts, extra="allow"):
    """`scores` are those of the `variants`, pretrained and random, and of a baseline; `trials` are all, by name.

    What a task alone tells stands beside it: labels are classification's.
    """

    labels: dict[str, dict[str, int]] = Field(default={})  # split -> label -> count
    scores: dict[str, ScoreFact] = Field(default={})
    variants: dict[str, CurvesFact] = Field(default={})
    trials: dict[str, CurvesFact] = Field(default={})
    examples: list[ShownExample] = Field(default=[])
    notes: list[str] = Field(default=[])  # what a user should know of the start

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        """Of pretrained, random and majority; empty where the task is not scored so."""
        found = {
            name: Accuracy(score.accuracy, *score.interval)
            for name, score in self.scores.items()
            if score.accuracy is not None and score.interval
        }
        return found if found.keys() >= {"pretrained", "random", "majority"} else {}
