"""A YAML file and key=value overrides -> one strict, frozen configuration, or one line that says what is wrong."""

import difflib
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    from cloze.pipeline.core.storage import Location

Model = TypeVar("Model", bound="Config")
Lines = dict[tuple[str | int, ...], int]


class _Compute:
    """The type of `Compute`."""


#: Marks a field that says how or where to run, not what comes out: `workers: Annotated[int, Compute] = 2`.
Compute = _Compute()


@dataclass(frozen=True)
class InputPath(_Compute):
    """Marks a field that names the user's files, by a path, a glob or a list: `file: Annotated[str, InputPath()]`.

    Their bytes are an input of the stage; where they lie changes nothing, so the mark is a `Compute`, too. `input` is
    what the stage calls the input, where that is not the field's name. A field that names a folder says by `file_in`,
    (value, run's root) -> path, which file of it is read, and by `is_name` which values are no path at all but the name
    of something under the root.
    """

    input: str | None = None
    file_in: "Callable[[str, Location], str] | None" = None
    is_name: Callable[[str], bool] = lambda _: False


class MarkedPath(NamedTuple):
    """A field that is marked `InputPath`, and set."""

    keys: tuple[str | int, ...]  # where it stands: ("sources", 0, "files")
    input: str  # what the stage calls it
    patterns: tuple[str, ...]
    several: bool  # a list, which may name any number of files; a single text names one
    mark: InputPath

    def check_number(self, found: Sequence[str]) -> None:
        """Raises UserError when a field for one file names several."""
        if len(found) > 1 and not self.several:
            raise UserError(f"{self.patterns[0]}: names {len(found)} files ({found[0]}, ...); name one")


class Config(BaseModel):
    """Strict (no silent conversions), frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,  # the text below a field is its description in docs/reference
    )


def identity(config: Config) -> dict[str, Any]:
    """The part of a configuration that decides the output, as plain JSON: every field that is not marked `Compute`.

    What is not set (None, or a part of the configuration in which nothing is) is left out: a key that a later version
    adds, unset by default, changes no fingerprint.
    """
    fields = {
        name: _plain(getattr(config, name))
        for name, field in type(config).model_fields.items()
        if not any(isinstance(mark, _Compute) for mark in field.metadata)
    }
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not (value == {} and isinstance(getattr(config, name), Config))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return identity(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def input_paths(config: Config) -> list[MarkedPath]:
    """The fields marked `InputPath`, at any depth, that are set.

    An input is called by its field; in an entry of a list or mapping by the entry's name (or place) and the field,
    which the mark may leave empty: the field `files` of the source enwiki, marked InputPath(""), is the input enwiki.
    """
    return list(_input_paths(config, (), ()))


def _input_paths(config: Config, keys: tuple[str | int, ...], names: tuple[str, ...]) -> Iterator[MarkedPath]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        marks = [mark for mark in field.metadata if isinstance(mark, InputPath)]
        if not marks:
            yield from _paths_inside(value, (*keys, name), names)
        elif value not in (None, ""):
            own = name if marks[0].input is None else marks[0].input
            several = not isinstance(value, str)
            patterns = tuple(value) if several else (value,)
            yield MarkedPath((*keys, name), ".".join(filter(None, (*names, own))), patterns, several, marks[0])


def _paths_inside(value: Any, keys: tuple[str | int, ...], names: tuple[str, ...]) -> Iterator[MarkedPath]:
    if isinstance(value, Config):
        yield from _input_paths(value, keys, names)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths_inside(item, (*keys, key), (*names, str(key)))
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _paths_inside(item, (*keys, place), (*names, str(getattr(item, "name", place))))


def with_paths(config: Config, place: Callable[[MarkedPath, str], Sequence[str]]) -> dict[str, Any]:
    """The configuration as plain JSON; instead of each marked path or pattern it has what `place` gives for it.

    Raises UserError when that is several files for a field of one.
    """
    data = config.model_dump(mode="json")
    for path in input_paths(config):
        *parents, last = path.keys
        placed = [file for pattern in path.patterns for file in place(path, pattern)]
        path.check_number(placed)
        reduce(operator.getitem, parents, cast(Any, data))[last] = placed if path.several else placed[0]
    return data


def load(model: type[Model], path: str | Path, overrides: Sequence[str] = ()) -> Model:
    """Read `path`, apply overrides, validate. An override is key=value (dots reach inside: pretrain.seed=7; values are
    YAML), or another YAML file, whose keys take the place of those in `path`.

    Raises UserError: a file is missing or no YAML, an override is neither, a key is unknown, a value impossible.
    """
    return parse(model, _read(path), str(path), overrides)


def parse(model: type[Model], text: bytes, where: str, overrides: Sequence[str] = ()) -> Model:
    """The same of a file's content; `where` is what errors call it."""
    data, lines = _mapping(text, where)
    origin: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            more, more_lines = _mapping(_read(override), override)
            origin |= {keys: f"{override}:{more_lines[keys]}" for keys in _merge(data, more)}
        else:
            origin[_override(data, override)] = override
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UserError(_first_error(error, model, data, where, lines, origin)) from None


