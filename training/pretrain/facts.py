"""What the manifest of pretraining tells its readers: the planner, the report, the card, status."""

from typing import Any

from pydantic import Field

from cloze.pipeline.core.artifacts import Fact, Facts, Manifest
from cloze.pipeline.core.errors import UserError

Row = dict[str, Any]  # of metrics.jsonl (training/pretrain/metrics.py)


class CheckpointFact(Fact):
    """A checkpoint among the artifact's files."""

    path: str  # inside the artifact
    digest: str
    step: int
    heldout_loss: float | None = None


class PeakFact(Fact):
    """The most that all workers' devices could do."""

    flops: float  # a second
    origin: str


class InitFact(Fact):
    """The weights that training began with: their file's digest, and what a reader should know of them."""

    sha256: str
    notes: list[str] = Field(default=[])


class MetricsFact(Fact):
    """The last row of each split, and the training as a whole."""

    train: Row = Field(default={})
    heldout: Row = Field(default={})
    seconds: float = 0.0  # of training steps
    sequences_per_second: float = 0.0


class PretrainFacts(Facts):
    """The checkpoints that are kept, how they were computed, and what was measured."""

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
        """The checkpoint that a finished pretraining ends with. Raises UserError where its manifest names none."""
        if checkpoint := cls.of(manifest).checkpoint:
            return checkpoint
        raise UserError(
            f"{manifest.stage}/{manifest.fingerprint}/manifest.json: facts.checkpoint is missing; "
            "delete that folder and run again"
        )
