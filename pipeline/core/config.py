"""A YAML file and key=value overrides -> one strict, frozen configuration, or a one-line error."""

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from cloze.pipeline.core import unknown_keys, yaml_text
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.yaml_text import KeyPath

if TYPE_CHECKING:
    from cloze.pipeline.core.storage import Location

Model = TypeVar("Model", bound="Config")


NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"  # of a run, a task or a promoted model: a regular expression


class _Compute:
    """The type of `Compute`."""


#: Marks a field that decides how or where a stage runs and does not affect its output:
#: `workers: Annotated[int, Compute] = 2`. Fingerprints leave it out.
Compute = _Compute()


class _Given:
    """The type of `Given`."""


#: Marks a field for which it matters whether it is given, even with its default as value. A configuration that is
#: written for another process has it only then.
Given = _Given()


@dataclass(frozen=True)
class InputPath(_Compute):
    """Marks a field that names user files: a path, a glob, a list of these, or a mapping to paths.

    The files' bytes are an input of the stage; their path is not, so the field counts as `Compute`. `input` is the
    stage's name for the input, by default the field's name; the path of each key of a mapping is an input of its own,
    named by the key. `files_in`, for a field that names a folder, maps (value, the run's root) to the paths of the
    files that are read; they are one input, with the path of the first. `is_name` is true of values that are not paths
    but names of something under the root.
    """

    input: str | None = None
    files_in: "Callable[[str, Location], Sequence[str]] | None" = None
    is_name: Callable[[str], bool] = lambda _: False


class MarkedPath(NamedTuple):
    """A field that is marked `InputPath` and set."""

    keys: KeyPath  # ("sources", 0, "files")
    input: str  # the stage's name for the input
    patterns: tuple[str, ...]
    is_list: bool  # a list may name any number of files, a single string names one
    mark: InputPath

    def check_count(self, files: Sequence[str]) -> None:
        """Raises UserError when a field for one file matches several."""
        if len(files) > 1 and not self.is_list:
            raise UserError(f"{self.patterns[0]}: matches {len(files)} files ({files[0]}, ...); name one")


class Config(BaseModel):
    """A frozen pydantic model that rejects unknown keys and converts no types silently."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,  # the text below a field is its description in docs/reference
    )

    #: Keys that other programs use for settings of this model -> the advice that an error gives instead of a guess.
    KEY_HINTS: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def filled_in(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The content of a file, with its overrides, as it is validated. Raises ValueError for what is missing."""
        return data


def identity(config: Config) -> dict[str, Any]:
    """Returns the part of a configuration that affects the output, as plain JSON: all fields not marked `Compute`.

    Fields that are None, and nested configurations in which every field is, are left out. So a key that a later
    version adds with the default None changes no fingerprint.
    """
    fields = {
        name: _plain_json(getattr(config, name))
        for name, field in type(config).model_fields.items()
        if not any(isinstance(mark, _Compute) for mark in field.metadata)
    }
    return {
        name: value
        for name, value in fields.items()
        if value is not None and not (value == {} and isinstance(getattr(config, name), Config))
    }


