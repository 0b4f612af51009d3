"""<root>/runs/NAME.json: what the run of a name last finished -> its outputs, and why a stage runs again."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from cloze.infra.partitions import Partition
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Artifact, Manifest, read_manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import DamagedFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads

Inputs = Mapping[str, str | None]  # input name -> what it contributes to the fingerprint


class Finished(NamedTuple):
    """The output of a stage, and the partition of the run that finished it."""

    artifact: Artifact
    partition: Partition | None


class StageHistory:
    """The stages that the run of this name has finished, with the configuration and the inputs that they had.

    `partition` is that of the run whose stages it is to remember.
    """

    def __init__(self, root: Location, name: str, partition: Partition | None = None):
        self._root, self._file = root, root / "runs" / f"{name}.json"
        self._partition = partition

    def remember(self, stage: Stage, fingerprint: str, inputs: Inputs) -> None:
        """Write a finished stage, with which `difference` compares."""
        entry = {
            "fingerprint": fingerprint,
            "version": stage.version,
            "config": identity(stage.config),
            "inputs": inputs,
            **({"partition": self._partition.model_dump()} if self._partition else {}),
        }
        finished = self._read()
        if finished.get(stage.name) != entry:
            self._file.write_text(json.dumps({**finished, stage.name: entry}, indent=1))

    def outputs(self, stages: Iterable[Stage]) -> dict[str, Finished]:
        """Stage -> its output as it was last finished, on whatever machine."""
        finished = self._read()
        return {
            stage.name: Finished(
                Artifact(self._root / folder / entry["fingerprint"], folder, entry["fingerprint"]),
                Partition.model_validate(entry["partition"]) if "partition" in entry else None,
            )
            for stage in stages
            if (entry := finished.get(stage.name))
            for folder in [stage.folder or stage.name]
        }

    def difference(self, stage: Stage, inputs: Inputs) -> str:
        """The reason why a stage runs: what has changed since the run of this name last finished it."""
        before = self._read().get(stage.name)
        if before is None:
            earlier = self._earlier_version(stage)
            return "no output yet" if earlier is None else _version_change(earlier, stage)
        changes = _changed_keys(before["config"], json.loads(json.dumps(identity(stage.config))), stage.name)
        changes += [f"input {name} changed" for name, value in inputs.items() if before["inputs"].get(name) != value]
        changes += [f"input {name} was removed" for name in before["inputs"] if name not in inputs]
        if before["version"] != stage.version:
            changes.append(_version_change(before["version"], stage))
        return "; ".join(changes) or "its output was deleted"

    def _read(self) -> dict[str, Any]:
        """Stage -> its entry."""
        try:
            return json.loads(self._file.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):  # what is finished is in the manifests
            return {}

    def _earlier_version(self, stage: Stage) -> int | None:
        """The highest of the earlier versions of a stage that have finished an output under the root; None for none."""
        manifests = map_in_threads(_readable_manifest, (self._root / (stage.folder or stage.name)).folders())
        versions = [manifest.version for manifest in manifests if manifest]
        return max((version for version in versions if version < stage.version), default=None)


def _readable_manifest(location: Location) -> Manifest | None:
    with suppress(DamagedFile):
        return read_manifest(location)
    return None


def _version_change(before: int, stage: Stage) -> str:
    reason = f" ({stage.version_reason})" if stage.version_reason else ""
    return f"the stage's version changed: {before} -> {stage.version}{reason}"


def _changed_keys(before: Any, now: Any, path: str) -> list[str]:
    """Messages such as `vocab.size: 6000 -> 8000`, one for each key that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [change for key in keys for change in _changed_keys(before.get(key), now.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [change for i, (old, new) in pairs for change in _changed_keys(old, new, f"{path}.{i}")]
    return [] if before == now else [f"{path}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
