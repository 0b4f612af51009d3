"""The user's files of a run -> whether they have changed since the last look, and whether all of them are whole."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping

from cloze.infra.fetch.download import PARTIAL
from cloze.infra.fetch.finished import is_whole
from cloze.infra.planner import Run
from cloze.pipeline.core.storage import Location, file_stamps
from cloze.pipeline.core.threads import map_in_threads


def stamps(run: Run) -> dict[str, str]:
    """The files that the run's stages read, by URI, with what changes with their content. Nothing is read of them.

    Raises MissingFile, and the errors of `storage.find_files`.
    """
    return {uri: stamp for pattern in _patterns(run) for uri, stamp in file_stamps(pattern).items()}


def digest(found: Mapping[str, str]) -> str:
    """Changes when a file is added, removed or changed."""
    return hashlib.sha256("\n".join(f"{uri} {stamp}" for uri, stamp in sorted(found.items())).encode()).hexdigest()[:16]


def unfinished_folder(found: Mapping[str, str]) -> Location | None:
    """A folder of the files that `cloze fetch` has not finished, or of which only a part has been copied."""
    for folder in sorted({uri.rpartition("/")[0] for uri in found} - {""}):
        location = Location(folder)
        if is_whole(location) is False or (location / PARTIAL).files():
            return location
    return None


def just_changed(found: Iterable[str], seconds: float) -> Location | None:
    """The file that was changed last, if that is less than so many seconds ago."""
    changes = [change for change in map_in_threads(_change, sorted(found)) if change]
    changed, uri = max(changes, default=(0.0, ""))
    return Location(uri) if abs(time.time() - changed) < seconds else None


def _change(uri: str) -> tuple[float, str] | None:
    """When a file was changed, in seconds since the epoch; None for one that was just deleted."""
    changed = Location(uri).info().mtime_ns
    return (changed / 1e9, uri) if changed else None


def _patterns(run: Run) -> Iterator[str]:
    patterns = dict.fromkeys(
        pattern
        for stage in run.unresolved_stages
        for files in stage.sources.values()
        if not files.path.mark.files_in
        for pattern in files.path.patterns
    )
    return iter(patterns)
