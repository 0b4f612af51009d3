"""the stages of a run -> one self-contained HTML page: the headline, and every section that has something to say."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infra.progress import duration
from infra.report import data, examples, fillins, lineage, training
from infra.report.figures import number, percent, short
from infra.report.stages import Stages
from pipeline.storage import Location

_HERE = Path(__file__).parent
_WORDS = {"heldout": "held out"}  # where a key reads better in other words


def _moment(text: str) -> str:
    """2026-11-23T00:42:10+00:00 -> 23 November 2026, 00:42 UTC."""
    return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"


@dataclass(frozen=True)
class Figure:
    """A number of the headline."""

    label: str
    value: str
    note: str = ""


def render(name: str, stages: Stages, root: Location) -> str:
    """The page about a run, from what is finished of it."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=lambda value: f"{value:,}",
        words=lambda key: _WORDS.get(key, key.replace("_", " ")),
        duration=duration,
        moment=_moment,
    )
    assets = {key: Markup((_HERE / file).read_text()) for key, file in (("style", "style.css"), ("script", "hover.js"))}
    return environment.get_template("page.html").render(page=Page(name, stages, root), **assets)


@dataclass(frozen=True)
class Page:
    """What the template reads. A section is None or empty where the run is not that far."""

    name: str
    stages: Stages
    root: Location

    @cached_property
    def flow(self) -> list[data.Level]:
        return data.flow(self.stages)

    @cached_property
    def sources(self) -> list[tuple[str, Mapping[str, int]]]:
        return data.source_table(self.stages)

    @cached_property
    def dropped(self) -> list[tuple[str, list[tuple[str, str]]]]:
        return data.dropped(self.stages)

    @cached_property
    def vocabulary(self) -> data.Vocabulary | None:
        return data.vocabulary(self.stages)

    @cached_property
    def masked(self) -> examples.Examples | None:
        return examples.examples(self.stages)

    @cached_property
    def pretraining(self) -> training.Section | None:
        return training.curves(self.stages.get("pretrain"))

    @cached_property
    def guesses(self) -> fillins.FillIns | None:
        return fillins.fill_ins(self.stages)

    @cached_property
    def tasks(self) -> list[training.Task]:
        return training.tasks(self.stages)

    @cached_property
    def origin(self) -> Markup:
        return lineage.picture(self.stages, self.root, {task.name: task.estimates for task in self.tasks})

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and title of the sections that are there."""
        sections = [
            ("data", "Kept and dropped", True),
            ("vocabulary", "Vocabulary", self.vocabulary),
            ("examples", "Examples", self.masked),
            ("pretraining", "Pretraining", self.pretraining),
            ("fill-ins", "Fill-ins", self.guesses),
            ("scores", "Fine-tuning", self.tasks),
            ("lineage", "Lineage", True),
        ]
        return [(anchor, title) for anchor, title, there in sections if there]

    @property
    def unfinished(self) -> str:
        """The stages that are not finished, and how far they are; empty when all are."""
        return ", ".join(f"{stage.name} ({stage.state})" for stage in self.stages if not stage.manifest)

    @property
    def when(self) -> str:
        manifests = [stage.manifest for stage in self.stages if stage.manifest]
        if not manifests:
            return ""
        spent = sum(manifest.seconds for manifest in manifests)
        return f"{_moment(max(manifest.finished for manifest in manifests))}, {duration(spent)} of work"

    @property
    def machine(self) -> str:
        """Where the model was trained, where the page was made, and with what."""
        facts = self.stages.get("pretrain").facts
        trained = [f"trained on {facts['processor']}"] if facts.get("processor") else []
        made = f"page made on {platform.system()} {platform.machine()} with {os.cpu_count()} processor cores"
        versions = next((stage.manifest.versions for stage in reversed(self.stages.views) if stage.manifest), {})
        return " · ".join([*trained, made, *(f"{package} {version}" for package, version in versions.items())])

    @cached_property
    def figures(self) -> list[Figure]:
        """The numbers under the title."""
        pretrain, heldout = self.stages.get("pretrain"), training.heldout(self.stages)
        found = []
        if documents := data.documents(self.stages):
            found.append(Figure("documents", number(documents)))
        if made := data.examples_made(self.stages):
            found.append(Figure("examples to train on", number(made)))
        if weights := training.weights(pretrain):
            found.append(Figure("weights", short(weights), training.shape(pretrain)))
        if steps := pretrain.counts.get("steps"):
            found.append(Figure("steps", number(steps)))
        if heldout:
            note = f"{percent(heldout['mlm_accuracy'])} of masked pieces right"
            found.append(Figure("held-out masked-LM loss", f"{heldout['mlm_loss']:.3f}", note))
        for task in self.tasks:
            score, random, majority = (task.estimates[key] for key in ("pretrained", "random", "majority"))
            note = f"random weights {percent(random.value)}, majority {percent(majority.value)}"
            found.append(Figure(f"{task.name}, test accuracy", percent(score.value), note))
        return found

    @property
    def outcome(self) -> str:
        """The run in a sentence or two, as far as it is."""
        figures = {figure.label: figure for figure in self.figures}
        said = []
        records, documents = self.stages.get("extract").counts.get("records"), data.documents(self.stages)
        if documents:
            came = f"{number(records)} records" if records else "The input"
            said.append(f"{came} gave {number(documents)} documents")
        if "examples to train on" in figures:
            said.append(f"these {figures['examples to train on'].value} examples")
        text = ", ".join(said) + "." if said else "Nothing is finished yet."
        heldout = training.heldout(self.stages)
        if heldout and "weights" in figures and "steps" in figures:
            text += (
                f" A BERT of {figures['weights'].value} weights, trained on them for {figures['steps'].value} steps, "
                f"fills in {percent(heldout['mlm_accuracy'])} of the hidden pieces of documents it has not seen "
                f"(loss {heldout['mlm_loss']:.2f})."
            )
        for task in self.tasks:
            score, random, majority = (task.estimates[key] for key in ("pretrained", "random", "majority"))
            text += (
                f" Fine-tuned on {task.name} it is right in {percent(score.value)} of the test part; "
                f"from random weights {percent(random.value)}, the majority class {percent(majority.value)}."
            )
        return text
