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


def promote(
    run: Run, name: str | None = None, why: str = "", by: str | None = None, *, automatic: bool = False
) -> Event:
    """Promote a run's outputs as `name`, by default the run's; returns the event that then tells what is promoted.

    That is the present one if these outputs are promoted already, and with `automatic` also if they were rolled back:
    only a person promotes them again. `by` is who@where. Raises UserError when the run has no pretraining, a stage is
    not finished or a file is missing, and ChecksFailed.
    """
    name = name or run.config.name
    artifacts = _finished(run)
    if "pretrain" not in artifacts:
        raise UserError(f"{run.config.name}: only fine-tunes, so it has no pretrained checkpoint to promote")
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
    history = registry.events(run.root, name)
    if history and (event.is_output_of(history[-1]) or (automatic and registry.was_rolled_back(history, event))):
        return history[-1]
    return registry.append(run.root, name, event)


def roll_back(root: Location, name: str, why: str = "", by: str | None = None) -> Event:
    """Return to the model that was promoted before as `name`. Raises UserError when there is none, or a file of it is
    missing."""
    history = registry.events(root, name)
    if not history:
        raise _unknown(root, name)
    before = registry.earlier(history)
    if before is None:
        raise UserError(f"{name}: no other model was promoted before the present one, {history[-1].digest[:12]}")
    for stage in before.stages.values():
        place = root / stage.folder / stage.fingerprint
        _require_files(Artifact(place, stage.folder, stage.fingerprint))
    update = {"kind": "rollback", "restores": before.number, "by": by or _whoami(), "when": _now(), "why": why}
    return registry.append(root, name, before.model_copy(update=update))


def history_of(root: Location, name: str) -> list[Event]:
    """All events of a name, the oldest first. Raises UserError when there are none."""
    if found := registry.events(root, name):
        return found
    raise _unknown(root, name)


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


def _unknown(root: Location, name: str) -> UserError:
    names = registry.names(root)
    known = f"promoted there: {', '.join(names)}" if names else "nothing is promoted there"
    return UserError(f"{name}: nothing is promoted under this name in {root} ({known}); cloze promote RUN --as {name}")


def _whoami() -> str:
    user = str(os.getuid())
    with suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
