"""A run's stages -> what is to do for each and why, and doing it. What a stage is, its `Stage` alone says."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self

from cloze.infra.inputs import UserFiles
from cloze.infra.ray_session import ray_session
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import Stage, stages
from cloze.pipeline.core.artifacts import Artifact, Manifest, Output, fingerprint, missing_files, read_manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import MissingFile, UserError
from cloze.pipeline.core.scratch import delete_abandoned
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location

Action = Literal["run", "continue", "skip", "wait"]
NOT_YET = "its input is not there yet"  # why a stage waits that a run would come to


@dataclass(frozen=True)
class Step:
    """What a run would do for a stage, and why.

    `output` is None while an input is not known yet: a file of the user's, or what the stages that `waits_for` names
    are still to give.
    """

    stage: Stage
    action: Action
    reason: str
    output: Output | None
    waits_for: tuple[str, ...] = ()


class Run:
    """A configuration's stages on its root: what each would do, and doing it. A context, for the Ray it may start."""

    def __init__(self, config: RunConfig, progress: "Callable[[str, float, float, str, str], None] | None" = None):
        self.config = config
        self.root = Location(config.root).absolute()  # Ray's workers run in folders of their own
        self.stages = {stage.name: stage for stage in stages(config)}
        self._progress = progress
        self._resources = ExitStack()
        self._ray = False
        self._found: dict[UserFiles, list[SourceFile]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def stage(self, name: str) -> Stage:
        """Raises UserError for a name that is no stage of this run."""
        if name not in self.stages:
            raise UserError(f"{name}: is no stage of this run; it has {', '.join(self.stages)}")
        return self.stages[name]

    def until(self, name: str | None) -> list[Stage]:
        """The stages that `--until name` asks for: it and all before it; every stage for None."""
        names = list(self.stages)
        last = names.index(self.stage(name).name) if name else len(names)
        return list(self.stages.values())[: last + 1]

    def plan(self, until: str | None = None, force: Sequence[str] = ()) -> list[Step]:
        """What a run would do now, stage by stage, without doing it."""
        self.check_forced(until, force)
        return [self.step(stage, force=stage.name in force) for stage in self.until(until)]

    def check_forced(self, until: str | None, force: Sequence[str]) -> None:
        """Raises UserError for a stage that is forced and comes after the last one asked for."""
        asked = [stage.name for stage in self.until(until)]
        for name in force:
            if self.stage(name).name not in asked:
                raise UserError(f"--force {name}: comes after --until {until}; leave one of them out")

    def step(self, stage: Stage, force: bool = False) -> Step:
        """Whether a stage would run, continue or be skipped, and why."""
        if missing := self._missing(stage):
            return Step(stage, "wait", missing, None)
        output = self._output(stage)
        if output is None:
            unknown = (made.stage for made in stage.reads.values() if made.identity(self) is None)
            return Step(stage, "wait", NOT_YET, None, tuple(dict.fromkeys(unknown)))
        if force:
            return Step(stage, "run", "forced", output)
        if manifest := read_manifest(output.location):
            if gone := missing_files(output.location, manifest):
                return Step(stage, "continue", f"{gone[0]} is gone or cut; goes on from its other parts", output)
            return Step(stage, "skip", f"done {manifest.finished[:16].replace('T', ' ')} UTC, nothing changed", output)
        if (output.location / "parts").files() or (output.location / "checkpoints").files():
            return Step(stage, "continue", "was stopped half-way; goes on from its finished parts", output)
        return Step(stage, "run", self._difference(stage), output)

    def check(self, until: str | None = None, force: Sequence[str] = ()) -> None:
        """Raises UserError for a file that is missing, or with which a stage that is not done cannot work: before hours
        of work, not after."""
        for stage in self.until(until):
            if missing := self._missing(stage):
                raise UserError(missing)
            if stage.check and self.step(stage, stage.name in force).action != "skip":
                stage.check(stage.config, self._sources(stage))

    def execute(self, name: str, force: bool = False) -> tuple[Step, Manifest]:
        """Bring one stage's output about, whose inputs are there: skip it, continue it or run it."""
        stage = self.stage(name)
        step = self.step(stage, force)
        if step.output is None:
            raise UserError(f"{name}: its input is not there; run without --force, or the stages before it first")
        if step.action != "skip":
            if force:
                (step.output.location / "manifest.json").delete()  # first, so that no half-deleted folder looks done
                step.output.location.delete()
            if stage.needs_ray and not self._ray:
                self._resources.enter_context(ray_session())
                self._ray = True
            stage.run(stage.config, self._inputs(stage), step.output)
        else:
            delete_abandoned(step.output.location)
        if stage.publish:
            stage.publish(step.output.location, self.page)
        manifest = read_manifest(step.output.location)
        assert manifest, f"{name}: its run must write a manifest"
        self._remember(stage, step.output.fingerprint)
        return step, manifest

    @property
    def page(self) -> Location:
        """Where the page about the run is to be found."""
        return self.root / f"{self.config.name}.html"

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished output, None when there is none for this configuration."""
        output = self._output(self.stage(name))
        if output is None or read_manifest(output.location) is None:
            return None
        return Artifact(output.location, output.stage, output.fingerprint)

    def fingerprint(self, name: str) -> str | None:
        """That of a stage's output, finished or not; None while its inputs' identities are not known."""
        output = self._output(self.stage(name))
        return output and output.fingerprint

    def _output(self, stage: Stage) -> Output | None:
        """Where a stage's output goes; None while its inputs' identities are not known."""
        identities = self._identities(stage)
        inputs = {name: value for name, value in identities.items() if value is not None}
        if len(inputs) < len(identities):
            return None
        digest = fingerprint(stage.name, stage.version, identity(stage.config), inputs)
        progress = self._progress
        reporter = None if progress is None else lambda *told: progress(stage.name, *told)
        return Output(self.root / stage.name / digest, stage.name, stage.version, digest, reporter)

    def _identities(self, stage: Stage) -> dict[str, str | None]:
        """Input name -> what it contributes to the fingerprint; None where that is not known yet."""
        if self._missing(stage):
            return dict.fromkeys([*stage.sources, *stage.reads])
        return {
            **{name: files.identity(self._files(files)) for name, files in stage.sources.items()},
            **{name: made.identity(self) for name, made in stage.reads.items()},
        }

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        """What the stage's `run` is given."""
        found = self._sources(stage)
        for name, made in stage.reads.items():
            artifact = self.artifact(made.stage)
            if artifact is None:
                raise UserError(f"{stage.name}: its input {made.stage} is not there; run that stage first")
            found[name] = made.load(artifact)
        return found

    def _sources(self, stage: Stage) -> dict[str, Any]:
        """Those of the stage's inputs that are files of the user's."""
        return {name: files.load(self._files(files)) for name, files in stage.sources.items()}

    def _files(self, files: UserFiles) -> list[SourceFile]:
        if files not in self._found:
            self._found[files] = files.find(self.root)
        return self._found[files]

    def _missing(self, stage: Stage) -> str:
        """The line about the first of the stage's source files that is not there; empty when all are."""
        try:
            for files in stage.sources.values():
                self._files(files)
        except MissingFile as missing:
            return str(missing)
        return ""

    @property
    def _record(self) -> Location:
        return self.root / "runs" / f"{self.config.name}.json"

    def _remembered(self) -> dict[str, Any]:
        try:
            return json.loads(self._record.read_bytes()) if self._record.exists() else {}
        except ValueError:  # damaged: it only says what has changed
            return {}

    def _remember(self, stage: Stage, digest: str) -> None:
        """Note what the run of this name last used for the stage: `plan` tells the next difference from it."""
        entry = {
            "fingerprint": digest,
            "version": stage.version,
            "config": identity(stage.config),
            "inputs": self._identities(stage),
        }
        remembered = self._remembered()
        if remembered.get(stage.name) != entry:
            self._record.write_text(json.dumps({**remembered, stage.name: entry}, indent=1))

    def _difference(self, stage: Stage) -> str:
        before = self._remembered().get(stage.name)
        if before is None:
            return "no output yet"
        inputs = self._identities(stage)
        changes = _changed_keys(before["config"], json.loads(json.dumps(identity(stage.config))), stage.name)
        changes += [f"input {name} changed" for name, value in inputs.items() if before["inputs"].get(name) != value]
        changes += [f"input {name} is gone" for name in before["inputs"] if name not in inputs]
        if before["version"] != stage.version:
            changes.append(f"Cloze makes it differently now (version {before['version']} -> {stage.version})")
        return "; ".join(changes) or "its output was deleted"


def _changed_keys(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [change for key in keys for change in _changed_keys(before.get(key), now.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [change for i, (old, new) in pairs for change in _changed_keys(old, new, f"{path}.{i}")]
    return [] if before == now else [f"{path}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