def dump(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `parse` reads as the same data, to the last bit of a number."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a configuration file") from error


def _mapping(text: bytes, where: str) -> tuple[dict[str, Any], Lines]:
    try:
        data, lines = _parse(text.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text; give the path of a YAML configuration file") from error
    if not isinstance(data, dict):
        raise UserError(f"{where}: holds no keys; a configuration is a YAML mapping such as configs/quickstart.yaml")
    return data, lines


def _merge(data: dict[str, Any], more: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Set the values of `more` in nested plain data; yields the path of each."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            yield from _merge(data[key], value, (*path, key))
        else:
            data[key] = value
            yield (*path, key)


def _override(data: Any, override: str) -> tuple[str | int, ...]:
    """Set one `key=value` in nested plain data; returns the key's path."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"{override}: is not an override; write key=value, for example pretrain.seed=7, or a YAML file")
    value, _ = _parse(text, override)
    path: list[str | int] = []
    node: Any = data
    *parents, last = dotted.split(".")
    for key in parents:
        path.append(_step(node, key, override))
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[path[-1]]
    path.append(_step(node, last, override))
    node[path[-1]] = value
    return tuple(path)


def _step(node: Any, key: str, override: str) -> str | int:
    if isinstance(node, dict):
        return key
    if isinstance(node, list):
        names = [item.get("name") for item in node if isinstance(item, dict)]
        if key in names:
            return names.index(key)
        if key.isdigit() and int(key) < len(node):
            return int(key)
        choices = ", ".join([*(str(name) for name in names if name), f"0 to {len(node) - 1}"])
        raise UserError(f"{override}: {key} is not in that list; it has {choices}")
    raise UserError(f"{override}: {key} stands inside a single value; give the key that holds it instead")


def _first_error(
    error: ValidationError, model: type[Config], data: Any, path: str, lines: Lines, origin: Mapping[Any, str]
) -> str:
    errors = error.errors()
    first = min(errors, key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key is missed elsewhere
    keys: list[str | int] = []
    node = data
    for key in first["loc"]:  # pydantic adds the names of union members, which are no keys of the data
        inside = key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int)
        if inside:
            node = cast(Any, node)[key]
            keys.append(key)
        elif first["type"] == "missing" and key == first["loc"][-1]:
            keys.append(key)
    shown, message = "", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = _unknown(str(keys[-1]), model)
    elif first["type"] == "missing":
        message = "is missing; add it"
    elif first["type"] == "union_tag_not_found":
        keys.append(str(first.get("ctx", {}).get("discriminator")).strip("'"))
        message = "is missing; add it"
    elif not isinstance(node, dict | list):
        shown = f" is {json.dumps(node)}"
    overridden = (origin[tuple(keys[:n])] for n in range(len(keys), 0, -1) if tuple(keys[:n]) in origin)
    where = next(overridden, f"{path}:{_line(lines, keys)}")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {'.'.join(map(str, keys)) or 'the configuration'}{shown}: {message}{more}"


def _unknown(key: str, model: type[Config]) -> str:
    schema = model.model_json_schema()
    known = {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})}
    if key in known:
        return "is a key, but not of this part; move it to where it belongs or remove it"
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key; remove it or correct its name"


def _line(lines: Lines, keys: Sequence[str | int]) -> int:
    for depth in range(len(keys), 0, -1):
        if tuple(keys[:depth]) in lines:
            return lines[tuple(keys[:depth])]
    return 1


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number, `no` is Norwegian and a date stays text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _starts)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would take for something else."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Between single quotes PyYAML writes Unicode's line ends as such, and reads others.
    style = '"' if text.splitlines() != [text] else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _text)


def _parse(text: str, where: str) -> tuple[Any, Lines]:
    """YAML text -> plain data and the line on which each key stands."""
    loader = _Loader(text)
    lines: Lines = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines, where)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{where}{line}: is not YAML: {problem}") from error
    except RecursionError as error:
        raise UserError(f"{where}: is nested without end; take the &anchor apart from what repeats it") from error
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, path: tuple[str | int, ...], lines: Lines, where: str) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                raise UserError(f"{where}:{line}: {key} stands twice; keep one")
            lines[(*path, key)] = line
            result[key] = _construct(loader, value_node, (*path, key), lines, where)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), lines, where) for i, item in enumerate(node.value)]
    return _scalar(loader, node, where)


def _scalar(loader: _Loader, node: yaml.Node, where: str) -> str | int | float | bool | None:
    try:
        value = _decimal(node.value) if node.tag.endswith(":int") else loader.construct_object(node)
    except ValueError:
        value = NotImplemented
    if isinstance(value, str | int | float | None):
        return value
    line = node.start_mark.line + 1
    raise UserError(
        f"{where}:{line}: {node.value[:40]} is no text, number, true, false or null; write it without a tag"
    )


def _decimal(text: str) -> int:
    return int(text.replace("_", ""))  # PyYAML would read 010 as eight
