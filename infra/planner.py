"""A run's stages -> a plan that says what to do for each stage and why; and the execution of a stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

from cloze.infra.checks.records import StageFigures, write_passed, write_results
from cloze.infra.checks.results import CheckResult, require_passed
from cloze.infra.checks.stage_checks import check_stage, stage_figures, upstream_of
from cloze.infra.promotion import registry
from cloze.infra.promotion.inits import uses_promoted, with_digests
from cloze.infra.ray_session import LazyRaySession
from cloze.infra.run_config import RunConfig
from cloze.infra.stage_history import StageHistory
from cloze.infra.stage_inputs import UserFiles
from cloze.infra.stages import Stage, stages
from cloze.pipeline.core.artifacts import Artifact, Manifest, fingerprint, missing_files, read_manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import DamagedFile, MissingFile, UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.lease_files import Owner
from cloze.pipeline.core.leases import hold_lease, owner_of, refuse_to_wait, wait_until_free
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_cluster import belongs_to_cluster
from cloze.pipeline.core.scratch import delete_abandoned, delete_scratch
from cloze.pipeline.core.storage import Location

Action = Literal["run", "continue", "skip", "wait"]
INPUT_UNKNOWN = "its inputs are not finished yet"  # the reason of a stage that waits for other stages


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do for a stage, and why.

    `output` is None while an input's identity is not known: a file of the user's is missing, or the stages in
    `waits_for` are not finished. `Run.plan` sets `owner`.
    """

    stage: Stage
    action: Action
    reason: str
    output: Output | None
    waits_for: tuple[str, ...] = ()
    owner: Owner | None = None  # the run that works on it now


