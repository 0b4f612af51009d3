"""A run -> the top of the page: a summary, key figures, when it finished and where it ran."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloze.infra.display import duration
from cloze.infra.heldout import choice_interval, constant_answer
from cloze.infra.report.charts import format_number, format_percent, format_short
from cloze.infra.report.finetuning import TaskSection
from cloze.infra.report.pretraining import latest_heldout_row, model_size, objective_of
from cloze.infra.report.view_models import DedupView, ExamplesView, ExtractView, PretrainView, Stages


@dataclass(frozen=True)
class KeyFigure:
    """A number below the title, with its label and a note such as its baseline."""

    label: str
    value: str
    note: str = ""


def summary(stages: Stages, tasks: Sequence[TaskSection]) -> str:
    """Returns a sentence each about the data, the model and every task, as far as the run has got."""
    sentences = [*_data_and_model(stages), *map(_task_summary, tasks)]
    return " ".join(sentences) or "No stage is finished yet."


def _data_and_model(stages: Stages) -> Iterator[str]:
    documents, examples = _document_count(stages), _example_count(stages)
    if documents:
        records = stages.single(ExtractView).counts.get("records")
        text = f"{format_number(records)} source records" if records else "The sources"
        text += f" became {format_number(documents)} documents"
        yield text + (f" and {format_number(examples)} training examples." if examples else ".")
    pretrain, heldout = stages.single(PretrainView), latest_heldout_row(stages)
    if documents and pretrain.manifest and heldout:
        yield (
            f"A BERT model with {format_short(pretrain.parameters)} parameters, pretrained for "
            f"{format_number(heldout['step'])} steps, predicts {format_percent(heldout['mlm_accuracy'])} of the masked "
            f"tokens in held-out documents (loss {heldout['mlm_loss']:.2f}); a unigram model predicts "
            f"{format_percent(heldout['mlm_accuracy_baseline'])} (loss {heldout['mlm_loss_baseline']:.2f})."
        )
        if "choices" in heldout:
            yield (
                "Between the true token and one of the same frequency it picks the true one at "
                f"{format_percent(heldout['choice_accuracy'])} of {format_number(heldout['choices'])} masks (chance: "
                f"{format_percent(0.5)})."
            )


def _task_summary(task: TaskSection) -> str:
    model = "it" if task.of_this_run else "the pretrained model"
    on = "Fine-tuned on" if task.is_trained else "Probed on" if task.layers else "On"
    text = f"{on} the task {task.name}, {model} reaches {task.score} {task.metric}"
    if task.score_without_overlap:
        text += f" ({task.score_without_overlap})"
    if not task.compared:
        return f"{text}."
    first, *others = task.compared
    scores = [f"{first.phrase} reaches {first.score}", *(f"{other.phrase} {other.score}" for other in others)]
    return f"{text}; {', '.join(scores)}."


def key_figures(stages: Stages, tasks: Sequence[TaskSection]) -> list[KeyFigure]:
    """Returns the figures that the run has so far."""
    pretrain, heldout = stages.single(PretrainView), latest_heldout_row(stages)
    counts = [
        KeyFigure("documents", format_number(_document_count(stages))),
        KeyFigure("training examples", format_number(_example_count(stages))),
        KeyFigure("model parameters", format_short(pretrain.parameters), model_size(pretrain)),
        KeyFigure("pretraining steps", format_number(pretrain.counts.get("steps", 0))),
    ]
    figures = [figure for figure in counts if figure.value != "0"]
    if heldout:
        baseline = f"unigram model: {heldout['mlm_loss_baseline']:.3f}"
        figures.append(KeyFigure("held-out masked-LM loss", f"{heldout['mlm_loss']:.3f}", baseline))
        baseline = f"unigram model: {format_percent(heldout['mlm_accuracy_baseline'])}"
        accuracy = format_percent(heldout["mlm_accuracy"])
        figures.append(KeyFigure("held-out masked-token accuracy", accuracy, baseline))
    if "choices" in heldout:
        low, high = map(format_percent, choice_interval(heldout))
        note = f"the true token over one of the same frequency: {low} to {high}; chance: {format_percent(0.5)}"
        figures.append(KeyFigure("held-out cloze choice", format_percent(heldout["choice_accuracy"]), note))
    if "pairs" in heldout:
        objective = objective_of(stages)
        baseline = f"{constant_answer(heldout, objective)}: {format_percent(heldout['nsp_accuracy_baseline'])}"
        label = f"held-out {'sentence-order' if objective == 'mlm+sop' else 'next-sentence'} accuracy"
        figures.append(KeyFigure(label, format_percent(heldout["nsp_accuracy"]), baseline))
    for task in tasks:
        baselines = "; ".join(f"{other.label}: {other.score}" for other in task.compared)
        figures.append(KeyFigure(f"{task.name}: {task.metric}", task.score, baselines))
    return figures


def _document_count(stages: Stages) -> int:
    """Returns the documents after dedup or, before that is finished, after extract."""
    counts = (stages.single(stage_type).counts.get("documents", 0) for stage_type in (DedupView, ExtractView))
    return next(filter(None, counts), 0)


def _example_count(stages: Stages) -> int:
    return sum(stage.counts.get("train", 0) for stage in stages.of_type(ExamplesView))


def format_time(text: str) -> str:
    """2026-11-23T00:42:10+00:00 -> 23 November 2026, 00:42 UTC."""
    return f"{datetime.fromisoformat(text):%-d %B %Y, %H:%M} UTC"


def finished_at(stages: Stages) -> str:
    """Returns when the last stage finished and the time of all stages; empty before the first is finished."""
    manifests = [stage.manifest for stage in stages if stage.manifest]
    if not manifests:
        return ""
    total = sum(manifest.seconds for manifest in manifests)
    return f"{format_time(max(manifest.finished for manifest in manifests))}, {duration(total)} in all stages"


def environment(stages: Stages) -> str:
    """Returns the hardware and the package versions."""
    processor = stages.single(PretrainView).facts.processor
    trained = [f"trained on {processor}"] if processor else []
    rendered = f"report generated on {platform.system()} {platform.machine()} with {os.cpu_count()} CPU cores"
    versions = next((stage.manifest.versions for stage in reversed(stages.views) if stage.manifest), {})
    return " · ".join([*trained, rendered, *(f"{package} {version}" for package, version in versions.items())])
