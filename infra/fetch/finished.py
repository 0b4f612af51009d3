"""The folder that `cloze fetch wikipedia` writes to -> the dumps in it that are whole."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cloze.infra.fetch.download import MARKER
from cloze.infra.fetch.wikipedia import wiki_of
from cloze.pipeline.core.storage import Location

_DATE = re.compile(r"\d{8}")


class FinishedDump(NamedTuple):
    """A dump that is whole. `digest` is that of its marker, which has the digests of its files."""

    language: str
    date: str
    digest: str


def finished_dumps(to: Location, languages: Sequence[str]) -> list[FinishedDump]:
    """The finished dumps of these languages below `to`, by language and date."""
    return [dump for language in languages for dump in _of_language(to / wiki_of(language), language)]


def is_whole(folder: Location) -> bool | None:
    """Whether the folder has all files that its marker names, in their sizes; None for a folder without a marker."""
    marker = _marker(folder)
    return None if marker is None else _has_files(folder, marker)


def _of_language(folder: Location, language: str) -> Iterator[FinishedDump]:
    for dated in folder.folders():
        if not _DATE.fullmatch(dated.name):  # a copy, or a link such as latest
            continue
        marker = _marker(dated)
        if marker is not None and _has_files(dated, marker):
            yield FinishedDump(language, dated.name, hashlib.sha256(marker).hexdigest()[:16])


def _marker(folder: Location) -> bytes | None:
    try:
        return (folder / MARKER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _has_files(folder: Location, marker: bytes) -> bool:
    """A copy of a folder may bring the marker before the files."""
    try:
        files: list[dict[str, Any]] = json.loads(marker)["files"]
        expected = {file["name"]: file["bytes"] for file in files}
    except (ValueError, KeyError, TypeError):  # a marker that is being copied
        return False
    sizes = folder.sizes()
    return bool(expected) and all(sizes.get(name) == size for name, size in expected.items())
