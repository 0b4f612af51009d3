"""A run's configuration -> its stages, each after the stages that it reads.

A new stage needs its module, its key in run_config.py and its entry here: no other file of infra/ names stages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

from cloze.infra import highlights
from cloze.infra.checks import figures
from cloze.infra.checks.check import Check
from cloze.infra.highlights import Highlights
from cloze.infra.report import stage as report
from cloze.infra.run_config import PretrainingConfigs, RunConfig
from cloze.infra.stage_inputs import FinalCheckpoint, FinishedOutput, StageOutput, UserFiles
from cloze.pipeline.core.artifacts import Artifact, Facts, Manifest
from cloze.pipeline.core.config import Config, input_paths
from cloze.pipeline.core.manifest_facts import DedupFacts, ExamplesFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import stage as dedup
from cloze.pipeline.examples import stage as examples
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.tokens import stage as tokens
from cloze.pipeline.vocab import stage as vocab
from cloze.training.finetune import stage as finetune
from cloze.training.finetune.encode import stage as encode_stage
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.overlap import stage as overlap
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.pretrain import stage as pretrain
from cloze.training.pretrain.manifest_facts import PretrainFacts

_SORTED_TOKENS = "token shards are sorted by document key, so that examples read one shard"
#: Module of a stage and its version -> why it rose. A version that is not listed has no reason to show.
_VERSION_REASONS = {(tokens, 3): _SORTED_TOKENS, (examples, 3): _SORTED_TOKENS}


@dataclass(frozen=True)
class Stage:
    """One stage of a run. `version`, `run` and `check` are those of its module; inputs have the names that `run` uses.

    `run`: (config, inputs, out) -> the manifest that it has written. `check`: (config, the inputs that are the user's
    files) raises UserError for files that the stage cannot use, before the run starts.
    """

    name: str
    config: Config
    version: int
    run: Callable[[Any, Any, Output], Manifest]
    check: Callable[[Any, Any], object] | None = None
    reads: Mapping[str, StageOutput] = field(default_factory=dict)  # outputs of other stages
    needs_ray: bool = False
    folder: str = ""  # of its outputs under the root, by default its name: a stage of another name may have the same
    is_task: bool = False  # of a fine-tuning task: `cloze finetune` runs these
    facts: type[Facts] = Facts  # the model of its manifest's facts
    checks: tuple[Check, ...] = ()  # of its finished output; a run stops at a stage that fails one
    version_reason: str = ""  # why its version has risen last, for the plan
    publish: Callable[[Location, Location], object] | None = None  # copies its finished output to the run's report page
    highlights: Callable[[Artifact], Highlights] | None = None  # of its finished output; for the workflow's pages
    description: str | None = None  # this and `kinds` are shown in Dagster's UI
    kinds: tuple[str, ...] = ()

    @cached_property
    def sources(self) -> dict[str, UserFiles]:
        """The inputs that are the user's files: the paths in the configuration."""
        paths = input_paths(self.config)
        sources = {path.input: UserFiles(path) for path in paths}
        names_differ = len(sources) == len(paths) and not sources.keys() & self.reads.keys()
        assert names_differ, f"{self.name}: inputs share a name"
        return sources

    @property
    def after(self) -> tuple[str, ...]:
        """The names of the stages that it reads, each once."""
        return tuple(dict.fromkeys(output.stage for output in self.reads.values()))


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, in an order in which they can run."""
    pretraining = _up_to_pretraining(config, config.pretraining) if config.pretraining else []
    # The tasks first: no GPU waits for a search of the documents.
    before_report = [*pretraining, *_tasks(config.finetune), *map(_overlap, config.finetune)]
    page = _stage(
        report,
        "report",
        report.ReportConfig(name=config.name),
        reads={stage.name: FinishedOutput(stage.name) for stage in before_report},
        publish=report.publish,
        kinds=("report",),
    )
    return [*before_report, page]


def _up_to_pretraining(config: RunConfig, configs: PretrainingConfigs) -> list[Stage]:
    """The stages of a run with pretraining, without its tasks."""
    examples_stages = _examples(configs)
    return [
        _stage(
            extract,
            "extract",
            configs.extract,
            facts=ExtractFacts,
            checks=(
                figures.counts_check("documents", "words"),
                figures.drop_rates_check("records"),
                figures.RESIDUE,
                figures.FRESHNESS,
            ),
            highlights=highlights.of_extract,
            kinds=("beam", "parquet"),
        ),
        _stage(
            dedup,
            "dedup",
            config.dedup,
            reads={"documents": StageOutput("extract")},
            facts=DedupFacts,
            checks=(figures.counts_check("documents", "words"), figures.drop_rates_check("records")),
            highlights=highlights.of_dedup,
            kinds=("beam", "parquet"),
        ),
        _stage(
            vocab,
            "vocab",
            configs.vocab,
            reads={"documents": StageOutput("dedup")},
            needs_ray=True,
            facts=VocabFacts,
            checks=(figures.UNKNOWN_WORDS,),
            highlights=highlights.of_vocab,
            kinds=("ray",),
        ),
        _stage(
            tokens,
            "tokens",
            config.tokens,
            reads={"documents": StageOutput("dedup"), "vocab": StageOutput("vocab")},
            needs_ray=True,
            checks=(figures.counts_check("documents", "tokens"), figures.UNKNOWN_TOKENS),
            highlights=highlights.of_tokens,
            kinds=("ray", "parquet"),
        ),
        *examples_stages,
        _stage(
            pretrain,
            "pretrain",
            configs.pretrain,
            reads={"vocab": StageOutput("vocab"), **{stage.name: StageOutput(stage.name) for stage in examples_stages}},
            needs_ray=True,
            facts=PretrainFacts,
            checks=(figures.PRETRAINING_FINITE, figures.HELDOUT_LOSS),
            highlights=highlights.of_pretrain,
            kinds=("ray", "deepspeed", "pytorch"),
        ),
    ]


def _examples(configs: PretrainingConfigs) -> list[Stage]:
    """One stage for each sequence length of pretraining's phases."""
    lengths = {phase.max_seq_length: phase for phase in configs.pretrain.phases}
    return [
        _stage(
            examples,
            f"examples-{length}",
            examples.LengthConfig(
                **dict(configs.examples),
                max_seq_length=length,
                max_predictions_per_seq=phase.max_predictions_per_seq,
            ),
            reads={"tokens": StageOutput("tokens"), "vocab": StageOutput("vocab")},
            needs_ray=True,
            facts=ExamplesFacts,
            checks=(figures.counts_check("train", "train_tokens"),),
            highlights=highlights.of_examples,
            kinds=("ray", "parquet"),
        )
        for length, phase in sorted(lengths.items())
    ]


