"""`cloze compare`: fine-tune with so few labels what is not finished, then print the curves and write their page."""

import sys
from collections.abc import Iterator

from cloze.infra.display import relative_path
from cloze.infra.execution import active_run, execute_stage
from cloze.infra.learning_curves.comparison import Comparison
from cloze.infra.learning_curves.curves import Curve, LearningCurves
from cloze.infra.learning_curves.page import render
from cloze.infra.planner import Run
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.manifest_facts import FinetuneFacts

#: Variants and baselines of a training from this run's model, and their names.
_OWN = {"pretrained": "this checkpoint", "random": "random weights", "bag_of_words": "a bag of words"}


def compare(comparison: Comparison) -> tuple[LearningCurves, Location]:
    """The curves, and the page that shows them. Raises the exception of a stage that failed."""
    config = comparison.config
    last = f"finetune-{config.finetune[-1].name}"
    planned = Run(config)
    stages = [stage.name for stage in planned.until(last)]  # the tasks, without their overlaps and the report
    planned.check(last)
    with active_run(config, stages=stages) as active:
        for name in stages:
            execute_stage(active, active.run.stage(name), force=False, wait=True)
        curves = read_curves(comparison, active.run)
    planned.page.write_text(render(curves))
    return curves, planned.page


def read_curves(comparison: Comparison, run: Run) -> LearningCurves:
    """The scores of all trainings, which are finished."""
    found = dict[str, dict[int, list[float]]]()
    facts = FinetuneFacts()
    for training in comparison.trainings:
        artifact = run.artifact(f"finetune-{training.task_name(comparison.task.name)}")
        assert artifact, "its stage has just been executed"
        facts = FinetuneFacts.of(artifact.manifest)
        names = {"pretrained": Location(comparison.encoder or "").name} if training.is_published else _OWN
        for variant, name in names.items():
            score = facts.scores[variant].value(facts.metric)
            assert score is not None, f"{variant} has no {facts.metric}"
            found.setdefault(name, {}).setdefault(training.labels, []).append(score)
    return LearningCurves(
        run=comparison.run.config.name,
        task=comparison.task.name,
        metric=facts.metric,
        split=facts.scored_split,
        train_rows=comparison.train_rows,
        labels=comparison.labels,
        seeds=comparison.seeds,
        curves=[Curve(name, scores) for name, scores in found.items()],
        majority=facts.scores["majority"].value(facts.metric),
    )


def parse_labels(text: str) -> list[int]:
    """50,200,1000 -> the numbers. Raises UserError."""
    words = text.replace(" ", "").split(",")
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise UserError(f"--labels {text}: is not a list of numbers; give some, such as 50,200,1000")
    return [int(word) for word in words]


def print_curves(curves: LearningCurves, page: Location) -> None:
    """Print the table, what pretraining saved, and where the page is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("labels", box=None, pad_edge=False, header_style="bold")
    for curve in curves.curves:
        table.add_column(curve.name, justify="right")
    for labels in curves.labels:
        table.add_row(f"{labels:,}", *(Text(curves.cell(curve, labels)) for curve in curves.curves))
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print(table)
    for line in _lines(curves, page):
        console.print(line, soft_wrap=True, markup=False)


def _lines(curves: LearningCurves, page: Location) -> Iterator[str]:
    majority = "" if curves.majority is None else f"; the majority class reaches {curves.written(curves.majority)}"
    over = f", mean ± standard deviation over {curves.seeds} seeds" if curves.seeds > 1 else ", one seed"
    yield f"{curves.task}: {curves.metric_name} on {curves.split}{over}{majority}"
    yield from curves.sentences()
    yield f"curves: {relative_path(page)}"
