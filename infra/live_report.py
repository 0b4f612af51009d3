"""A run, finished or not -> the report page about its finished stages."""

from cloze.infra.checks.records import read_results
from cloze.infra.planner import Run
from cloze.infra.report.page import render
from cloze.infra.report.read_run import KnownStage, read_stages
from cloze.infra.run_estimate import read_estimates

_STATES = {"run": "not started", "wait": "waiting", "continue": "half-done", "skip": "done"}


def render_run(run: Run) -> str:
    """Write the report about a run's finished stages to <root>/<name>.html; returns its URI."""
    known = [
        KnownStage(
            planned.stage.name,
            _STATES[planned.action],
            planned.output.location if planned.output else None,
            planned.output.fingerprint if planned.output else None,
            planned.stage.after,
        )
        for planned in run.plan()
        if planned.stage.publish is None  # every stage except the report
    ]
    name = run.config.name
    stages = read_stages(known, run.root, read_estimates(run.root, name), read_results(run.root, name))
    run.page.write_text(render(name, stages))
    return run.page.uri
