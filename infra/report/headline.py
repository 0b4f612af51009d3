"""a run -> its outcome in a few sentences and numbers, when it was, and where."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cloze.infra.display import duration
from cloze.infra.heldout import constant
from cloze.infra.report.charts import number, percent, short
from cloze.infra.report.finetuning import Task
from cloze.infra.report.pretraining import newest_heldout, objective_of, shape
from cloze.infra.report.views import DedupView, ExamplesView, ExtractView, PretrainView, Stages


@dataclass(frozen=True)
class Figure:
    """A number under the title."""

    label: str
    value: str
    note: str = ""


def outcome(stages: Stages, tasks: Sequence[Task]) -> str:
    """What came of the run, as far as it is: a sentence on the data, one on the model, one on each task."""
    documents, examples = _documents(stages), _examples(stages)
    if not documents:
        return "Nothing is finished yet."
    records = stages.one(ExtractView).counts.get("records")
    said = f"{number(records)} records" if records else "The sources"
    said += f" gave {number(documents)} documents"
    said += f", and these {number(examples)} examples." if examples else "."
    pretrain, heldout = stages.one(PretrainView), newest_heldout(stages)
    if pretrain.manifest and heldout:
        said += (
            f" A BERT of {short(pretrain.weights)} weights, trained on them for {number(heldout['step'])} steps, "
            f"fills in {percent(heldout['mlm_accuracy'])} of the hidden pieces of documents it has not seen "
            f"(loss {heldout['mlm_loss']:.2f}); a unigram model fills in {percent(heldout['mlm_accuracy_baseline'])} "
            f"({heldout['mlm_loss_baseline']:.2f})."
        )
    for task in tasks:
        score, random, majority = (percent(estimate.value) for estimate in task.estimates.values())
        said += (
            f" Fine-tuned on {task.name} it is right in {score} of the test part; "
            f"from random weights {random}, the majority class {majority}."
        )
    return said


def figures(stages: Stages, tasks: Sequence[Task]) -> list[Figure]:
    """The run's numbers, those that there are."""
    pretrain, heldout = stages.one(PretrainView), newest_heldout(stages)
    counted = [
        Figure("documents", number(_documents(stages))),
        Figure("examples to train on", number(_examples(stages))),
        Figure("weights", short(pretrain.weights), shape(pretrain)),
        Figure("steps", number(pretrain.counts.get("steps", 0))),
    ]
    found = [figure for figure in counted if figure.value != "0"]
    if heldout:
        note = f"unigram model {heldout['mlm_loss_baseline']:.3f}; {percent(heldout['mlm_accuracy'])} of pieces right"
        found.append(Figure("held-out masked-LM loss", f"{heldout['mlm_loss']:.3f}", note))
    if "pairs" in heldout:
        note = f"{constant(heldout, objective_of(stages))} {percent(heldout['nsp_accuracy_baseline'])}"
        found.append(Figure("held-out pairs right", percent(heldout["nsp_accuracy"]), note))
    for task in tasks:
        score, random, majority = (percent(estimate.value) for estimate in task.estimates.values())
        found.append(Figure(f"{task.name}, test accuracy", score, f"random weights {random}, majority {majority}"))
    return found


def _documents(stages: Stages) -> int:
    """How many there are, after the last stage that has counted them."""
    counts = (stages.one(kind).counts.get("documents", 0) for kind in (DedupView, ExtractView))
    return next(filter(None, counts), 0)


def _examples(stages: Stages) -> int:
    return sum(stage.counts.get("train", 0) for stage in stages.of(ExamplesView))


def moment(text: str) -> str:
    """2026-11-23T00:42:10+00:00 -> 23 November 2026, 00:42 UTC."""
    return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"


def when(stages: Stages) -> str:
    """The end of the last finished stage, and how long all of them took; empty when there is none."""
    manifests = [stage.manifest for stage in stages if stage.manifest]
    if not manifests:
        return ""
    spent = sum(manifest.seconds for manifest in manifests)
    return f"{moment(max(manifest.finished for manifest in manifests))}, {duration(spent)} of work"


def machine(stages: Stages) -> str:
    """Where the model was trained, where the page was made, and with what."""
    processor = stages.one(PretrainView).facts.processor
    trained = [f"trained on {processor}"] if processor else []
    made = f"page made on {platform.system()} {platform.machine()} with {os.cpu_count()} processor cores"
    versions = next((stage.manifest.versions for stage in reversed(stages.views) if stage.manifest), {})
    return " · ".join([*trained, made, *(f"{package} {version}" for package, version in versions.items())])
