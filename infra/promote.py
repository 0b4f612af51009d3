"""A finished run that passes its checks -> the promoted model of a name, and back: see promotion/registry.py."""

import getpass
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from cloze.infra import named_runs
from cloze.infra.checks.results import require_passed
from cloze.infra.checks.stage_checks import stage_figures
from cloze.infra.planner import Run
from cloze.infra.promotion import registry
from cloze.infra.promotion.registry import Event, PromotedStage
from cloze.pipeline.core.artifacts import Artifact, missing_files
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.pretrain.stage import final_checkpoint

_MODELS = ("vocab", "pretrain", "finetune-")  # the beginnings of the names of stages that export and predict need


class HeldBack(UserError):
    """A run is not promoted automatically: only a person can decide."""


def promote(
    run: Run, name: str | None = None, why: str = "", by: str | None = None, *, automatic: bool = False
) -> Event:
    """Promote a run's outputs as `name`, by default the run's; returns the event that then tells what is promoted.

    That is the present one if these outputs are promoted already. `by` is who@where. Raises UserError when the run has
    no pretraining, a stage is not finished or a file is missing; ChecksFailed, by what is promoted now; and with
    `automatic` HeldBack when nothing can be compared with the promoted model, or outputs of the same files were rolled
    back.
    """
    name = name or run.config.name
    artifacts = _finished(run)
    if "pretrain" not in artifacts:
        raise UserError(f"{run.config.name}: only fine-tunes, so it has no pretrained checkpoint to promote")
    while True:
        history = registry.events(run.root, name)
        run.compare_with(name)
        for stage in artifacts:
            require_passed(run.check_results(stage))
        event = Event(
            number=0,
            kind="promote",
            digest=final_checkpoint(artifacts["pretrain"]).digest,
            run=run.config.name,
            stages={
                stage: _promoted_stage(run, stage, artifact)
                for stage, artifact in artifacts.items()
                if not run.stage(stage).publish  # the report is written again whenever a stage is
            },
            config=named_runs.as_yaml(run.config),
            init=run.resolved_config.pretrain and run.resolved_config.pretrain.init,
            by=by or _whoami(),
            when=_now(),
            why=why,
        )
        if history and event.is_output_of(history[-1]):
            return history[-1]
        if automatic and history:
            _hold_back(run, name, history, event)
        if stored := registry.append(run.root, name, event, after=_number(history)):
            return stored


def _hold_back(run: Run, name: str, history: list[Event], event: Event) -> None:
    """Raises HeldBack when nobody should promote this without looking at it."""
    by_hand = f"promote it by hand: cloze promote {run.config.name}"
    for past in registry.rolled_back(history):
        if event.is_output_of(past) or _same_files(run, event, past):
            raise HeldBack(f"{name}: what event {past.number} promoted from the same files was rolled back; {by_hand}")
    limits = run.config.checks
    compared = [
        result.reference is not None
        for stage in event.stages
        for check, result in zip(run.stage(stage).checks, run.check_results(stage), strict=True)
        if check.promoted and not check.is_off(limits)
    ]
    if compared and not any(compared):
        raise HeldBack(
            f"{name}: no loss or score can be compared with the promoted model's (another vocabulary or other "
            f"settings, see cloze status); {by_hand}"
        )


def _same_files(run: Run, one: Event, other: Event) -> bool:
    """Whether the stages that read the user's files alone have the same outputs in both events."""
    of_files = [name for name in one.stages if run.stage(name).sources and not run.stage(name).reads]
    fingerprints = [
        [event.stages[name].fingerprint for name in of_files if name in event.stages] for event in (one, other)
    ]
    return bool(of_files) and fingerprints[0] == fingerprints[1]


def roll_back(root: Location, name: str, why: str = "", by: str | None = None) -> Event:
    """Return to the model that was promoted before as `name`. Raises UserError when there is none, or a file of it is
    missing."""
    while True:
        history = history_of(root, name)
        before = registry.earlier(history)
        if before is None:
            raise UserError(f"{name}: no other model was promoted before the present one, {history[-1].digest[:12]}")
        _require_model(root, before)
        update = {"kind": "rollback", "restores": before.number, "by": by or _whoami(), "when": _now(), "why": why}
        if stored := registry.append(root, name, before.model_copy(update=update), after=_number(history)):
            return stored


def promote_again(root: Location, name: str, number: int, why: str = "", by: str | None = None) -> Event:
    """Promote what the event `number` has promoted, also if it was rolled back. Raises UserError when there is no such
    event, or a file is missing."""
    while True:
        history = history_of(root, name)
        found = next((event for event in history if event.number == number), None)
        if found is None:
            raise UserError(f"--event {number}: {name} has the events {history[0].number} to {history[-1].number}")
        _require_model(root, found)
        if found.is_output_of(history[-1]):
            return history[-1]
        update = {"kind": "promote", "restores": None, "by": by or _whoami(), "when": _now(), "why": why}
        if stored := registry.append(root, name, found.model_copy(update=update), after=_number(history)):
            return stored


def _number(history: list[Event]) -> int:
    return history[-1].number if history else 0


def _require_model(root: Location, event: Event) -> None:
    """Raises UserError when a file of the models is missing. The shards that they were trained on may be gone."""
    for name, stage in event.stages.items():
        if name.startswith(_MODELS):
            place = root / stage.folder / stage.fingerprint
            _require_files(Artifact(place, stage.folder, stage.fingerprint))


def history_of(root: Location, name: str) -> list[Event]:
    """All events of a name, the oldest first. Raises UserError when there are none."""
    if found := registry.events(root, name):
        return found
    names = registry.names(root)
    known = f"promoted there: {', '.join(names)}" if names else "nothing is promoted there"
    raise UserError(f"{name}: nothing is promoted under this name in {root} ({known}); cloze promote RUN --as {name}")


def _finished(run: Run) -> Mapping[str, Artifact]:
    """The outputs of all stages. Raises UserError when one is not finished or lacks a file."""
    artifacts: dict[str, Artifact] = {}
    for stage in run.stages:
        artifact = run.artifact(stage)
        if artifact is None:
            raise UserError(
                f"{run.config.name}: {stage} is not finished under {run.root}; finish it with cloze run, then promote"
            )
        _require_files(artifact)
        artifacts[stage] = artifact
    return artifacts


def _require_files(artifact: Artifact) -> None:
    if missing := missing_files(artifact.location, artifact.manifest):
        raise UserError(
            f"{artifact.location / missing[0]}: is missing or truncated; write it again with cloze run, then promote"
        )


def _promoted_stage(run: Run, stage: str, artifact: Artifact) -> PromotedStage:
    return PromotedStage(folder=artifact.stage, **vars(stage_figures(run, stage, artifact)))


def _whoami() -> str:
    user = str(os.getuid())
    with suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
