"""The stages of a run -> one self-contained HTML page. A section without data is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cloze.infra.display import duration, warnings
from cloze.infra.html_page import render_page
from cloze.infra.report import data_stages, headline
from cloze.infra.report.examples import ExamplesSection, examples_section
from cloze.infra.report.finetuning import TaskSection, task_sections
from cloze.infra.report.lineage import lineage_graph
from cloze.infra.report.mask_predictions import MaskPredictionsSection, mask_predictions_section
from cloze.infra.report.pretraining import PretrainingSection, pretraining_section
from cloze.infra.report.view_models import Stages

_FOLDER = Path(__file__).parent
STYLE, SCRIPT = _FOLDER / "style.css", _FOLDER / "page.js"  # also of other pages: colours, fonts, charts


def render(name: str, stages: Stages) -> str:
    """Returns the HTML page of a run, finished or not."""
    filters = {
        "count": lambda value: f"{value:,}",
        "words": lambda key: key.replace("_", " ").replace("heldout", "held-out"),
        "duration": duration,
        "time": headline.format_time,
    }
    return render_page(_FOLDER / "page.html", [STYLE], [SCRIPT], filters, page=Page(name, stages))


@dataclass(frozen=True)
class Page:
    """The template's variables. A section is None or empty while its stage is not finished."""

    name: str
    stages: Stages

    @property
    def finished_at(self) -> str:
        return headline.finished_at(self.stages)

    @property
    def environment(self) -> str:
        return headline.environment(self.stages)

    @property
    def summary(self) -> str:
        return headline.summary(self.stages, self.tasks)

    @property
    def key_figures(self) -> list[headline.KeyFigure]:
        return headline.key_figures(self.stages, self.tasks)

    @property
    def unfinished(self) -> str:
        """The unfinished stages with their states; empty when all are finished."""
        return ", ".join(f"{stage.name} ({stage.state})" for stage in self.stages if not stage.manifest)

    @property
    def warnings(self) -> list[str]:
        """The warnings of the finished stages, in order."""
        return [warning for stage in self.stages.finished if stage.manifest for warning in warnings(stage.manifest)]

    @property
    def checks(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(stage, result) of each check; those that failed first."""
        found = [(stage.name, check) for stage in self.stages for check in stage.checks]
        return sorted(found, key=lambda one: bool(one[1]["passed"]))

    @property
    def failed_checks(self) -> list[Mapping[str, Any]]:
        return [check for _, check in self.checks if not check["passed"]]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """(anchor, title) of the page's sections."""
        sections = [
            ("data", "Data", True),
            ("vocabulary", "Vocabulary", self.vocabulary),
            ("examples", "Examples", self.examples),
            ("pretraining", "Pretraining", self.pretraining),
            ("mask-predictions", "Masked-token predictions", self.mask_predictions),
            ("fine-tuning", "Fine-tuning", self.tasks),
            ("checks", "Checks", self.checks),
            ("lineage", "Lineage", True),
        ]
        return [(anchor, title) for anchor, title, has_data in sections if has_data]

    @cached_property
    def data_flow(self) -> list[data_stages.FlowLevel]:
        return data_stages.data_flow(self.stages)

    @cached_property
    def sources(self) -> list[tuple[str, Mapping[str, int]]]:
        return data_stages.source_table(self.stages)

    @cached_property
    def truncated_files(self) -> list[tuple[str, str]]:
        return data_stages.truncated_files(self.stages)

    @cached_property
    def dropped_samples(self) -> list[tuple[str, list[tuple[str, str]]]]:
        return data_stages.dropped_samples(self.stages)

    @cached_property
    def estimated_stages(self) -> list[data_stages.EstimatedStage]:
        return data_stages.estimated_stages(self.stages)

    @cached_property
    def vocabulary(self) -> data_stages.VocabularySection | None:
        return data_stages.vocabulary_section(self.stages)

    @cached_property
    def examples(self) -> ExamplesSection | None:
        return examples_section(self.stages)

    @cached_property
    def pretraining(self) -> PretrainingSection | None:
        return pretraining_section(self.stages)

    @cached_property
    def mask_predictions(self) -> MaskPredictionsSection | None:
        return mask_predictions_section(self.stages.model)

    @cached_property
    def tasks(self) -> list[TaskSection]:
        return task_sections(self.stages)

    @cached_property
    def lineage(self) -> Markup:
        return lineage_graph(self.stages, self.tasks)
