"""A key that a configuration does not have -> advice on the correct key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel


def advice(keys: Sequence[str | int], model: type[BaseModel], hints: Mapping[str, object]) -> str:
    """Returns the error message for the unknown key `keys[-1]`: its hint, the sections it belongs to, or a similar key.

    `model` is the whole configuration. `hints` maps keys that other programs use to advice.
    """
    *parents, key = map(str, keys)
    if key in hints:
        return f"unknown key; {hints[key]}"
    section = ".".join(parent for parent in parents if not parent.isdigit())
    sections: dict[str, list[str]] = {}  # key -> the sections that have it
    for path in key_paths(model):
        parent, _, name = path.rpartition(".")
        sections.setdefault(name, []).append(parent or "the top level")
    if (section or "the top level") in sections.get(key, []):
        return "is a key of another kind of entry; remove it or correct the kind"
    if key in sections:
        return f"is not a key of this section; it belongs to {' or '.join(sections[key])}"
    similar = difflib.get_close_matches(key, sorted(sections), n=1)
    return f"unknown key; did you mean {similar[0]}?" if similar else "unknown key; remove it or correct its name"


def key_paths(model: type[BaseModel]) -> list[str]:
    """Returns every key of a configuration and the keys it is nested in, without list indices: "sources.files"."""
    schema = model.model_json_schema()

    def paths(node: Mapping[str, object], prefix: str) -> Iterator[str]:
        match node:
            case {"$ref": str(reference)}:
                yield from paths(schema["$defs"][reference.rpartition("/")[2]], prefix)
            case {"properties": dict(properties)}:
                for name, value in properties.items():
                    yield prefix + name
                    yield from paths(value, f"{prefix}{name}.")
            case {"anyOf": list(options)} | {"oneOf": list(options)}:
                for option in options:
                    yield from paths(option, prefix)
            case {"items": dict(item)} | {"additionalProperties": dict(item)}:
                yield from paths(item, prefix)

    return list(dict.fromkeys(paths(schema, "")))
