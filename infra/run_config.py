"""A YAML file -> a run: the stages' own configurations, and what must agree between them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from cloze.infra.key_hints import KEY_HINTS
from cloze.pipeline.core.config import Compute, Config
from cloze.pipeline.dedup.stage import DedupConfig
from cloze.pipeline.examples.stage import ExamplesConfig
from cloze.pipeline.extract.stage import ExtractConfig
from cloze.pipeline.tokens.stage import TokensConfig
from cloze.pipeline.vocab.stage import VocabConfig
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.pretrain.config import PretrainConfig

NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"  # of a run


class RunConfig(Config):
    """One YAML file. `root` is where every artifact lives; runs that share a root share what they have in common."""

    name: str = Field(pattern=f"^{NAME}$")
    root: Annotated[str, Compute] = "runs"
    schedule: Annotated[str, Compute] = "0 3 * * 0"  # cron, UTC: Sundays at three, when switched on in the UI
    extract: ExtractConfig
    dedup: DedupConfig = DedupConfig()
    vocab: VocabConfig
    tokens: TokensConfig = TokensConfig()
    examples: ExamplesConfig
    pretrain: PretrainConfig
    finetune: tuple[FinetuneConfig, ...] = ()

    KEY_HINTS: ClassVar[Mapping[str, object]] = KEY_HINTS

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
