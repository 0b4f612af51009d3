"""A run's configuration -> its stages, each after all that it reads.

A new stage is its module, its key in run_config.py and its row here: nothing else in infra/ knows one from another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from infra import report
from infra.inputs import FinalCheckpoint, FinishedOutput, StageOutput, UserFiles
from infra.run_config import RunConfig
from pipeline import dedup, examples, extract, tokens, vocab
from pipeline.artifacts import Manifest, Output
from pipeline.config import Config, input_paths
from pipeline.storage import Location
from training import finetune, pretrain


@dataclass(frozen=True)
class Stage:
    """One step of a run. `version`, `run` and `check` are those of its module; inputs have the names that `run` uses.

    `run`: (config, inputs, out) -> the manifest that it has written. `check`: (config, the inputs that are files of the
    user's) raises UserError for what cannot work, before hours of work.
    """

    name: str
    config: Config
    version: int
    run: Callable[[Any, Any, Output], Manifest]
    check: Callable[[Any, Any], object] | None = None
    reads: Mapping[str, StageOutput] = field(default_factory=dict)  # what other stages make
    needs_ray: bool = False
    publish: Callable[[Location, Location], object] | None = None  # its finished output -> the page about the run
    description: str | None = None  # this and `kinds` are for Dagster's pages
    kinds: tuple[str, ...] = ()

    @cached_property
    def sources(self) -> dict[str, UserFiles]:
        """The inputs that are files of the user's: the paths in the configuration."""
        paths = input_paths(self.config)
        found = {path.input: UserFiles(path) for path in paths}
        assert len(found) == len(paths) and not found.keys() & self.reads.keys(), f"{self.name}: inputs share a name"
        return found

    @property
    def after(self) -> tuple[str, ...]:
        """The stages that it reads, each once."""
        return tuple(dict.fromkeys(output.stage for output in self.reads.values()))


def stages(config: RunConfig) -> list[Stage]:
    """The stages of a run, in an order in which they can be run."""
    examples_stages = _examples(config)
    before_report = [
        Stage(
            "extract",
            config.extract,
            extract.VERSION,
            extract.run,
            description=extract.__doc__,
            kinds=("beam", "parquet"),
        ),
        Stage(
            "dedup",
            config.dedup,
            dedup.VERSION,
            dedup.run,
            reads={"documents": StageOutput("extract")},
            description=dedup.__doc__,
            kinds=("beam", "parquet"),
        ),
        Stage(
            "vocab",
            config.vocab,
            vocab.VERSION,
            vocab.run,
            check=vocab.check,
            reads={"documents": StageOutput("dedup")},
            needs_ray=True,
            description=vocab.__doc__,
            kinds=("ray",),
        ),
        Stage(
            "tokens",
            config.tokens,
            tokens.VERSION,
            tokens.run,
            check=tokens.check,
            reads={"documents": StageOutput("dedup"), "vocab": StageOutput("vocab")},
            needs_ray=True,
            description=tokens.__doc__,
            kinds=("ray", "parquet"),
        ),
        *examples_stages,
        Stage(
            "pretrain",
            config.pretrain,
            pretrain.VERSION,
            pretrain.run,
            check=pretrain.check,
            reads={"vocab": StageOutput("vocab"), **{stage.name: StageOutput(stage.name) for stage in examples_stages}},
            needs_ray=True,
            description=pretrain.__doc__,
            kinds=("ray", "deepspeed", "pytorch"),
        ),
        *[
            Stage(
                f"finetune-{task.name}",
                task,
                finetune.VERSION,
                finetune.run,
                check=finetune.check,
                reads={"checkpoint": FinalCheckpoint("pretrain"), "vocab": StageOutput("vocab")},
                needs_ray=True,
                description=finetune.__doc__,
                kinds=("ray", "pytorch"),
            )
            for task in config.finetune
        ],
    ]
    return [
        *before_report,
        Stage(
            "report",
            report.ReportConfig(name=config.name),
            report.VERSION,
            report.run,
            reads={stage.name: FinishedOutput(stage.name) for stage in before_report},
            publish=report.publish,
            description=report.__doc__,
            kinds=("report",),
        ),
    ]


def _examples(config: RunConfig) -> list[Stage]:
    """One for each length of pretraining's phases."""
    lengths = {phase.max_seq_length: phase for phase in config.pretrain.phases}
    return [
        Stage(
            f"examples-{length}",
            examples.LengthConfig(
                **dict(config.examples),
                max_seq_length=length,
                max_predictions_per_seq=phase.max_predictions_per_seq,
            ),
            examples.VERSION,
            examples.run,
            reads={"tokens": StageOutput("tokens"), "vocab": StageOutput("vocab")},
            needs_ray=True,
            description=examples.__doc__,
            kinds=("ray", "parquet"),
        )
        for length, phase in sorted(lengths.items())
    ]
