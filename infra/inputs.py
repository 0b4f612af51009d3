"""What a stage reads: files of the user's, what other stages have made.

Each kind of input says what it contributes to the stage's fingerprint and what the stage's `run` is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.config import MarkedPath
from cloze.pipeline.core.source_files import SourceFile, source_file
from cloze.pipeline.core.storage import Location, find_files
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.pretrain.stage import final_checkpoint


@dataclass(frozen=True)
class UserFiles:
    """The files that a marked field of the configuration names. Their bytes count, in whatever order."""

    path: MarkedPath

    def find(self, root: Location) -> list[SourceFile]:
        """All of them; `root` is the run's. Raises MissingFile, and what else `storage.find` does."""
        file_in = self.path.mark.file_in
        return [
            source_file(file.absolute(), root / "sources")
            for pattern in self.path.patterns
            for file in find_files(file_in(pattern, root) if file_in else pattern)
        ]

    def identity(self, found: Sequence[SourceFile]) -> str:
        return ",".join(sorted(file.identity for file in found))

    def load(self, found: Sequence[SourceFile]) -> list[SourceFile] | SourceFile:
        """A list for a field that is one, else the file. Raises UserError when there are several all the same."""
        self.path.check_count([file.uri for file in found])
        return list(found) if self.path.is_list else found[0]


class Outputs(Protocol):
    """What an input asks of the run it is part of."""

    def fingerprint(self, name: str) -> str | None:
        """That of a stage's output, finished or not; None while it is not known."""
        ...

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished output; None when there is none."""
        ...


@dataclass(frozen=True)
class StageOutput:
    """The output of another stage. Its fingerprint counts, which is known before the output is there."""

    stage: str

    def identity(self, outputs: Outputs) -> str | None:
        """What it contributes to the fingerprint; None while that is not known."""
        return outputs.fingerprint(self.stage)

    def load(self, artifact: Artifact) -> Any:
        """The stage's finished output -> what the reader's `run` is given."""
        return artifact


class FinishedOutput(StageOutput):
    """The output of another stage, for one who shows times and curves: those change when the stage is forced."""

    def identity(self, outputs: Outputs) -> str | None:
        artifact = outputs.artifact(self.stage)
        return artifact and f"{artifact.fingerprint} {artifact.manifest.finished}"


class FinalCheckpoint(StageOutput):
    """The checkpoint with which a stage ends. Its digest counts, which nobody knows before."""

    def identity(self, outputs: Outputs) -> str | None:
        artifact = outputs.artifact(self.stage)
        return artifact and self.load(artifact).digest

    def load(self, artifact: Artifact) -> CheckpointRef:
        return final_checkpoint(artifact)
