"""The configuration of a run: those of its stages, and the checks between them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from cloze.infra.checks_config import ChecksConfig
from cloze.infra.other_tools_keys import KEY_HINTS
from cloze.infra.partitions import Partition, base_name, fill_in
from cloze.infra.schedule_config import ScheduleConfig
from cloze.pipeline.core.config import NAME, Compute, Config
from cloze.pipeline.dedup.stage import DedupConfig
from cloze.pipeline.examples.config import ExamplesConfig
from cloze.pipeline.extract.stage import ExtractConfig
from cloze.pipeline.tokens.stage import TokensConfig
from cloze.pipeline.vocab.stage import VocabConfig
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.pretrain.config import PretrainConfig


class PretrainingConfigs(NamedTuple):
    """The configurations of the stages up to pretraining that have no default."""

    extract: ExtractConfig
    vocab: VocabConfig
    examples: ExamplesConfig
    pretrain: PretrainConfig


class RunConfig(Config):
    """One run: a YAML file.

    A run with `finetune` alone needs no documents: leave out all of `extract`, `vocab`, `examples` and `pretrain`, and
    give every task an `init`.
    """

    name: str = Field(pattern=f"^{NAME}$")
    """Name of the run: letters, digits, - and _. The report is ROOT/NAME.html, and commands accept the name."""
    root: Annotated[str, Compute] = "runs"
    """Folder or s3://bucket/prefix of all artifacts. Runs with the same root share the outputs of equal stages."""
    schedule: Annotated[ScheduleConfig, Compute] = ScheduleConfig()
    """When the run starts by itself: a cron expression, or a section with it."""
    partition: Annotated[Partition | None, Compute] = None
    """The language and the date of the dump, if the run has `schedule.partitions`."""
    checks: Annotated[ChecksConfig, Compute] = ChecksConfig()
    """Limits for the outputs of the stages; a run stops at a stage that exceeds one."""
    max_hours: Annotated[float | None, Compute, Field(gt=0)] = None
    """Hours after which the run ends, all attempts together: training saves a checkpoint, finished parts are kept, and
    the exit status is 2. The same command with a higher number continues."""
    max_cost: Annotated[float | None, Compute, Field(gt=0)] = None
    """Dollars after which the run ends in the same way, for the nodes that the cluster has while it runs; only in a job
    whose cluster's file has node_types with an instance_type that configs/prices.yaml lists."""
    extract: ExtractConfig | None = None
    """Dumps, books and documents to text documents."""
    dedup: DedupConfig = DedupConfig()
    """Removal of duplicate documents."""
    vocab: VocabConfig | None = None
    """The WordPiece vocabulary, trained on the documents or read from a file."""
    tokens: TokensConfig = TokensConfig()
    """Documents to sentences of token ids."""
    examples: ExamplesConfig | None = None
    """Token ids to pretraining examples: pairs of segments and masks."""
    pretrain: PretrainConfig | None = None
    """Pretraining of the model."""
    finetune: tuple[FinetuneConfig, ...] = ()
    """Fine-tuning tasks; each is a separate stage."""

    KEY_HINTS: ClassVar[Mapping[str, object]] = KEY_HINTS

    @classmethod
    def filled_in(cls, data: dict[str, Any]) -> dict[str, Any]:
        return fill_in(data)

    @property
    def base_name(self) -> str:
        """The name that the runs of all partitions share, such as wiki of wiki-la; `name` in a run without them."""
        partition = self.partition
        return base_name(self.name, partition.language) if partition else self.name

    @property
    def pretraining(self) -> PretrainingConfigs | None:
        """The configurations of the stages up to pretraining; None for a run that only fine-tunes."""
        extract, vocab, examples, pretrain = self.extract, self.vocab, self.examples, self.pretrain
        if extract and vocab and examples and pretrain:
            return PretrainingConfigs(extract, vocab, examples, pretrain)
        return None

    @model_validator(mode="after")
    def _pretraining_is_complete_or_absent(self) -> Self:
        missing = [name for name in PretrainingConfigs._fields if getattr(self, name) is None]
        given = [name for name in PretrainingConfigs._fields if name not in missing]
        if missing and given:
            are = "is" if len(missing) == 1 else "are"
            raise ValueError(
                f"{_joined(missing)} {are} missing; add {'it' if len(missing) == 1 else 'them'}, or remove "
                f"{_joined(given)} to fine-tune only"
            )
        if missing and not self.finetune:
            raise ValueError(f"has nothing to run; add {_joined(missing)}, or tasks to finetune")
        return self

    @model_validator(mode="after")
    def _a_promoted_run_has_pretraining(self) -> Self:
        if self.schedule.promote and not self.pretraining:
            raise ValueError(
                "schedule.promote is true, but the run only fine-tunes and has no checkpoint; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _tasks_have_a_model_to_start_from(self) -> Self:
        for task in self.finetune:
            if not self.pretraining and not task.init:
                raise ValueError(
                    f"finetune.{task.name} has no model to start from, as the run has no pretraining; set its init to "
                    "the folder of a Hugging Face model or the digest of a checkpoint under root"
                )
        return self

    @model_validator(mode="after")
    def _phases_of_one_length_have_one_number_of_predictions(self) -> Self:
        predictions: dict[int, int] = {}
        for phase in self.pretrain.phases if self.pretrain else ():
            first = predictions.setdefault(phase.max_seq_length, phase.max_predictions_per_seq)
            if first != phase.max_predictions_per_seq:
                raise ValueError(
                    f"pretrain.phases: length {phase.max_seq_length} has max_predictions_per_seq {first} and "
                    f"{phase.max_predictions_per_seq}; phases of one length share their examples, give them one number"
                )
        return self

    @model_validator(mode="after")
    def _tasks_fit_the_positions(self) -> Self:
        for task in self.finetune:
            if task.init or not self.pretrain:  # the stage compares with the positions of the model that it reads
                continue
            positions = self.pretrain.model.max_position_embeddings
            if task.max_seq_length > positions:
                raise ValueError(
                    f"finetune.{task.name}.max_seq_length {task.max_seq_length} is more than the model's {positions} "
                    "positions; lower it or raise pretrain.model.max_position_embeddings"
                )
        return self

    @model_validator(mode="after")
    def _passes_are_of_sources(self) -> Self:
        names = [source.name for source in self.extract.sources] if self.extract else []
        for name in self.examples.passes if self.examples else ():
            if name not in names:
                raise ValueError(f"examples.passes: {name} is not a source; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _names_are_used_once(self) -> Self:
        for what, names in (
            ("extract.sources", [source.name for source in self.extract.sources] if self.extract else []),
            ("finetune", [task.name for task in self.finetune]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has two entries named {twice[0]}; give each a different name")
        return self


def _joined(names: Sequence[str]) -> str:
    """["vocab", "examples", "pretrain"] -> "vocab, examples and pretrain"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
