"""The data of a run that the page shows: its stages, finished or not, and the displayed content of their files.

These types and the sections read no files: infra/report/read_run.py does.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from cloze.pipeline.core.artifacts import FileRecord, Manifest
from cloze.pipeline.core.manifest_facts import DedupFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.pretrain.manifest_facts import MetricsRow, PretrainFacts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.checkpoints.fill_mask import MaskPrediction

_MAX_FILES = 24


@dataclass(frozen=True)
class UserFile:
    """A user's input file. `bytes` is None where the run no longer has a record of the file."""

    sha256: str
    name: str
    bytes: int | None


@dataclass(frozen=True)
class StageView:
    """One stage of a run.

    `state` is for people: done, half-done, not started, waiting. `location` is None while an input's fingerprint is
    unknown, `manifest` until the stage is finished. `upstream` has the names of the stages that it reads, `user_files`
    the user's files by input name, `estimate` what the run was estimated to take for it when it started, `checks` the
    results of its checks.
    """

    name: str
    state: str
    location: Location | None = None
    manifest: Manifest | None = None
    upstream: tuple[str, ...] = ()
    user_files: Mapping[str, Sequence[UserFile]] = field(default_factory=dict)
    estimate: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Mapping[str, Any]] = ()

    @property
    def type_name(self) -> str:
        """examples-128 -> examples."""
        return self.name.partition("-")[0]

    @property
    def counts(self) -> Mapping[str, int]:
        return self.manifest.counts if self.manifest else {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config if self.manifest else {}

    @property
    def drops(self) -> list[tuple[str, int]]:
        """Returns (reason, rows), most rows first."""
        drops = self.manifest.drops if self.manifest else {}
        return sorted(drops.items(), key=lambda item: (-item[1], item[0]))

    @property
    def config_yaml(self) -> str:
        return yaml.safe_dump(json.loads(json.dumps(self.config)), sort_keys=False, allow_unicode=True, width=100)

    @property
    def displayed_files(self) -> list[tuple[str, FileRecord]]:
        return list(self.manifest.files.items())[:_MAX_FILES] if self.manifest else []

    @property
    def omitted_files(self) -> int:
        return len(self.manifest.files) - len(self.displayed_files) if self.manifest else 0


@dataclass(frozen=True)
class ExtractView(StageView):
    facts: ExtractFacts = field(default_factory=ExtractFacts)


@dataclass(frozen=True)
class DedupView(StageView):
    facts: DedupFacts = field(default_factory=DedupFacts)


@dataclass(frozen=True)
class VocabView(StageView):
    facts: VocabFacts = field(default_factory=VocabFacts)
    pieces: list[str] = field(default_factory=list)  # by id


@dataclass(frozen=True)
class ExamplesView(StageView):
    """`lengths` has the token counts of the first training examples, `heldout` the first held-out rows."""

    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    heldout: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class PretrainView(StageView):
    """`metrics` has the rows logged so far, also of a training in progress."""

    facts: PretrainFacts = field(default_factory=PretrainFacts)
    metrics: Sequence[MetricsRow] = ()
    parameters: int = 0  # of the final checkpoint


@dataclass(frozen=True)
class FinetuneView(StageView):
    facts: FinetuneFacts = field(default_factory=FinetuneFacts)
    task: str = ""
    predictions: Sequence[dict[str, Any]] = ()  # of the pretrained variant on the test split


@dataclass(frozen=True)
class OverlapView(StageView):
    facts: OverlapFacts = field(default_factory=OverlapFacts)
    task: str = ""


@dataclass(frozen=True)
class HeldoutDocument:
    """A document that is excluded from training."""

    source: str
    language: str
    text: str


@dataclass(frozen=True)
class TrainedModel:
    """The final checkpoint's predictions, and held-out documents to predict on."""

    tokenizer: "Tokenizer"
    heldout_documents: Callable[[], Iterator[HeldoutDocument]]  # a sample, the same in each call
    predict: "Callable[[str], Sequence[MaskPrediction]]"  # text with one [MASK] -> tokens, the likeliest first


AnyStageView = TypeVar("AnyStageView", bound=StageView)


@dataclass(frozen=True)
class Stages:
    """A run's stages, in order, and its model once it is trained."""

    views: Sequence[StageView]
    model: TrainedModel | None = None

    def __iter__(self) -> Iterator[StageView]:
        return iter(self.views)

    def of_type(self, stage_type: type[AnyStageView]) -> list[AnyStageView]:
        return [view for view in self.views if isinstance(view, stage_type)]

    def single(self, stage_type: type[AnyStageView]) -> AnyStageView:
        """Returns the only stage of a type, or an empty one that is not part of this run."""
        return next(iter(self.of_type(stage_type)), None) or stage_type("", "not part of this run")

    @property
    def finished(self) -> list[StageView]:
        return [view for view in self.views if view.manifest]
