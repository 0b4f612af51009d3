"""A YAML file, or a run's name under a root -> its configuration; the configuration -> <root>/runs/<name>.yaml.

That file holds every key, and the user's paths as absolute ones: it is a configuration like any other, and says the
same in every folder. runs/<name>.json beside it is the planner's.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cloze.infra.run_config import NAME, RunConfig
from cloze.pipeline.core import yaml_text
from cloze.pipeline.core.config import identity, load, parse, with_paths
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

#: Names a file with the text that `keep` is to write: a job on a cluster reads copies of the user's files, whose paths
#: are gone with the job.
STARTED_AS = "CLOZE_STARTED_AS"

_DEFAULT_ROOT = "runs"


def read(run: str, overrides: Sequence[str] = (), root: str | None = None, defaults: Sequence[str] = ()) -> RunConfig:
    """The configuration of `run`: a file where it has a / or ends in .yaml, else a name under `root` ("runs").

    `root` is the run's root in either case. `defaults` are overrides that `root` and `overrides` come before.

    Raises UserError: as `load` does; for a name that is no run under that root.
    """
    mine = [*defaults, *(_root(root) if root is not None else []), *overrides]
    if not _is_file(run):
        where = Location(_DEFAULT_ROOT if root is None else root)
        kept, file = _kept(where, run), _file(where, run)
        if (name := parse(RunConfig, kept, file.uri).name) != run:
            raise UserError(f"{file}: holds the run {name}; give that name, or the YAML file of {run} once")
        return parse(RunConfig, kept, file.uri, [*_root(where.uri), *mine])
    if run.startswith("s3://"):
        return parse(RunConfig, _read(Location(run)), run, mine)
    return load(RunConfig, run, mine)


def keep(config: RunConfig) -> None:
    """Leave under the root what the run is started with, for `read` by its name."""
    text = _sent(config) or started_as(config).encode()
    file = _file(Location(config.root).absolute(), config.name)
    if not file.exists() or file.read_bytes() != text:
        file.write_bytes(text)


def started_as(config: RunConfig) -> str:
    """The configuration as YAML, with its defaults; paths of the user's, and the root, are made absolute."""
    data = with_paths(config, lambda path, pattern: [pattern if path.mark.is_name(pattern) else absolute(pattern)])
    data["root"] = Location(config.root).absolute().uri
    return f"# {config.name} as it was last started\n{yaml_text.dump(data)}"


def absolute(pattern: str) -> str:
    """A path or glob that names from any folder what `pattern` names from the current one."""
    if pattern.startswith("s3://"):
        return pattern
    pattern, here = os.path.expanduser(pattern), str(Path.cwd())  # noqa: PTH111 (a name that is not known stays)
    # Of a pattern, the folder's own brackets and stars are to match themselves; what is there is no pattern.
    start = here if Path(pattern).exists() else glob.escape(here)
    return os.path.normpath(os.path.join(start, pattern))  # noqa: PTH118 (a pattern, no path)


def _sent(config: RunConfig) -> bytes | None:
    """What came with a job, if it is this run's: a job may start others."""
    name = os.environ.get(STARTED_AS)
    if not name or not Path(name).is_file():
        return None
    text = Path(name).read_bytes()
    return text if identity(parse(RunConfig, text, name)) == identity(config) else None


def _is_file(run: str) -> bool:
    return "/" in run or run.endswith((".yaml", ".yml"))


def _root(root: str) -> list[str]:
    return [f"root={json.dumps(root, ensure_ascii=False)}"]


def _file(root: Location, name: str) -> Location:
    return root / "runs" / f"{name}.yaml"


def _kept(root: Location, name: str) -> bytes:
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name}: is no name of a run; give letters, digits, - and _, or the path of a YAML file")
    file = _file(root, name)
    if file.is_file():
        return file.read_bytes()
    if (root / "runs" / f"{name}.json").is_file():
        raise UserError(
            f"{name}: was run under {root} by a version that did not keep configurations; give its YAML file once, "
            f"cloze run CONFIG --root {root}: what is finished is skipped"
        )
    names = sorted(file.name.removesuffix(".yaml") for file in (root / "runs").files() if file.suffix == ".yaml")
    there = f"there are {', '.join(names)}" if names else "there is none"
    else_ = f"./{name}" if Path(name).is_file() else "the path of its YAML file"
    raise UserError(f"{name}: is no run under {root}, where {there}; give another name, its root by --root, or {else_}")


def _read(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file}: is not there; give the path of a configuration file") from error
