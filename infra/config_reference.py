"""The configuration classes -> a reference of all keys: their types, defaults and meanings.

Types and defaults come from the classes' fields, meanings from the texts below the fields. `cloze config` prints the
reference; `make reference` writes it to docs/reference/.
"""

import difflib
import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.errors import UserError

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}
_BOUNDS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
_COMPUTE = "Does not change the result."
_CONFIGURATION = """# Configuration of a run

All keys of a run's YAML file, such as `configs/quickstart.yaml`. `cloze config` prints the same.

`[]` marks a list. An override on the command line names an entry of a list by its `name` or its number:
`extract.sources.enwiki.language=de`, `pretrain.phases.0.steps=1000`.

Keys that do not change the result decide where and how fast a stage runs. They are not part of the fingerprint: a
finished stage is not run again when they change.
"""
_CLUSTER = """# Configuration of a cluster

All keys of the YAML file of `cloze submit RUN --cluster YAML`, such as `configs/clusters/local.yaml`.
"""
_GENERATED = "\nThis page is generated from the code by `make reference`.\n"


@dataclass(frozen=True)
class Key:
    """A configuration key."""

    path: str  # such as pretrain.phases[].steps
    type: str
    default: str  # empty for a key that contains other keys
    meaning: str  # empty where the field has no text

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Section:
    """The keys of a configuration class at one place; `variant` says which class it is where several are possible."""

    path: str  # empty for the whole configuration
    variant: str  # such as "kind: wikipedia"
    text: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        return f"{self.path}{f' ({self.variant})' if self.variant else ''}" or "Top level"


def sections(config: type[Config], path: str = "", variant: str = "", compute: bool = False) -> Iterator[Section]:
    """The section of a configuration class, then those of the classes in its fields, at any depth."""
    fields = config.model_fields
    keys = tuple(_key(f"{path}.{name}".lstrip("."), field, compute) for name, field in fields.items())
    variant = _variant(config) or variant
    yield Section(path, variant, _plain(config.__doc__ or ""), keys)
    for key, field in zip(keys, fields.values(), strict=True):
        for nested, in_list in _configs(field.annotation):
            nested_path = f"{key.path}[]" if in_list else key.path
            yield from sections(nested, nested_path, variant, compute or Compute in field.metadata)


def selected(key: str | None) -> list[Section]:
    """The sections of a run's configuration; with a key only that key and those below it.

    Entries of a list may be given by name or number, or left out. Raises UserError for an unknown key.
    """
    found = list(sections(RunConfig))
    if key is None:
        return found
    prefixes = {prefix for section in found for one in section.keys for prefix in _prefixes(one.path)}
    matches = {prefix for prefix in prefixes if _matches(key, prefix)}
    if not matches:
        near = difflib.get_close_matches(key, sorted(one.replace("[]", "") for one in prefixes), n=1)
        fix = f"did you mean {near[0]}?" if near else "cloze config lists all keys"
        raise UserError(f"{key}: is not a configuration key; {fix}")
    depth = max(prefix.count(".") for prefix in matches)  # sources.columns.language is not the language of a source
    matches = {prefix for prefix in matches if prefix.count(".") == depth}
    restricted = (
        replace(section, keys=tuple(one for one in section.keys if matches & set(_prefixes(one.path))))
        for section in found
    )
    return [section for section in restricted if section.keys]