def _plain_json(value: Any) -> Any:
    if isinstance(value, Config):
        return identity(value)
    if isinstance(value, Mapping):
        return {key: _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value


def input_paths(config: Config) -> list[MarkedPath]:
    """Returns the fields marked `InputPath`, at any depth, that are set.

    An input has the name of its field. In an entry of a list or mapping, the entry's name (or index) precedes it, and
    the mark may leave the field's name empty: `files` of the source enwiki, marked InputPath(""), is the input enwiki.
    """
    return list(_input_paths(config, (), ()))


def _input_paths(config: Config, keys: KeyPath, names: tuple[str, ...]) -> Iterator[MarkedPath]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        marks = [mark for mark in field.metadata if isinstance(mark, InputPath)]
        if not marks:
            yield from _nested_input_paths(value, (*keys, name), names)
        elif isinstance(value, Mapping):
            for key, path in value.items():
                yield MarkedPath((*keys, name, key), ".".join((*names, key)), (path,), False, marks[0])
        elif value not in (None, ""):
            last_name = name if marks[0].input is None else marks[0].input
            is_list = not isinstance(value, str)
            patterns = tuple(value) if is_list else (value,)
            yield MarkedPath((*keys, name), ".".join(filter(None, (*names, last_name))), patterns, is_list, marks[0])


def _nested_input_paths(value: Any, keys: KeyPath, names: tuple[str, ...]) -> Iterator[MarkedPath]:
    if isinstance(value, Config):
        yield from _input_paths(value, keys, names)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested_input_paths(item, (*keys, key), (*names, str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _nested_input_paths(item, (*keys, index), (*names, str(getattr(item, "name", index))))


def with_paths(config: Config, replace: Callable[[MarkedPath, str], Sequence[str]]) -> dict[str, Any]:
    """Returns the configuration as plain JSON, with `replace(field, pattern)` in place of each marked path or pattern.

    Fields marked `Given` are left out where they are not given. Raises UserError when `replace` returns several files
    for a field that takes one.
    """
    data = config.model_dump(mode="json")
    _leave_out_unset(config, data)
    for path in input_paths(config):
        *parents, last = path.keys
        files = [file for pattern in path.patterns for file in replace(path, pattern)]
        path.check_count(files)
        reduce(operator.getitem, parents, cast(Any, data))[last] = files if path.is_list else files[0]
    return data


def _leave_out_unset(value: Any, data: Any) -> None:
    """Delete the fields marked `Given` that are not set, at any depth. `data` is the value as plain JSON."""
    if isinstance(value, Config):
        for name, field in type(value).model_fields.items():
            if Given in field.metadata and name not in value.model_fields_set:
                del data[name]
            else:
                _leave_out_unset(getattr(value, name), data[name])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _leave_out_unset(item, data[key])
    elif isinstance(value, list | tuple):
        for item, plain in zip(value, data, strict=True):
            _leave_out_unset(item, plain)


def load(model: type[Model], path: str | Path, overrides: Sequence[str] = ()) -> Model:
    """Read `path`, apply the overrides in order, and validate the result.

    An override is key=value (dots reach into nested keys: pretrain.seed=7; values are YAML), or another YAML file whose
    keys replace those of `path`. Raises UserError for a missing or invalid file, override, key or value.
    """
    return parse(model, _read(path), str(path), overrides)


def parse(model: type[Model], text: bytes, file: str, overrides: Sequence[str] = ()) -> Model:
    """As `load`, from the content of a file. `file` is its name in errors."""
    data, line_numbers = _mapping(text, file)
    origins: dict[KeyPath, str] = {}
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            update, update_lines = _mapping(_read(override), override)
            origins |= {keys: f"{override}:{update_lines[keys]}" for keys in _merge(data, update)}
        else:
            origins[_override(data, override)] = override
    try:
        data = model.filled_in(data)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise UserError(_first_error(error, model, data, file, line_numbers, origins)) from None


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a configuration file") from error


def _mapping(text: bytes, file: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Returns the content of a YAML file, and the line number of each key."""
    try:
        data, line_numbers = yaml_text.read(text.decode("utf-8"), file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text; give the path of a YAML configuration file") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}: has no keys; a configuration is a YAML mapping such as configs/quickstart.yaml")
    return data, line_numbers


def _merge(data: dict[str, Any], update: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Set the values of `update` in nested plain data; yields the path of each."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            yield from _merge(data[key], value, (*path, key))
        else:
            data[key] = value
            yield (*path, key)


def _override(data: Any, override: str) -> KeyPath:
    """Set one `key=value` in nested plain data; returns the key's path."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"{override}: is not an override; write key=value, for example pretrain.seed=7, or a YAML file")
    value, _ = yaml_text.read(text, override)
    path: list[str | int] = []
    node: Any = data
    *parents, last = dotted.split(".")
    for key in parents:
        path.append(_key_or_index(node, key, override))
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[path[-1]]
    path.append(_key_or_index(node, last, override))
    node[path[-1]] = value
    return tuple(path)


def _key_or_index(node: Any, key: str, override: str) -> str | int:
    """Returns the key of a mapping, or the index of a list's entry with that name or number."""
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
    raise UserError(f"{override}: there is no key {key} inside a single value; set the key that has this value")


def _first_error(
    error: ValidationError,
    model: type[Config],
    data: Any,
    file: str,
    line_numbers: Mapping[KeyPath, int],
    origins: Mapping[Any, str],
) -> str:
    """Returns one line: the file and line number or the override, the key, its value, and the fix."""
    errors = error.errors()
    first = min(errors, key=lambda entry: entry["type"] != "extra_forbidden")  # a misspelt key is missing elsewhere
    keys: list[str | int] = []
    node = data
    for key in first["loc"]:  # pydantic adds the names of union members, which are not keys of the data
        is_key = key in node if isinstance(node, dict) else isinstance(node, list) and isinstance(key, int)
        if is_key:
            node = cast(Any, node)[key]
            keys.append(key)
        elif first["type"] == "missing" and key == first["loc"][-1]:
            keys.append(key)
    shown, message = "", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = unknown_keys.advice(keys, model, model.KEY_HINTS)
    elif first["type"] == "missing":
        message = "is missing; add it"
    elif first["type"] == "union_tag_not_found":
        keys.append(str(first.get("ctx", {}).get("discriminator")).strip("'"))
        message = "is missing; add it"
    elif not isinstance(node, dict | list):
        shown = f" is {json.dumps(node)}"
    overridden = (origins[tuple(keys[:n])] for n in range(len(keys), 0, -1) if tuple(keys[:n]) in origins)
    where = next(overridden, f"{file}:{_line_number(line_numbers, keys)}")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {'.'.join(map(str, keys)) or 'the configuration'}{shown}: {message}{more}"


def _line_number(line_numbers: Mapping[KeyPath, int], keys: Sequence[str | int]) -> int:
    for depth in range(len(keys), 0, -1):
        if tuple(keys[:depth]) in line_numbers:
            return line_numbers[tuple(keys[:depth])]
    return 1
