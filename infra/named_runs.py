"""A YAML file, or the name of a run under a root -> its configuration; a configuration -> <root>/runs/<name>.yaml.

The stored file contains every key, and absolute paths for the user's: it is an ordinary configuration that means the
same in every folder. runs/<name>.json next to it is the planner's history.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core import yaml_text
from cloze.pipeline.core.config import NAME, identity, load, parse, with_paths
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

#: Environment variable with the path of the text that a submitted job stores: the job reads copies of the user's files,
#: whose paths are lost when the job ends.
SUBMITTED_CONFIG = "CLOZE_SUBMITTED_CONFIG"

DEFAULT_ROOT = "runs"


def read(
    run: str,
    overrides: Sequence[str] = (),
    root: str | None = None,
    defaults: Sequence[str] = (),
    *,
    root_option: str = "--root",
) -> RunConfig:
    """The configuration of `run`: a file if it contains a / or ends in .yaml, otherwise a name under `root` ("runs").

    `root` is the run's root in either case. `defaults` are overrides with a lower priority than `root` and `overrides`.
    `root_option` is how the user sets `root`, for error messages.

    Raises UserError: as `load` does; for a name that is not a run under that root.
    """
    all_overrides = [*defaults, *(root_override(root) if root is not None else []), *overrides]
    if not _is_file(run):
        where = Location(DEFAULT_ROOT if root is None else root)
        text, file = _stored_text(where, run, root_option), _stored_file(where, run)
        if (name := parse(RunConfig, text, file.uri).name) != run:
            raise UserError(f"{file}: contains the run {name}; give that name, or the YAML file of {run} once")
        return parse(RunConfig, text, file.uri, [*root_override(where.uri), *all_overrides])
    if run.startswith("s3://"):
        return parse(RunConfig, _read(Location(run)), run, all_overrides)
    return load(RunConfig, run, all_overrides)


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration with overrides as on the command line. Raises UserError as `load` does."""
    return parse(RunConfig, as_yaml(config).encode(), config.name, overrides) if overrides else config


def store(config: RunConfig) -> None:
    """Write the configuration of a run that starts under its root, for `read` by its name."""
    text = _submitted_text(config) or as_yaml(config).encode()
    file = _stored_file(Location(config.root).absolute(), config.name)
    if not file.exists() or file.read_bytes() != text:
        file.write_bytes(text)


def as_yaml(config: RunConfig) -> str:
    """The configuration as YAML, with its defaults; the user's paths and the root are absolute."""
    data = with_paths(config, lambda path, pattern: [pattern if path.mark.is_name(pattern) else absolute(pattern)])
    data["root"] = Location(config.root).absolute().uri
    return f"# {config.name} as it was last started\n{yaml_text.dump(data)}"


def absolute(pattern: str) -> str:
    """A path or glob pattern as an absolute one, which names the same files from every folder."""
    if pattern.startswith("s3://"):
        return pattern
    pattern, here = os.path.expanduser(pattern), str(Path.cwd())  # noqa: PTH111 (an unknown user's ~ stays as it is)
    # Brackets and stars in the folder's own name match themselves; the path of an existing file is not a pattern.
    start = here if Path(pattern).exists() else glob.escape(here)
    return os.path.normpath(os.path.join(start, pattern))  # noqa: PTH118 (a pattern, not a path)


def _submitted_text(config: RunConfig) -> bytes | None:
    """The text that was submitted with this job, if it is this run's: a job may also start other runs."""
    name = os.environ.get(SUBMITTED_CONFIG)
    if not name or not Path(name).is_file():
        return None
    text = Path(name).read_bytes()
    return text if identity(parse(RunConfig, text, name)) == identity(config) else None


def _is_file(run: str) -> bool:
    return "/" in run or run.endswith((".yaml", ".yml"))


def root_override(root: str) -> list[str]:
    return [f"root={json.dumps(root, ensure_ascii=False)}"]


def _stored_file(root: Location, name: str) -> Location:
    return root / "runs" / f"{name}.yaml"


def _stored_text(root: Location, name: str, root_option: str) -> bytes:
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name}: is not the name of a run; give letters, digits, - and _, or the path of a YAML file")
    file = _stored_file(root, name)
    if file.is_file():
        return file.read_bytes()
    if (root / "runs" / f"{name}.json").is_file():
        raise UserError(
            f"{name}: was run under {root} by a version that did not store configurations; give its YAML file once, "
            f"cloze run CONFIG --root {root}: finished stages are skipped"
        )
    names = sorted(file.name.removesuffix(".yaml") for file in (root / "runs").files() if file.suffix == ".yaml")
    known = f"whose runs are {', '.join(names)}" if names else "which has no runs"
    path = f"./{name}" if Path(name).is_file() else "the path of its YAML file"
    raise UserError(
        f"{name}: is not a run under {root}, {known}; give another name, its root with {root_option}, or {path}"
    )


def _read(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file}: does not exist; give the path of a configuration file") from error