class Run:
    """Plans and executes the stages of a configuration. A context manager: it ends the Ray session it may start.

    With `only_tasks` its stages are the fine-tuning tasks and what they need. Raises UserError when there is no task.
    `pinned` are the outputs of a promoted run's stages: they are read wherever the run's inputs and settings are now.
    """

    def __init__(
        self,
        config: RunConfig,
        progress: "Callable[[str, float, float, str, str], None] | None" = None,
        *,
        only_tasks: bool = False,
        ray: LazyRaySession | None = None,
        pinned: Mapping[str, registry.PromotedStage] | None = None,
        page: str = "",
    ):
        self.config = config
        self.root = Location(config.root).absolute()  # Ray's workers run in folders of their own
        self._only_tasks, self._pinned, self._page_name = only_tasks, pinned or {}, page or config.name
        #: The stages as the configuration has them: with NAME@promoted, which `stages` resolves when it is first read.
        self.unresolved_stages = stages(config)
        if only_tasks and not any(stage.is_task for stage in self.unresolved_stages):
            raise UserError(f"{config.name}: has no fine-tuning task; add one to finetune")
        self._progress = progress
        self._ray = ray or LazyRaySession()
        self._history = StageHistory(self.root, config.name, config.partition)
        self._source_files: dict[UserFiles, list[SourceFile]] = {}
        self._compared_with = config.name
        self._checked: dict[str, list[CheckResult]] = {}  # by stage

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.close()

    @cached_property
    def _resolved(self) -> tuple[RunConfig, tuple[str, ...]]:
        """The configuration with digests in place of NAME@promoted, and notes about it."""
        return with_digests(self.config, self.root, lambda config, stage: Run(config).fingerprint(stage))

    @property
    def resolved_config(self) -> RunConfig:
        """The configuration as the stages have it: with digests in place of NAME@promoted, as it was when first read.

        Raises UserError for a task whose `init` names a model that is not promoted.
        """
        return self._resolved[0] if uses_promoted(self.config) and not self._pinned else self.config

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the configuration."""
        return () if self.resolved_config is self.config else self._resolved[1]

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages by their names, in an order in which they can run."""
        of_run = self.unresolved_stages if self.resolved_config is self.config else stages(self.resolved_config)
        return {stage.name: stage for stage in (_needed_for_tasks(of_run) if self._only_tasks else of_run)}

    def stage(self, name: str) -> Stage:
        """Raises UserError when the run has no stage of this name."""
        if name not in self.stages:
            raise UserError(f"{name}: is not a stage of this run; its stages are {', '.join(self.stages)}")
        return self.stages[name]

    def until(self, name: str | None) -> list[Stage]:
        """The stages of `--until name`: that one and all before it; all stages for None."""
        names = list(self.stages)
        last = names.index(self.stage(name).name) if name else len(names)
        return list(self.stages.values())[: last + 1]

    def plan(self, until: str | None = None, force: Sequence[str] = ()) -> list[PlannedStage]:
        """What a run would do now, stage by stage."""
        self.check_forced(until, force)
        return [_with_owner(self.plan_stage(stage, force=stage.name in force)) for stage in self.until(until)]

    def check_forced(self, until: str | None, force: Sequence[str]) -> None:
        """Raises UserError when a forced stage comes after the stage `until`."""
        names = [stage.name for stage in self.until(until)]
        for name in force:
            if self.stage(name).name not in names:
                raise UserError(f"--force {name}: comes after --until {until}; leave one of them out")

    def plan_stage(self, stage: Stage, force: bool = False) -> PlannedStage:
        """Whether a stage would run, continue, be skipped or wait, and why."""
        if stage.name not in self._pinned and (missing := self._missing(stage)):
            return PlannedStage(stage, "wait", missing, None)
        output = self._output(stage)
        if output is None:
            unknown = (read.stage for read in stage.reads.values() if read.identity(self) is None)
            return PlannedStage(stage, "wait", INPUT_UNKNOWN, None, tuple(dict.fromkeys(unknown)))
        if force:
            return PlannedStage(stage, "run", "forced", output)
        if manifest := read_manifest(output.location):
            if damaged := missing_files(output.location, manifest):
                reason = f"{damaged[0]} is missing or truncated; continues from the other parts"
                return PlannedStage(stage, "continue", reason, output)
            finished = manifest.finished[:16].replace("T", " ")
            return PlannedStage(stage, "skip", f"done {finished} UTC, nothing changed", output)
        if (output.location / "parts").files() or (output.location / "checkpoints").files():
            return PlannedStage(stage, "continue", "was interrupted; continues from its finished parts", output)
        return PlannedStage(stage, "run", self._history.difference(stage, self._identities(stage)), output)

    def check(self, until: str | None = None, force: Sequence[str] = ()) -> None:
        """Check the user's files before the run starts.

        Raises UserError for a missing file, or for one that a stage that is not finished cannot use.
        """
        for stage in self.until(until):
            if missing := self._missing(stage):
                raise UserError(missing)
            if stage.check and self.plan_stage(stage, stage.name in force).action != "skip":
                stage.check(stage.config, self.sources(stage))

    def execute(
        self,
        name: str,
        force: bool = False,
        on_start: Callable[[PlannedStage], None] | None = None,
        on_wait: Callable[[Owner], None] | None = None,
    ) -> tuple[PlannedStage, Manifest]:
        """Run, continue or skip one stage whose inputs are finished; `on_start` is called before it runs or continues.

        While another run works on its output, or again on its inputs, `on_wait` is called about once a second. Without
        it the stage does not wait: it raises ArtifactInUse. Raises UserError when an input is not finished,
        ChecksFailed when a stage that it depends on has failed a check, and the errors of the stage.
        """
        stage = self.stage(name)
        self._wait_for_inputs(stage, on_wait)
        for before in upstream_of(self, name):
            require_passed(self.check_results(before))
        planned = self.plan_stage(stage, force)
        if planned.output is None:
            raise UserError(f"{name}: its inputs are not finished; run without --force, or the stages before it first")
        manifest = self._skip(planned) if planned.action == "skip" else None
        if manifest is None:
            planned, manifest = self._execute_alone(planned, force, on_start, on_wait)
        self._history.remember(stage, manifest.fingerprint, self._identities(stage))
        if results := self.check_results(name):
            write_results(self.root, self.config.name, name, manifest.fingerprint, results)
        return planned, manifest

    def _skip(self, planned: PlannedStage) -> Manifest | None:
        """The manifest of a finished stage; None if another run has just begun to write it again (--force)."""
        assert planned.output
        delete_abandoned(planned.output.location)
        manifest = read_manifest(planned.output.location)
        if manifest:
            self._publish(planned.stage, planned.output)
        return manifest

    def _execute_alone(
        self,
        planned: PlannedStage,
        force: bool,
        on_start: Callable[[PlannedStage], None] | None,
        on_wait: Callable[[Owner], None] | None,
    ) -> tuple[PlannedStage, Manifest]:
        """Run or continue a stage while no other run works on its output, unless that has finished it meanwhile."""
        assert planned.output
        stage, place = planned.stage, planned.output.location
        with hold_lease(place, on_wait or refuse_to_wait(place)) as lease:
            planned = self.plan_stage(stage, force)
            output = planned.output
            assert output
            output.lease = lease
            if planned.action != "skip":
                self._run(stage, planned, force, on_start, on_wait)
            self._publish(stage, output)
            manifest = read_manifest(output.location)  # now: after this block another run may begin to write it again
            assert manifest, f"{stage.name}: its run must write a manifest"
        return planned, manifest

    def check_results(self, name: str) -> list[CheckResult]:
        """The results of the checks of a stage's finished output; none while it is not finished.

        They are computed once, and again after the stage ran. Whoever executes a stage gives them to `require_passed`.
        """
        if self._pinned:  # they have passed when they were promoted
            return []
        if name in self._checked or not self.stage(name).checks:
            return self._checked.get(name, [])
        artifact = self.artifact(name)
        if artifact is None:
            return []
        self._checked[name] = check_stage(self, name, artifact)
        return self._checked[name]

    def compare_with(self, promoted: str) -> None:
        """Check all stages again, against what is promoted now under this name, or as `checks.promoted`."""
        self._compared_with = promoted
        self._checked.clear()

    def promoted_figures(self) -> Sequence[Mapping[str, StageFigures]]:
        """Stage -> its figures, of each promoted model that this run is compared with, the oldest first."""
        history = registry.events(self.root, self.config.checks.promoted or self._compared_with)
        return [event.stages for event in registry.standing(history)]

    def remember_passed(self) -> None:
        """If all stages are finished and pass their checks, later runs are compared with this one."""
        if self._only_tasks or self._pinned:
            return
        passed: dict[str, StageFigures] = {}
        for name, stage in self.stages.items():
            artifact = self.artifact(name)
            if artifact is None or not all(result.passed for result in self.check_results(name)):
                return
            if stage.checks:
                passed[name] = stage_figures(self, name, artifact)
        write_passed(self.root, self.config.name, passed)

    def _wait_for_inputs(self, stage: Stage, on_wait: Callable[[Owner], None] | None) -> None:
        """Wait for inputs that another run is writing again (--force)."""
        for name in stage.after:
            output = self._output(self.stage(name))
            if output and not (output.location / "manifest.json").is_file():
                wait_until_free(output.location, on_wait or refuse_to_wait(output.location))

    def _run(
        self,
        stage: Stage,
        planned: PlannedStage,
        force: bool,
        on_start: Callable[[PlannedStage], None] | None,
        on_wait: Callable[[Owner], None] | None,
    ) -> None:
        """Run or continue a stage. This run has the lease of its output.

        It runs once more if a file on S3 seemed damaged, as its bytes may have changed on the way.
        """
        assert planned.output
        if on_start:
            on_start(planned)
        if force:
            planned.output.clear()
        self._start_ray(stage)
        try:
            stage.run(stage.config, self._inputs(stage, on_wait), planned.output)
        except DamagedFile as error:
            if not str(error).startswith("s3://"):
                raise
            stage.run(stage.config, self._inputs(stage, on_wait), planned.output)
        planned.output.check_lease()
        self._checked.pop(stage.name, None)
        delete_scratch(planned.output.location)

    def _publish(self, stage: Stage, output: Output) -> None:
        if stage.publish:
            output.check_lease()
            stage.publish(output.location, self.page)

    def _start_ray(self, stage: Stage) -> None:
        """Start the Ray session that the stages share, if this one needs it. On a Ray cluster all stages use it."""
        if stage.needs_ray or belongs_to_cluster():
            self._ray.start()

    @property
    def page(self) -> Location:
        """Where the run's report is published."""
        return self.root / f"{self._page_name}.html"

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished output; None when it is not finished for this configuration."""
        output = self._output(self.stage(name))
        if output is None or read_manifest(output.location) is None:
            return None
        return Artifact(output.location, output.stage, output.fingerprint)

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of a stage's output, finished or not; None while its inputs' identities are not known."""
        output = self._output(self.stage(name))
        return output and output.fingerprint

    def _output(self, stage: Stage) -> Output | None:
        """A stage's output; None while its inputs' identities are not known."""
        if pinned := self._pinned.get(stage.name):
            place = self.root / pinned.folder / pinned.fingerprint
            return Output(place, pinned.folder, stage.version, pinned.fingerprint)
        identities = self._identities(stage)
        inputs = {name: value for name, value in identities.items() if value is not None}
        if len(inputs) < len(identities):
            return None
        folder = stage.folder or stage.name
        digest = fingerprint(folder, stage.version, identity(stage.config), inputs)
        progress = self._progress
        reporter = None if progress is None else lambda *report: progress(stage.name, *report)
        return Output(self.root / folder / digest, folder, stage.version, digest, reporter)

    def _identities(self, stage: Stage) -> dict[str, str | None]:
        """Input name -> what it contributes to the fingerprint; None where that is not known yet."""
        if self._missing(stage):
            return dict.fromkeys([*stage.sources, *stage.reads])
        return {
            **{name: files.identity(self.source_files(files)) for name, files in stage.sources.items()},
            **{name: read.identity(self) for name, read in stage.reads.items()},
        }

    def _inputs(self, stage: Stage, on_wait: Callable[[Owner], None] | None) -> dict[str, Any]:
        """The inputs that the stage's `run` receives."""
        inputs = self.sources(stage)
        for name, read in stage.reads.items():
            artifact = self.artifact(read.stage)
            if artifact is None:  # another run has begun to write it again
                self._wait_for_inputs(stage, on_wait)
                artifact = self.artifact(read.stage)
            if artifact is None:
                raise UserError(f"{stage.name}: its input {read.stage} is not finished; run that stage first")
            inputs[name] = read.load(artifact)
        return inputs

    def sources(self, stage: Stage) -> dict[str, Any]:
        """The inputs of a stage that are the user's files. Raises MissingFile."""
        return {name: files.load(self.source_files(files)) for name, files in stage.sources.items()}

    def source_files(self, files: UserFiles) -> list[SourceFile]:
        """The user's files, found once. Raises MissingFile."""
        if files not in self._source_files:
            self._source_files[files] = files.find(self.root)
        return self._source_files[files]

    def files_of(self, name: str) -> list[SourceFile]:
        """The user's files that a stage reads. Raises MissingFile."""
        return [file for files in self.stage(name).sources.values() for file in self.source_files(files)]

    def _missing(self, stage: Stage) -> str:
        """The message about the first of the stage's source files that is missing; empty when there is none."""
        try:
            for files in stage.sources.values():
                self.source_files(files)
        except MissingFile as missing:
            return str(missing)
        return ""


def _with_owner(planned: PlannedStage) -> PlannedStage:
    """The planned stage with the run that works on it, which the reason then names."""
    if planned.output is None or planned.action == "skip":
        return planned
    owner = owner_of(planned.output.location)
    return replace(planned, owner=owner, reason=f"waits for {owner}, which is writing it") if owner else planned


def _needed_for_tasks(of_run: Sequence[Stage]) -> list[Stage]:
    """The fine-tuning tasks, all stages that they read, and the report if it reads no other stage."""
    needed = {stage.name for stage in of_run if stage.is_task}
    for stage in reversed(of_run):
        if stage.name in needed:
            needed |= {*stage.after}
    return [stage for stage in of_run if stage.name in needed or (stage.publish and needed.issuperset(stage.after))]
