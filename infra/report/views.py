"""What the page is given of a run: its stages, finished, half-way or not begun, and what is shown of their files.

Nothing is read here nor in the sections: infra/report/reading.py has done so.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from cloze.pipeline.core.artifacts import FileRecord, Manifest
from cloze.pipeline.core.facts import DedupFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.facts import FinetuneFacts
from cloze.training.pretrain.facts import MetricsRow, PretrainFacts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.checkpoints.fill_mask import MaskPrediction

_FILES_SHOWN = 24


@dataclass(frozen=True)
class Source:
    """A user's file behind a stage: its name and size where the run's records of sources still have them."""

    sha256: str
    name: str
    bytes: int | None


@dataclass(frozen=True)
class StageView:
    """One stage of a run; `state` says in words how far it is.

    `location` is None while an input is not known, `manifest` before the stage is finished. `after` names the stages
    that it reads, `sources` has the user's files by the name of the input.
    """

    name: str
    state: str
    location: Location | None = None
    manifest: Manifest | None = None
    after: tuple[str, ...] = ()
    sources: Mapping[str, Sequence[Source]] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.manifest.counts if self.manifest else {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config if self.manifest else {}

    @property
    def drops(self) -> list[tuple[str, int]]:
        """Reasons and rows, the largest first."""
        found = self.manifest.drops if self.manifest else {}
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))

    @property
    def configuration(self) -> str:
        return yaml.safe_dump(json.loads(json.dumps(self.config)), sort_keys=False, allow_unicode=True, width=100)

    @property
    def files(self) -> list[tuple[str, FileRecord]]:
        return list(self.manifest.files.items())[:_FILES_SHOWN] if self.manifest else []

    @property
    def more_files(self) -> int:
        return len(self.manifest.files) - len(self.files) if self.manifest else 0


@dataclass(frozen=True)
class ExtractView(StageView):
    facts: ExtractFacts = field(default_factory=ExtractFacts)


@dataclass(frozen=True)
class DedupView(StageView):
    facts: DedupFacts = field(default_factory=DedupFacts)


@dataclass(frozen=True)
class VocabView(StageView):
    """`pieces` stand in the order of their ids."""

    facts: VocabFacts = field(default_factory=VocabFacts)
    pieces: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ExamplesView(StageView):
    """`lengths` are those of the first examples to train on, in pieces; `heldout` has the first held-out rows."""

    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    heldout: Sequence[MetricsRow] = ()


@dataclass(frozen=True)
class PretrainView(StageView):
    """`metrics` is what has been measured so far, also while it runs; `weights` how many the final checkpoint has."""

    facts: PretrainFacts = field(default_factory=PretrainFacts)
    metrics: Sequence[MetricsRow] = ()
    weights: int = 0


@dataclass(frozen=True)
class FinetuneView(StageView):
    """`task` is its name; `predictions` are the rows that say how the test part's examples were answered."""

    facts: FinetuneFacts = field(default_factory=FinetuneFacts)
    task: str = ""
    predictions: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class HeldoutText:
    """A document that was never trained on."""

    source: str
    language: str
    text: str


@dataclass(frozen=True)
class TrainedModel:
    """The final checkpoint to ask, and what about."""

    tokenizer: "Tokenizer"
    heldout: Callable[[], Iterator[HeldoutText]]  # some documents, the same ones each time
    guesses: "Callable[[str], Sequence[MaskPrediction]]"  # text with one [MASK] -> the likeliest pieces in order


View = TypeVar("View", bound=StageView)


@dataclass(frozen=True)
class Stages:
    """A run's stages, in order, and its model where there is one."""

    views: Sequence[StageView]
    model: TrainedModel | None = None

    def __iter__(self) -> Iterator[StageView]:
        return iter(self.views)

    def of(self, kind: type[View]) -> list[View]:
        """The stages of a kind."""
        return [view for view in self.views if isinstance(view, kind)]

    def one(self, kind: type[View]) -> View:
        """The stage of a kind of which a run has one; where it has none, one that is not begun."""
        return next(iter(self.of(kind)), None) or kind("", "not part of this run")

    @property
    def finished(self) -> list[StageView]:
        return [view for view in self.views if view.manifest]
