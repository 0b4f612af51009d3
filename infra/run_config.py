"""The configuration of a run: those of its stages, and the checks between them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from cloze.infra.other_tools_keys import KEY_HINTS
from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.dedup.stage import DedupConfig
from cloze.pipeline.examples.config import ExamplesConfig
from cloze.pipeline.extract.stage import ExtractConfig
from cloze.pipeline.tokens.stage import TokensConfig
from cloze.pipeline.vocab.stage import VocabConfig
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.pretrain.config import PretrainConfig

NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"  # of a run: a regular expression


class RunConfig(Config):
    """One run: a YAML file."""

    name: str = Field(pattern=f"^{NAME}$")
    """Name of the run: letters, digits, - and _. The report is ROOT/NAME.html, and commands accept the name."""
    root: Annotated[str, Compute] = "runs"
    """Folder or s3://bucket/prefix of all artifacts. Runs with the same root share the outputs of equal stages."""
    schedule: Annotated[str, Compute] = "0 3 * * 0"
    """Cron expression, in UTC, of the schedule in Dagster's UI, which is off until it is switched on there."""
    extract: ExtractConfig
    """Dumps, books and documents to text documents."""
    dedup: DedupConfig = DedupConfig()
    """Removal of duplicate documents."""
    vocab: VocabConfig
    """The WordPiece vocabulary, trained on the documents or read from a file."""
    tokens: TokensConfig = TokensConfig()
    """Documents to sentences of token ids."""
    examples: ExamplesConfig
    """Token ids to pretraining examples: pairs of segments and masks."""
    pretrain: PretrainConfig
    """Pretraining of the model."""
    finetune: tuple[FinetuneConfig, ...] = ()
    """Fine-tuning tasks; each is a separate stage."""

    KEY_HINTS: ClassVar[Mapping[str, object]] = KEY_HINTS

    @model_validator(mode="after")
    def _phases_of_one_length_have_one_number_of_predictions(self) -> Self:
        predictions: dict[int, int] = {}
        for phase in self.pretrain.phases:
            first = predictions.setdefault(phase.max_seq_length, phase.max_predictions_per_seq)
            if first != phase.max_predictions_per_seq:
                raise ValueError(
                    f"pretrain.phases: length {phase.max_seq_length} has max_predictions_per_seq {first} and "
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
                raise ValueError(f"examples.passes: {name} is not a source; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _names_are_used_once(self) -> Self:
        for what, names in (
            ("extract.sources", [source.name for source in self.extract.sources]),
            ("finetune", [task.name for task in self.finetune]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has two entries named {twice[0]}; give each a different name")
        return self
