"""A run: its configuration composed of the stages' own, its stages in order; what is to do, and doing it."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from infra.launch.local import ray_session
from infra.report import ReportConfig, publish
from pipeline.artifacts import Artifact, Manifest, Output, SourceFile, fingerprint, lost, read_manifest, source_file
from pipeline.attempts import clear
from pipeline.config import Compute, Config, MissingFile, UserError, identity
from pipeline.dedup import DedupConfig
from pipeline.examples import ExamplesConfig, LengthConfig
from pipeline.extract import ExtractConfig
from pipeline.storage import Location, find
from pipeline.tokens import TokensConfig
from pipeline.vocab import VocabConfig
from training.facts import PretrainFacts
from training.finetune import FinetuneConfig
from training.pretrain import PretrainConfig
from training.start import weights_file
from training.tasks import classification

Action = Literal["run", "continue", "skip", "wait"]
NOT_YET = "its input is not there yet"  # why a stage waits that a run would come to


class RunConfig(Config):
    """One YAML file. `root` is where every artifact lives; runs that share a root share what they have in common."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    root: Annotated[str, Compute] = "runs"
    schedule: Annotated[str, Compute] = "0 3 * * 0"  # cron, UTC: Sundays at three, when switched on in the UI
    extract: ExtractConfig
    dedup: DedupConfig = DedupConfig()
    vocab: VocabConfig
    tokens: TokensConfig = TokensConfig()
    examples: ExamplesConfig
    pretrain: PretrainConfig
    finetune: tuple[FinetuneConfig, ...] = ()

    @model_validator(mode="after")
    def _a_length_has_one_number_of_predictions(self) -> Self:
        predictions: dict[int, int] = {}
        for phase in self.pretrain.phases:
            known = predictions.setdefault(phase.max_seq_length, phase.max_predictions_per_seq)
            if known != phase.max_predictions_per_seq:
                raise ValueError(
                    f"pretrain.phases: length {phase.max_seq_length} has max_predictions_per_seq {known} and "
                    f"{phase.max_predictions_per_seq}; phases of one length share their examples, give them one number"
                )
        return self

    @model_validator(mode="after")
    def _tasks_fit_the_positions(self) -> Self:
        positions = self.pretrain.model.max_position_embeddings
        for task in self.finetune:
            if task.max_seq_length > positions:
                raise ValueError(
                    f"finetune.{task.name}.max_seq_length {task.max_seq_length} is more than the model's {positions} "
                    "positions; lower it or raise pretrain.model.max_position_embeddings"
                )
        return self

    @model_validator(mode="after")
    def _passes_are_of_sources(self) -> Self:
        names = [source.name for source in self.extract.sources]
        for name in self.examples.passes:
            if name not in names:
                raise ValueError(f"examples.passes: {name} is no source; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _names_are_used_once(self) -> Self:
        for what, names in (
            ("extract.sources", [source.name for source in self.extract.sources]),
            ("finetune", [task.name for task in self.finetune]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has two entries named {twice[0]}; give each a name of its own")
        return self


@dataclass(frozen=True)
class Stage:
    """One step of a run. `inputs` maps what the stage function calls its inputs to the stages that make them."""

    name: str
    module: str
    config: Config
    inputs: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)  # name -> the user's paths or globs
    needs_ray: bool = False

    @property
    def version(self) -> int:
        return int(importlib.import_module(self.module).VERSION)


@dataclass(frozen=True)
class Step:
    """What a run would do for a stage, and why. `output` is None while an input is not known yet."""

    stage: Stage
    action: Action
    reason: str
    output: Output | None


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, each after all that it reads."""
    lengths = {phase.max_seq_length: phase for phase in config.pretrain.phases}
    examples = [
        Stage(
            f"examples-{length}",
            "pipeline.examples",
            LengthConfig(
                **dict(config.examples),
                max_seq_length=length,
                max_predictions_per_seq=phase.max_predictions_per_seq,
            ),
            inputs={"tokens": "tokens", "vocab": "vocab"},
            needs_ray=True,
        )
        for length, phase in sorted(lengths.items())
    ]
    tasks = [
        Stage(
            f"finetune-{task.name}",
            "training.finetune",
            task,
            inputs={"checkpoint": "pretrain", "vocab": "vocab"},
            sources={"data": [task.file]},
            needs_ray=True,
        )
        for task in config.finetune
    ]
    sources = {source.name: source.files for source in config.extract.sources}
    before_report = [
        Stage("extract", "pipeline.extract", config.extract, sources=sources),
        Stage("dedup", "pipeline.dedup", config.dedup, inputs={"documents": "extract"}),
        Stage(
            "vocab",
            "pipeline.vocab",
            config.vocab,
            inputs={"documents": "dedup"},
            sources=_given(file=config.vocab.file, compare=config.vocab.compare),
            needs_ray=True,
        ),
        Stage(
            "tokens",
            "pipeline.tokens",
            config.tokens,
            inputs={"documents": "dedup", "vocab": "vocab"},
            sources=_given(splitter=config.tokens.splitter),
            needs_ray=True,
        ),
        *examples,
        Stage(
            "pretrain",
            "training.pretrain",
            config.pretrain,
            inputs={"vocab": "vocab", **{stage.name: stage.name for stage in examples}},
            sources=_given(init=config.pretrain.init),
            needs_ray=True,
        ),
        *tasks,
    ]
    report = Stage(
        "report",
        "infra.report",
        ReportConfig(name=config.name),
        inputs={stage.name: stage.name for stage in before_report},
    )
    return [*before_report, report]


def _given(**paths: str | None) -> dict[str, list[str]]:
    """Those of a stage's files that the configuration names, as sources."""
    return {name: [path] for name, path in paths.items() if path}


class Run:
    """A configuration's stages on its root: what each would do, and doing it. A context, for the Ray it may start."""

    def __init__(self, config: RunConfig, progress: "Callable[[str, float, float, str, str], None] | None" = None):
        self.config = config
        self.root = Location(config.root).absolute()  # Ray's workers run in folders of their own
        self.stages = {stage.name: stage for stage in stages(config)}
        self._progress = progress
        self._resources = ExitStack()
        self._ray = False
        self._sources: dict[str, dict[str, list[SourceFile]]] = {}

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
            return Step(stage, "wait", NOT_YET, None)
        if force:
            return Step(stage, "run", "forced", output)
        if manifest := read_manifest(output.location):
            if gone := lost(output.location, manifest):
                return Step(stage, "continue", f"{gone[0]} is gone or cut; goes on from its other parts", output)
            return Step(stage, "skip", f"done {manifest.finished[:16].replace('T', ' ')} UTC, nothing changed", output)
        if (output.location / "parts").files() or (output.location / "checkpoints").files():
            return Step(stage, "continue", "was stopped half-way; goes on from its finished parts", output)
        return Step(stage, "run", self._difference(stage), output)

    def check(self, until: str | None = None) -> None:
        """Raises UserError for a file that is missing or cannot work: before hours of work, not after."""
        for stage in self.until(until):
            if missing := self._missing(stage):
                raise UserError(missing)
            if stage.name in ("vocab", "tokens", "pretrain"):
                importlib.import_module(stage.module).check(stage.config, self._source_file(stage))
            if isinstance(stage.config, FinetuneConfig) and self.artifact(stage.name) is None:
                location = self._source_files(stage)["data"][0].location
                classification.check(classification.read(location, stage.config.columns), location)

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
            module = importlib.import_module(stage.module)
            module.run(stage.config, self._inputs(stage), step.output)
        else:
            clear(step.output.location)
        if isinstance(stage.config, ReportConfig):
            publish(step.output.location, self.page)
        manifest = read_manifest(step.output.location)
        assert manifest, f"{stage.module}.run must write a manifest"
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
            return dict.fromkeys([*stage.sources, *stage.inputs])
        found: dict[str, str | None] = {name: _combined(files) for name, files in self._source_files(stage).items()}
        for name, upstream in stage.inputs.items():
            if name == "checkpoint":
                artifact = self.artifact(upstream)
                found[name] = artifact and PretrainFacts.final(artifact.manifest).digest
            elif isinstance(stage.config, ReportConfig):  # it shows times and curves, which a forced stage changes
                artifact = self.artifact(upstream)
                found[name] = artifact and f"{artifact.fingerprint} {artifact.manifest.finished}"
            else:
                output = self._output(self.stages[upstream])
                found[name] = output and output.fingerprint
        return found

    def _inputs(self, stage: Stage) -> dict[str, Any]:
        if stage.name == "extract":
            return dict(self._source_files(stage))
        found: dict[str, Any] = self._source_file(stage)
        for name, upstream in stage.inputs.items():
            artifact = self.artifact(upstream)
            if artifact is None:
                raise UserError(f"{stage.name}: its input {upstream} is not there; run that stage first")
            if name == "checkpoint":
                from training.pretrain import final_checkpoint

                found[name] = final_checkpoint(artifact)
            else:
                found[name] = artifact
        return found

    def _source_files(self, stage: Stage) -> dict[str, list[SourceFile]]:
        if stage.name not in self._sources:
            self._sources[stage.name] = {
                name: [
                    source_file(file.absolute(), self.root / "sources")
                    for pattern in patterns
                    for file in find(weights_file(pattern, self.root) if name == "init" else pattern)
                ]
                for name, patterns in stage.sources.items()
            }
        return self._sources[stage.name]

    def _source_file(self, stage: Stage) -> dict[str, SourceFile]:
        """Name -> file, of a stage each of whose sources is one."""
        found = self._source_files(stage)
        for name, files in found.items():
            if len(files) > 1:
                raise UserError(f"{stage.name}: {name} names {len(files)} files ({files[0].uri}, ...); name one")
        return {name: files[0] for name, files in found.items()}

    def _missing(self, stage: Stage) -> str:
        """The line about the first of the stage's source files that is not there; empty when all are."""
        try:
            self._source_files(stage)
        except MissingFile as missing:
            return str(missing)
        return ""

    @property
    def _record(self) -> Location:
        return self.root / "runs" / f"{self.config.name}.json"

    def _remembered(self) -> dict[str, Any]:
        return json.loads(self._record.read_bytes()) if self._record.exists() else {}

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


def _combined(files: Sequence[SourceFile]) -> str:
    """Several files' identity, whatever their order."""
    return ",".join(sorted(file.identity for file in files))


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
