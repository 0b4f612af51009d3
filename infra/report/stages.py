"""artifacts -> the stages as the page sees them: finished, half-way or not begun."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from pipeline import json_lines
from pipeline.artifacts import Artifact, FileRecord, Manifest, read_manifest
from pipeline.storage import Location

_FILES_SHOWN = 24
_SHA256 = 64  # hex digits; a fingerprint has fewer


@dataclass(frozen=True)
class StageView:
    """One stage of a run. `location` is None while an input is not known; `state` says in words how far it is.

    `after` names the stages it reads, where there is no manifest yet to say so.
    """

    name: str
    location: Location | None
    state: str
    after: tuple[str, ...] = ()

    @cached_property
    def manifest(self) -> Manifest | None:
        return read_manifest(self.location) if self.location else None

    @property
    def artifact(self) -> Artifact | None:
        if self.location is None or self.manifest is None:
            return None
        return Artifact(self.location, self.name, self.manifest.fingerprint)

    @cached_property
    def metrics(self) -> Sequence[Mapping[str, Any]]:
        """What training has measured so far, a row for each split and step; also while it runs."""
        return json_lines.read(self.location / "metrics.jsonl") if self.location else []

    @property
    def counts(self) -> Mapping[str, int]:
        return self.manifest.counts if self.manifest else {}

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.manifest.facts if self.manifest else {}

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config if self.manifest else {}

    @property
    def drops(self) -> list[tuple[str, int]]:
        """Reasons and rows, the largest first."""
        found = self.manifest.drops if self.manifest else {}
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))

    @property
    def configuration(self) -> str:
        return yaml.safe_dump(json.loads(json.dumps(self.config)), sort_keys=False, allow_unicode=True, width=100)

    @property
    def files(self) -> list[tuple[str, FileRecord]]:
        return list(self.manifest.files.items())[:_FILES_SHOWN] if self.manifest else []

    @property
    def more_files(self) -> int:
        return len(self.manifest.files) - len(self.files) if self.manifest else 0


@dataclass(frozen=True)
class Source:
    """A user's file behind a stage: its name and size where the run's record of sources still has them."""

    sha256: str
    name: str
    bytes: int | None


class Stages:
    """A run's stages by name, in order."""

    def __init__(self, views: list[StageView]) -> None:
        self.views = views
        self._by_name = {view.name: view for view in views}

    def __iter__(self) -> Iterator[StageView]:
        return iter(self.views)

    def get(self, name: str) -> StageView:
        """A stage that is not there reads as one that is not begun."""
        return self._by_name.get(name) or StageView(name, None, "not part of this run")

    def starting(self, prefix: str) -> list[StageView]:
        return [view for view in self.views if view.name.startswith(prefix)]

    @property
    def finished(self) -> list[StageView]:
        return [view for view in self.views if view.manifest]


def sources(stage: StageView, root: Location) -> dict[str, list[Source]]:
    """Name of an input -> the user's files in it; inputs made by stages are left out.

    A manifest has the files' digests; under <root>/sources lies how large they were and what they were called.
    """
    if stage.manifest is None:
        return {}
    known = {}
    for record in (root / "sources").files():
        entry = json.loads(record.read_bytes())
        known[entry["sha256"]] = (Location(entry["uri"]).name, int(entry["bytes"]))
    found: dict[str, list[Source]] = {}
    for key, value in stage.manifest.inputs.items():
        source, _, path = key.partition("/")
        name = path.rpartition("/")[2]
        if len(value) >= _SHA256 and key != "checkpoint":
            digest = value[:_SHA256]
            called, size = known.get(digest, (name or digest, None))
            found.setdefault(source, []).append(Source(digest, name or called, size))
    return found
