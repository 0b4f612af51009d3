"""A run, finished or half-way -> the page about what is finished of it by now."""

from cloze.infra.planner import Run
from cloze.infra.report.page import render
from cloze.infra.report.reading import KnownStage, read_stages

_STATES = {"run": "not started", "wait": "waiting", "continue": "half-done", "skip": "done"}


def render_run(run: Run) -> str:
    """Write the page about what is finished of a run by now to <root>/<name>.html; where that is."""
    known = [
        KnownStage(
            step.stage.name,
            _STATES[step.action],
            step.output.location if step.output else None,
            step.output.fingerprint if step.output else None,
            step.stage.after,
        )
        for step in run.plan()
        if step.stage.publish is None  # every stage but the page's own
    ]
    run.page.write_text(render(run.config.name, read_stages(known, run.root)))
    return run.page.uri
