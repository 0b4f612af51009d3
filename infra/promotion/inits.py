"""NAME@promoted as an `init` -> the digest of the model that is promoted now.

A run with the same inputs as the one that made the promoted model keeps that one's `init`: otherwise each promotion
would start a training from its own result.
"""

from collections.abc import Callable

from cloze.infra.promotion.registry import Event, current
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import promoted_name

_PRETRAIN = "pretrain"

Fingerprint = Callable[[RunConfig, str], str | None]  # of a stage's output, for a configuration without NAME@promoted


def uses_promoted(config: RunConfig) -> bool:
    """Whether an `init` of the configuration is NAME@promoted."""
    inits = [config.pretrain and config.pretrain.init, *(task.init for task in config.finetune)]
    return any(init and promoted_name(init) for init in inits)


def with_digests(config: RunConfig, root: Location, fingerprint: Fingerprint) -> tuple[RunConfig, tuple[str, ...]]:
    """The configuration with digests in place of NAME@promoted, and notes for the user.

    Pretraining starts from random weights while nothing is promoted. Raises UserError for a task without a model.
    """
    tasks = [task.model_copy(update={"init": _task_init(task.name, task.init, root)}) for task in config.finetune]
    config = config.model_copy(update={"finetune": tuple(tasks)})
    pretrain = config.pretrain
    if not (pretrain and pretrain.init and (name := promoted_name(pretrain.init))):
        return config, ()

    def starting_from(init: str | None) -> RunConfig:
        return config.model_copy(update={"pretrain": pretrain.model_copy(update={"init": init})})

    event = current(root, name)
    if event is None:
        note = f"pretrain.init: nothing is promoted as {name} under {root} yet, so training starts from random weights"
        return starting_from(None), (note,)
    same = starting_from(event.init)
    made = event.stages.get(_PRETRAIN)
    if made and made.fingerprint == fingerprint(same, _PRETRAIN):
        return same, ()
    return starting_from(event.digest), ()


def _task_init(task: str, init: str | None, root: Location) -> str | None:
    name = init and promoted_name(init)
    return promoted(root, name, f"finetune.{task}.init: {init}: ").digest if name else init


def promoted(root: Location, name: str, where: str = "") -> Event:
    """The event that tells which model is promoted as `name`. `where` begins the message.

    Raises UserError when nothing is promoted under this name.
    """
    if event := current(root, name):
        return event
    raise UserError(
        f"{where}nothing is promoted as {name} under {root}; promote a finished run with cloze promote RUN --as {name}"
    )
