"""The input of every pretraining worker, and the training state that a checkpoint stores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Self

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.leases import Lease
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import Heldout
from cloze.training.model.hardware import PeakFlops
from cloze.training.model.optim import LossScale, Precision
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.data_loader import has_pair_labels
from cloze.training.pretrain.loss_spikes import RecentSteps, SkippedBatch
from cloze.training.pretrain.metrics import MetricsRecorder


@dataclass(frozen=True)
class PretrainSetup:
    """The input of every worker."""

    config: PretrainConfig
    examples: tuple[Artifact, ...]  # one artifact for each phase
    location: Location  # of the artifact that is written
    pieces: tuple[str, ...]  # of the vocabulary
    init: SourceFile | None = None  # the weights of another model to start from
    lease: Lease | None = None  # of the artifact

    @property
    def nsp(self) -> bool:
        """Whether the model has a head for segment pairs."""
        return has_pair_labels(self.examples)

    def check_lease(self) -> None:
        """Raises LeaseLost if another run has taken over."""
        if self.lease:
            self.lease.check()


class GroupInfo(NamedTuple):
    """The precision and hardware of the current worker group, recorded in checkpoints and reports."""

    precision: Precision
    workers: int
    processor: str
    peak: PeakFlops


@dataclass
class TrainState:
    """The state of the training: what a checkpoint stores in addition to the weights and their moments."""

    step: int = 0  # finished steps
    phase: int = 0  # of the next step
    phase_start: int = 0  # steps before that phase
    schedule_start: int = 0  # steps before that phase's learning rate schedule
    seconds: float = 0.0  # spent on training by the clock of worker 0, including steps that were rolled back
    updates: int = 0  # fewer than steps if fp16 gradients overflowed
    loss_scale: LossScale | None = None
    recent: RecentSteps = field(default_factory=RecentSteps)  # the next step is compared with these
    skipped: Sequence[SkippedBatch] = ()
    metrics: MetricsRecorder = field(default_factory=MetricsRecorder)
    heldout: Heldout | None = None  # if the model was evaluated at this step
    precision: Precision | None = None  # None until it is chosen
    workers: int = 0
    processor: str = ""
    peak: PeakFlops | None = None

    def in_group(self, group: GroupInfo) -> Self:
        """The same state, continued by this worker group."""
        return replace(self, **group._asdict())

    def to_json(self) -> dict[str, Any]:
        """The content of a checkpoint's state.json. `heldout` is stored in its manifest.json."""
        return {
            "step": self.step,
            "phase": self.phase,
            "first": self.phase_start,
            "schedule_start": self.schedule_start,
            "spent": self.seconds,
            "updates": self.updates,
            "precision": self.precision,
            "loss_scale": self.loss_scale,
            "processor": self.processor,
            "workers": self.workers,
            "peak": self.peak and self.peak._asdict(),
            "metrics": self.metrics.to_json(),
            "recent": self.recent.to_json(),
            "skipped": [asdict(skip) for skip in self.skipped],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(
            step=saved["step"],
            phase=saved["phase"],
            phase_start=saved["first"],
            schedule_start=saved.get("schedule_start", 0),  # earlier versions have one schedule for all phases
            seconds=saved["spent"],
            updates=saved["updates"],
            loss_scale=LossScale(*saved["loss_scale"]) if saved["loss_scale"] else None,
            recent=RecentSteps(*saved["recent"]),
            skipped=[SkippedBatch(**skip) for skip in saved["skipped"]],
            metrics=MetricsRecorder(saved["metrics"]),
            precision=saved["precision"],
            workers=saved["workers"],
            processor=saved["processor"],
            peak=PeakFlops(**saved["peak"]),
        )