def print_keys(key: str | None) -> None:
    """Print the keys that `selected` returns."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for section in selected(key):
        console.print(Text(section.title, style="bold"))
        if section.text:
            console.print(Text(section.text))
        for one in section.keys:
            default = one.default if one.default in ("", "required") else f"default {one.default}"
            head = Text.assemble((one.path, "bold"), f"  {'; '.join(filter(None, (one.type, default)))}")
            console.print(Padding(head, (0, 0, 0, 2), expand=False))
            if one.meaning:
                console.print(Padding(Text(one.meaning), (0, 0, 0, 6), expand=False))
        console.print()


def configuration_markdown(key: str | None = None) -> str:
    """docs/reference/configuration.md, or its part about one key and those below it."""
    return _markdown(_CONFIGURATION + _GENERATED if key is None else "", selected(key))


def cluster_markdown() -> str:
    """docs/reference/cluster.md"""
    return _markdown(_CLUSTER + _GENERATED, list(sections(ClusterConfig)))


def _markdown(intro: str, found: Sequence[Section]) -> str:
    parts = [intro]
    for section in found:
        title = f"`{section.path}`" if section.path else section.title
        variant = f" ({section.variant})" if section.variant else ""
        table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *map(_row, section.keys)])
        parts.append("\n\n".join(filter(None, [f"## {title}{variant}", section.text, table])) + "\n")
    return "\n".join(filter(None, parts))


def _row(key: Key) -> str:
    default = key.default if key.default in ("", "required") else f"`{key.default}`"
    cells = (" ".join(cell.replace("|", r"\|").split()) for cell in (f"`{key.name}`", key.type, default, key.meaning))
    return re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |")


def _key(path: str, field: FieldInfo, compute: bool) -> Key:
    kind = _field_type(field)
    if any(isinstance(mark, InputPath) for mark in field.metadata):
        kind = kind.replace("string", "path")
    meaning = _plain(field.description or "")
    if meaning and (compute or Compute in field.metadata):
        meaning = f"{meaning} {_COMPUTE}"
    return Key(path, kind, _default(field), meaning)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, Config) else json.dumps(value, ensure_ascii=False)


def _field_type(field: FieldInfo) -> str:
    for mark in field.metadata:  # a validator that also accepts another type
        if isinstance(mark, BeforeValidator) and mark.json_schema_input_type is not PydanticUndefined:
            return _type(mark.json_schema_input_type)
    return _with_bounds(_type(field.annotation), field.metadata)


def _type(annotation: Any) -> str:
    """A type in words, such as "list of integer > 0"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind, *marks = arguments
        return _with_bounds(_type(kind), [one for mark in marks for one in getattr(mark, "metadata", [mark])])
    if origin is Literal:
        *values, last = (json.dumps(value) if value == "" else str(value) for value in arguments)
        return f"{', '.join(values)} or {last}" if values else last
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"mapping of {_type(arguments[0])} to {_type(arguments[1])}"
    return _TYPES.get(annotation, "mapping")


def _with_bounds(kind: str, marks: Sequence[Any]) -> str:
    bounds = [
        f"{sign} {getattr(mark, attribute)}"
        for mark in marks
        for bound, (sign, attribute) in _BOUNDS.items()
        if isinstance(mark, bound)
    ]
    not_empty = ["not empty"] if any(isinstance(mark, MinLen) for mark in marks) else []
    kind, null, _ = kind.partition(" or null")
    return ", ".join([" ".join([kind, *bounds[:1]]), *bounds[1:], *not_empty]) + null


def _configs(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[Config], bool]]:
    """The configuration classes inside a field's type, and whether they are entries of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation, in_list
        return
    in_list = in_list or get_origin(annotation) in (list, tuple)
    for argument in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _configs(argument, in_list)


def _variant(config: type[Config]) -> str:
    """The key by which a class is chosen among several, such as "kind: wikipedia"."""
    for name, field in config.model_fields.items():
        if name in ("kind", "architecture") and get_origin(field.annotation) is Literal:
            return f"{name}: {get_args(field.annotation)[0]}"
    return ""


def _plain(text: str) -> str:
    """A docstring as one line for each paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph)


def _prefixes(path: str) -> list[str]:
    """extract.sources[].files -> extract, extract.sources[], extract.sources[].files"""
    parts = path.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _matches(key: str, path: str) -> bool:
    """Whether a key is this path; for [] it may have a number, nothing, or, before another key, an entry's name."""
    pattern = re.escape(path).replace(re.escape("[]."), r"(\[\]|\.[^.]+)?\.").replace(re.escape("[]"), r"(\[\]|\.\d+)?")
    return re.fullmatch(pattern, key) is not None


def main(folder: str) -> None:
    """Write the pages of the reference into a folder."""
    for name, page in (("configuration.md", configuration_markdown()), ("cluster.md", cluster_markdown())):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