def _tasks(tasks: Sequence[FinetuneConfig]) -> list[Stage]:
    """Two stages for each task: its encoded examples, which tasks with the same examples share, and the training."""
    found = list[Stage]()
    for task in tasks:
        config = encode_stage.encode_config(task)
        encode = next((stage for stage in found if stage.config == config), None)
        if encode is None:
            found.append(encode := _encode(task, config))
        found.append(_task(task, encode.name))
    return found


def _encode(task: FinetuneConfig, config: encode_stage.EncodeConfig) -> Stage:
    """The stage that encodes a task's examples, with the run's own tokenizer unless the task has an `init`."""
    return _stage(
        encode_stage,
        f"encode-{task.name}",
        config,
        folder="encode",
        reads={} if task.init else {"vocab": StageOutput("vocab")},
        is_task=True,
        checks=(figures.counts_check("rows"),),
        kinds=("arrow",),
    )


def _task(task: FinetuneConfig, encode: str) -> Stage:
    """The stage of a fine-tuning task, which reads the run's own checkpoint unless it has an `init`."""
    pretrained = {"checkpoint": FinalCheckpoint("pretrain"), "vocab": StageOutput("vocab")}
    return _stage(
        finetune,
        f"finetune-{task.name}",
        task,
        reads={**({} if task.init else pretrained), "encoded": StageOutput(encode)},
        needs_ray=True,
        is_task=True,
        facts=FinetuneFacts,
        checks=(figures.TASK_FINITE, figures.SCORE),
        highlights=highlights.of_task,
        kinds=("ray", "pytorch"),
    )


def _overlap(task: FinetuneConfig) -> Stage:
    """The stage that compares a task's examples with the documents that its encoder was pretrained on."""
    return _stage(
        overlap,
        f"overlap-{task.name}",
        task,
        reads={
            "finetuned": StageOutput(f"finetune-{task.name}"),
            **({} if task.init else {"checkpoint": FinalCheckpoint("pretrain")}),
        },
        needs_ray=True,
        is_task=True,
        facts=OverlapFacts,
        highlights=highlights.of_overlap,
        kinds=("ray", "parquet"),
    )


def _stage(module: ModuleType, name: str, config: Config, **more: Any) -> Stage:
    """The stage of a module, which has VERSION, `run` and, where its files can be checked before, `check`."""
    return Stage(
        name,
        config,
        module.VERSION,
        module.run,
        check=getattr(module, "check", None),
        description=module.__doc__,
        version_reason=_VERSION_REASONS.get((module, module.VERSION), ""),
        **more,
    )
