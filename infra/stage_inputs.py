"""The inputs of a stage: the user's files, and the outputs of other stages.

Each kind of input defines what it contributes to the stage's fingerprint, and what the stage's `run` receives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.config import MarkedPath
from cloze.pipeline.core.file_digests import SourceFile, as_one_file, source_files
from cloze.pipeline.core.storage import Location, find_files
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.pretrain.stage import final_checkpoint


@dataclass(frozen=True)
class UserFiles:
    """The files that a field of the configuration names. Their bytes are part of the fingerprint, in any order."""

    path: MarkedPath

    def find(self, root: Location) -> list[SourceFile]:
        """All of them; `root` is the run's. Raises MissingFile, and the errors of `storage.find`."""
        cache, files_in = root / "sources", self.path.mark.files_in

        def found(patterns: Sequence[str]) -> list[SourceFile]:
            return source_files(
                [file.absolute() for files in map_in_threads(find_files, patterns) for file in files], cache
            )

        if files_in:
            return [as_one_file(found(files_in(folder, root)), cache) for folder in self.path.patterns]
        return found(self.path.patterns)

    def identity(self, files: Sequence[SourceFile]) -> str:
        """The files' contribution to the fingerprint."""
        return ",".join(sorted(file.identity for file in files))

    def load(self, files: Sequence[SourceFile]) -> list[SourceFile] | SourceFile:
        """A list for a field that is a list, otherwise the one file. Raises UserError when that field names several."""
        self.path.check_count([file.uri for file in files])
        return list(files) if self.path.is_list else files[0]


class StageOutputs(Protocol):
    """The outputs of a run's stages, as the planner's `Run` provides them."""

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of a stage's output, finished or not; None while it is not known."""
        ...

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished output; None when it is not finished."""
        ...


@dataclass(frozen=True)
class StageOutput:
    """The output of another stage. Contributes that stage's fingerprint, which is known before the output exists."""

    stage: str

    def identity(self, outputs: StageOutputs) -> str | None:
        """The contribution to the fingerprint; None while it is not known."""
        return outputs.fingerprint(self.stage)

    def load(self, artifact: Artifact) -> Any:
        """The stage's finished output -> what the reading stage's `run` receives."""
        return artifact


class FinishedOutput(StageOutput):
    """The output of another stage for the report, which shows times and curves: those change when the stage is forced,
    so the time at which it finished is part of the fingerprint.
    """

    def identity(self, outputs: StageOutputs) -> str | None:
        artifact = outputs.artifact(self.stage)
        return artifact and f"{artifact.fingerprint} {artifact.manifest.finished}"


class FinalCheckpoint(StageOutput):
    """The final checkpoint of another stage. Contributes its digest, which is known once that stage is finished."""

    def identity(self, outputs: StageOutputs) -> str | None:
        artifact = outputs.artifact(self.stage)
        return artifact and self.load(artifact).digest

    def load(self, artifact: Artifact) -> CheckpointRef:
        return final_checkpoint(artifact)
