"""the stages of a run -> one self-contained HTML page with every section that has something to say."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cloze.infra.display import duration, warnings
from cloze.infra.report import data_stages, examples, finetuning, headline, lineage, mask_predictions, pretraining
from cloze.infra.report.views import Stages

_HERE = Path(__file__).parent


def render(name: str, stages: Stages) -> str:
    """The page about a run, from what is finished of it."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=lambda value: f"{value:,}",
        words=lambda key: key.replace("_", " ").replace("heldout", "held-out"),
        duration=duration,
        moment=headline.moment,
    )
    assets = {key: Markup((_HERE / file).read_text()) for key, file in (("style", "style.css"), ("script", "hover.js"))}
    return environment.get_template("page.html").render(page=Page(name, stages), **assets)


@dataclass(frozen=True)
class Page:
    """What the template reads. A section is None or empty where the run is not that far."""

    name: str
    stages: Stages

    @property
    def when(self) -> str:
        return headline.when(self.stages)

    @property
    def machine(self) -> str:
        return headline.machine(self.stages)

    @property
    def outcome(self) -> str:
        return headline.outcome(self.stages, self.tasks)

    @property
    def figures(self) -> list[headline.Figure]:
        return headline.figures(self.stages, self.tasks)

    @property
    def unfinished(self) -> str:
        """The stages that are not finished, and how far they are; empty when all are."""
        return ", ".join(f"{stage.name} ({stage.state})" for stage in self.stages if not stage.manifest)

    @property
    def warnings(self) -> list[str]:
        """What the finished stages warn of, in their order."""
        return [warning for stage in self.stages.finished if stage.manifest for warning in warnings(stage.manifest)]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and title of the sections that are there."""
        sections = [
            ("data", "Kept and dropped", True),
            ("vocabulary", "Vocabulary", self.vocabulary),
            ("examples", "Examples", self.masked),
            ("pretraining", "Pretraining", self.training),
            ("fill-ins", "Fill-ins", self.guesses),
            ("scores", "Fine-tuning", self.tasks),
            ("lineage", "Lineage", True),
        ]
        return [(anchor, title) for anchor, title, there in sections if there]

    @cached_property
    def flow(self) -> list[data_stages.Level]:
        return data_stages.flow(self.stages)

    @cached_property
    def sources(self) -> list[tuple[str, Mapping[str, int]]]:
        return data_stages.source_table(self.stages)

    @cached_property
    def truncated(self) -> list[tuple[str, str]]:
        return data_stages.truncated(self.stages)

    @cached_property
    def dropped(self) -> list[tuple[str, list[tuple[str, str]]]]:
        return data_stages.dropped(self.stages)

    @cached_property
    def vocabulary(self) -> data_stages.Vocabulary | None:
        return data_stages.vocabulary(self.stages)

    @cached_property
    def masked(self) -> examples.Examples | None:
        return examples.examples(self.stages)

    @cached_property
    def training(self) -> pretraining.Section | None:
        return pretraining.curves(self.stages)

    @cached_property
    def guesses(self) -> mask_predictions.FillIns | None:
        return mask_predictions.fill_ins(self.stages.model)

    @cached_property
    def tasks(self) -> list[finetuning.Task]:
        return finetuning.tasks(self.stages)

    @cached_property
    def origin(self) -> Markup:
        return lineage.picture(self.stages, {task.stage: task.estimates for task in self.tasks})
