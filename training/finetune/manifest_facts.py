"""The facts in fine-tuning's manifest, which the report, the model card and status read.

The stage writes them, `Facts.of` reads them back. Defaults replace what manifests of earlier versions lack.
"""

from typing import Any

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts
from cloze.training.finetune.metrics.estimates import Estimate


class TrialFact(Fact):
    """The hyperparameters of a trial, and its seed if the task has several."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int | None = None


class LayersFact(Fact):
    """A probe on the vectors of one choice of layers: its scores by the task's metric."""

    layers: int | str
    dimension: int
    C: float | None = None  # the best one; of a regression
    dev: float
    folds: list[float] = Field(default=[])  # of train, each with a classifier of the others
    score: float  # on the scored split
    interval: tuple[float, float]  # 95 %
    converged: bool = True
    published: float | None = None  # of the BERT paper: dev F1 on CoNLL-2003
    is_chosen: bool = False  # the best one, whose predictions are kept


class CurvesFact(Fact, extra="allow"):
    """The curves of a trial, or of a variant's best one: (step, loss) points, and one value per epoch of each of the
    task's metrics, under `dev_` and its name. JSON has no NaN: None replaces it.
    """

    trial: TrialFact | None = None
    precision: str = ""
    loss: list[tuple[int, float]] = Field(default=[])
    dev_accuracy: list[float] = Field(default=[])
    dev_loss: list[float | None] = Field(default=[])
    best_epoch: int = 0  # from 1
    merit: list[float | None] = Field(default=[])  # the selection key of the best epoch: see Task.selection_key
    stopped_epoch: int | None = None  # the last one, if early stopping has ended the trial before all of its epochs
    diverged_step: int | None = None  # from 1: the loss of this step, or an output for dev after it, is not finite
    layers: list[LayersFact] = Field(default=[])  # of a probe

    def dev(self, metric: str) -> list[float | None]:
        """One value of a metric per epoch; empty for a metric that the task does not compute on dev."""
        return getattr(self, f"dev_{metric}", [])


class SeedsFact(Fact):
    """The dev metrics of the same hyperparameters with several seeds, each at the trial's best epoch.

    The mean and the standard deviation are over `seeds`; the trials of the `diverged` seeds have no metrics.
    """

    trial: TrialFact
    seeds: list[int]
    diverged: list[int] = Field(default=[])
    mean: dict[str, float]
    standard_deviation: dict[str, float]  # of a sample: n - 1


class ScoreFact(Fact, extra="allow"):
    """Scores on the scored split. Tasks have others besides these."""

    accuracy: float | None = None
    interval: tuple[float, float] | None = None  # 95 %, of the task's metric
    intervals: dict[str, tuple[float, float]] = Field(default={})  # of all scores, by their names
    macro_f1: float | None = None
    matthews: float | None = None

    def value(self, metric: str) -> float | None:
        return getattr(self, metric, None)


class PublishedFact(Fact):
    """Scores that BERT's paper reports."""

    benchmark: str  # GLUE's MNLI, SQuAD-v1.1
    split: str
    metric: str
    base: float | None = None
    large: float | None = None
    source: str


class ShownExample(Fact, extra="allow"):
    """An example of the test split and its prediction."""

    text: str
    label: Any
    predicted: Any

    @property
    def is_correct(self) -> bool:
        return self.label == self.predicted


class FinetuneFacts(Facts, extra="allow"):
    """`scores` are those of the `variants` (pretrained, random) and of the baselines; `trials` are all trials by name.

    A task may add facts of its own, as classification does with `labels`.
    """

    labels: dict[str, dict[str, int]] = Field(default={})  # split -> label -> count
    scores: dict[str, ScoreFact] = Field(default={})
    extra_scores: dict[str, dict[str, ScoreFact]] = Field(default={})  # of the extra files with labels, by their names
    metric: str = "accuracy"
    scored_split: str = "test"
    candidates: int = 0  # of a contrastive task: the texts of the scored split that each text is compared with
    chance: dict[str, float] = Field(default={})  # the scores of a random order of these
    paper: dict[str, float] = Field(default={})  # base, large: BERT's scores on GLUE's test set, by the task's metric
    published: list[PublishedFact] = Field(default=[])  # these and the scores on other benchmarks
    variants: dict[str, CurvesFact] = Field(default={})
    trials: dict[str, CurvesFact] = Field(default={})
    seeds: dict[str, list[SeedsFact]] = Field(default={})  # by variant, one for each combination of hyperparameters
    examples: list[ShownExample] = Field(default=[])
    notes: list[str] = Field(default=[])  # for the user, about the initial weights

    @property
    def metric_scores(self) -> dict[str, Estimate]:
        """The task's metric by variant and baseline, of those that have an interval; empty if pretrained has none."""
        return self._metric_scores(self.scores)

    @property
    def extra_metric_scores(self) -> dict[str, dict[str, Estimate]]:
        """The same for each extra file with labels, by its name."""
        found = {name: self._metric_scores(scores) for name, scores in self.extra_scores.items()}
        return {name: scores for name, scores in found.items() if scores}

    def _metric_scores(self, all_scores: dict[str, ScoreFact]) -> dict[str, Estimate]:
        scores = {
            name: Estimate(value, *score.interval)
            for name, score in all_scores.items()
            if (value := score.value(self.metric)) is not None and score.interval
        }
        return scores if "pretrained" in scores else {}
