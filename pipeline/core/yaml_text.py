"""YAML text <-> plain data, with the line number of every key."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from cloze.pipeline.core.errors import UserError

#: The keys that lead to a value in nested data, for example ("sources", 0, "files").
KeyPath = tuple[str | int, ...]


def read(text: str, file: str) -> tuple[Any, dict[KeyPath, int]]:
    """YAML text -> plain data, and the line number of each key and list item. `file` is its name in errors.

    Raises UserError for invalid YAML, a duplicate key, a value that JSON has no type for, and endless recursion.
    """
    loader = _Loader(text)
    line_numbers: dict[KeyPath, int] = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), line_numbers, file)), line_numbers
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{file}{line}: is not valid YAML: {problem}; correct it") from error
    except RecursionError as error:
        raise UserError(f"{file}: an anchor contains itself; remove the *alias inside its own &anchor") from error
    finally:
        loader.dispose()


def dump(data: Mapping[str, Any]) -> str:
    """Plain data -> YAML text that `read` returns as the same data, to the last bit of a number."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2 does: 1e-4 is a number, `no` and dates are text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first_characters in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first_characters)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would resolve to another type."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Inside single quotes PyYAML writes Unicode line separators unescaped and reads them back as line breaks.
    style = '"' if text.splitlines() != [text] else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _represent_text)


def _construct(loader: _Loader, node: yaml.Node, path: KeyPath, line_numbers: dict[KeyPath, int], file: str) -> Any:
    line_numbers.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                raise UserError(f"{file}:{line}: the key {key} occurs twice; remove one")
            line_numbers[(*path, key)] = line
            result[key] = _construct(loader, value_node, (*path, key), line_numbers, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*path, i), line_numbers, file) for i, item in enumerate(node.value)]
    return _construct_scalar(loader, node, file)


def _construct_scalar(loader: _Loader, node: yaml.Node, file: str) -> str | int | float | bool | None:
    try:
        # PyYAML would read 010 as octal.
        value = int(node.value.replace("_", "")) if node.tag.endswith(":int") else loader.construct_object(node)
    except ValueError:
        value = NotImplemented
    if isinstance(value, str | int | float | None):
        return value
    line = node.start_mark.line + 1
    raise UserError(f"{file}:{line}: {node.value[:40]} is not text, a number, true, false or null; remove its tag")
