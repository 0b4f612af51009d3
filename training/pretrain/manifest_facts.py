"""The facts in the manifest of a pretrain artifact, read by the planner, report, model card and status."""

from typing import Any

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts, Manifest
from cloze.pipeline.core.errors import UserError

MetricsRow = dict[str, Any]  # a row of metrics.jsonl (see metrics.py)


class CheckpointFact(Fact):
    """A checkpoint in the artifact."""

    path: str  # relative to the artifact
    digest: str
    step: int
    heldout_loss: float | None = None


class PeakFact(Fact):
    """The peak performance of all workers' devices together."""

    flops: float  # per second
    origin: str


class InitFact(Fact):
    """The weights that training started from: the digest of their file, and notes for the user."""

    sha256: str
    notes: list[str] = Field(default=[])


class MetricsFact(Fact):
    """The last row of each split, and the speed of the whole training."""

    train: MetricsRow = Field(default={})
    heldout: MetricsRow = Field(default={})
    seconds: float = 0.0  # spent on training steps
    sequences_per_second: float = 0.0


class PretrainFacts(Facts):
    """The kept checkpoints, how they were computed, and the metrics."""

    checkpoint: CheckpointFact | None = None
    best: CheckpointFact | None = None
    precision: str = ""
    processor: str = ""
    workers: int = 0
    peak: PeakFact | None = None
    skipped: int = 0  # batches
    init: InitFact | None = None
    metrics: MetricsFact = MetricsFact()

    @classmethod
    def final(cls, manifest: Manifest) -> CheckpointFact:
        """The last checkpoint of a finished pretraining. Raises UserError when the manifest names none."""
        if checkpoint := cls.of(manifest).checkpoint:
            return checkpoint
        raise UserError(
            f"{manifest.stage}/{manifest.fingerprint}/manifest.json: facts.checkpoint is missing; "
            "delete that folder and run again"
        )
