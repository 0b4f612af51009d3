"""A run's finished stage -> the results of its checks, and the figures that later runs are compared with."""

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from cloze.infra.checks.check import Check, Figure, Figures, Measured, Verdict
from cloze.infra.checks.figures import digest_of
from cloze.infra.checks.records import StageFigures, read_passed
from cloze.infra.checks.results import CheckResult
from cloze.infra.checks_config import ChecksConfig
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import Config, identity
from cloze.pipeline.core.errors import MissingFile
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location

_SHOWN = 3  # figures in a message


class CheckedStage(Protocol):
    """What the checks need of a `Stage`."""

    @property
    def config(self) -> Config: ...
    @property
    def version(self) -> int: ...
    @property
    def checks(self) -> tuple[Check, ...]: ...
    @property
    def reads(self) -> Mapping[str, object]: ...
    @property
    def after(self) -> tuple[str, ...]: ...


class CheckedRun(Protocol):
    """What the checks need of a planner's `Run`."""

    config: RunConfig
    root: Location

    def stage(self, name: str) -> CheckedStage: ...
    def artifact(self, name: str) -> Artifact | None: ...
    def files_of(self, name: str) -> Sequence[SourceFile]:
        """The user's files that a stage reads. Raises MissingFile."""
        ...

    def promoted_figures(self) -> Sequence[Mapping[str, StageFigures]]:
        """Stage -> its figures, of each promoted model, the oldest first: the last is promoted now."""
        ...


def check_stage(run: CheckedRun, stage: str, artifact: Artifact) -> list[CheckResult]:
    """The results of all checks of a stage whose output is finished. Writes nothing; a failed check is a result."""
    checks, limits = run.stage(stage).checks, run.config.checks
    if not checks:
        return []
    found = stage_figures(run, stage, artifact)
    passed, promoted = None, list[StageFigures]()
    if any(not check.promoted for check in checks):
        passed = read_passed(run.root, run.config.name).get(stage)
    if any(check.promoted for check in checks):
        promoted = [figures[stage] for figures in run.promoted_figures() if stage in figures]
    return [
        _result(stage, check, limits, found, _best(check, limits, promoted) if check.promoted else passed)
        for check in checks
    ]


def stage_figures(run: CheckedRun, stage: str, artifact: Artifact) -> StageFigures:
    """What a stage's output is compared by."""
    upstream = upstream_of(run, stage)
    settings = {name: _settings(run.stage(name)) for name in upstream}
    measured = Measured(
        artifact.manifest,
        {name: manifest for name in upstream if (manifest := _manifest(run, name))},
        settings,
        frozenset(run.stage(stage).reads),
        lambda: _files(run, stage),
    )
    # A figure that later runs are not compared with is measured only where its check is on.
    checks = [
        check for check in run.stage(stage).checks if check.needs_reference or not check.is_off(run.config.checks)
    ]
    figures: Figures = {check.name: list(check.measure(measured)) for check in checks}
    own = _settings(run.stage(stage))
    return StageFigures(fingerprint=artifact.fingerprint, settings=digest_of({**settings, stage: own}), figures=figures)


def upstream_of(run: CheckedRun, stage: str) -> list[str]:
    """The names of all stages that a stage depends on."""
    found: dict[str, None] = {}
    for name in run.stage(stage).after:
        found |= dict.fromkeys([*upstream_of(run, name), name])
    return list(found)


def _result(
    stage: str, check: Check, limits: ChecksConfig, found: StageFigures, reference: StageFigures | None
) -> CheckResult:
    """The result of one check: its first failed figure, or its first one, is the value."""
    figures = found.figures.get(check.name, [])
    if check.is_off(limits):
        [first, *_], value = check.keys, figures[0].value if figures else None
        off = json.dumps(getattr(limits, first))
        return CheckResult(stage, check.name, True, f"switched off: checks.{first} is {off}", value)
    before = {figure.name: figure for figure in reference.figures.get(check.name, ())} if reference else {}
    judged, reasons = list[tuple[Figure, Figure | None, Verdict]](), list[str]()
    for figure in figures:
        compared = before.get(figure.name)
        if compared is None and reference and check.absent is not None:
            compared = Figure(name=figure.name, value=check.absent)
        if reason := check.needs_reference and _why_not(check, found, figure, reference, compared):
            reasons.append(reason)
        else:
            judged.append((figure, compared, check.judge(figure, compared, limits)))
    failed = [one for one in judged if not one[2].passed]
    if shown := failed or judged:
        figure, compared, verdict = shown[0]
        text = _joined([one[2].message for one in shown])
        return CheckResult(
            stage, check.name, not failed, text, figure.value, compared and compared.value, verdict.limit
        )
    text = reasons[0] if reasons else "nothing to check: the output has no such figure"
    return CheckResult(stage, check.name, True, text, figures[0].value if figures else None)


def _best(check: Check, limits: ChecksConfig, promoted: Sequence[StageFigures]) -> StageFigures | None:
    """The figures of the model that is promoted now, each replaced by the best that was promoted on the same basis.

    Compared with the last model alone, a model might get worse by a little every week, and without end.
    """
    if not promoted or check.is_off(limits):
        return promoted[-1] if promoted else None
    before = [figure for stage in promoted for figure in stage.figures.get(check.name, ())]
    best = [
        _best_of(check, limits, [past for past in before if (past.name, past.basis) == (now.name, now.basis)])
        for now in promoted[-1].figures.get(check.name, ())
    ]
    return promoted[-1].model_copy(update={"figures": {check.name: best}})


def _best_of(check: Check, limits: ChecksConfig, figures: Sequence[Figure]) -> Figure:
    """The best one since somebody has last promoted a model that the limits do not accept."""
    better = min if check.promoted == "lowest" else max
    best = figures[0]
    for figure in figures[1:]:
        is_accepted = not check.judge(figure, best, limits).passed
        best = figure if is_accepted else better(best, figure, key=lambda one: one.value)
    return best


def _why_not(
    check: Check, found: StageFigures, figure: Figure, reference: StageFigures | None, compared: Figure | None
) -> str | None:
    """Why a figure is not compared; None if it is."""
    if reference is None:
        return "nothing is promoted yet" if check.promoted else "no earlier run has passed"
    if not check.promoted and reference.settings != found.settings:
        return "not compared: the settings are not those of the last run that passed"
    if compared is None:
        return "not compared: the reference has no such figure"
    names = sorted({*figure.basis, *compared.basis})
    if others := [name for name in names if figure.basis.get(name) != compared.basis.get(name)]:
        return f"not compared with the promoted model: {', '.join(others)} changed"
    return None


def _joined(messages: Sequence[str]) -> str:
    more = len(messages) - _SHOWN
    return "; ".join(messages[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _settings(stage: CheckedStage) -> str:
    return digest_of({"version": stage.version, "config": identity(stage.config)})


def _manifest(run: CheckedRun, stage: str) -> Manifest | None:
    artifact = run.artifact(stage)
    return artifact and artifact.manifest


def _files(run: CheckedRun, stage: str) -> Sequence[SourceFile]:
    """The user's files that a stage reads; none if one is no longer there."""
    try:
        return run.files_of(stage)
    except MissingFile:
        return ()
