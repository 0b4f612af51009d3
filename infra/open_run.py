"""What a command is given as RUN -> a `Run`: a YAML file, a run's name, or NAME@promoted, a run as it was promoted."""

from collections.abc import Sequence

from cloze.infra import named_runs
from cloze.infra.planner import Run
from cloze.infra.promotion.inits import promoted
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import parse
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import promoted_name


def open_run(
    run: str,
    overrides: Sequence[str] = (),
    root: str | None = None,
    *,
    root_option: str = "--root",
    only_tasks: bool = False,
) -> Run:
    """The run, with the arguments of `named_runs.read`. NAME@promoted has the outputs that were promoted under `root`
    ("runs"), whatever its sources and its configuration are now. Raises UserError."""
    if name := promoted_name(run):
        return _promoted_run(name, overrides, Location(root or named_runs.DEFAULT_ROOT).absolute())
    return Run(named_runs.read(run, overrides, root, root_option=root_option), only_tasks=only_tasks)


def refuse_promoted(run: str, command: str) -> None:
    """Raises UserError for NAME@promoted, whose stages are not run again."""
    if name := promoted_name(run):
        raise UserError(f"{run}: is finished, {command} has nothing to do; name the run, such as {name}")


def _promoted_run(name: str, overrides: Sequence[str], root: Location) -> Run:
    if overrides:
        raise UserError(
            f"{overrides[0]}: {name}@promoted is read as it was promoted; leave the override out, and "
            "name its root with --root"
        )
    event = promoted(root, name)
    file = f"{root}/promoted/{name}/{event.number:05}.json"
    config = parse(RunConfig, event.config.encode(), file, named_runs.root_override(root.uri))
    if config.pretrain:
        pretrain = config.pretrain.model_copy(update={"init": event.init})
        config = config.model_copy(update={"pretrain": pretrain})
    return Run(config, pinned=event.stages, page=f"{name}@promoted")
