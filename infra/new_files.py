"""The user's files of a run -> whether they have changed since the last look, and whether all of them are whole."""

import hashlib
import time
from collections.abc import Iterator, Mapping

from cloze.infra.fetch.download import PARTIAL
from cloze.infra.fetch.finished import is_whole
from cloze.infra.planner import Run
from cloze.pipeline.core.storage import FileStamp, Location, file_stamps


def stamps(run: Run) -> dict[str, FileStamp]:
    """The files that the run's stages read, by URI, with their stamps. Nothing is read of them.

    Raises MissingFile, and the errors of `storage.find_files`.
    """
    return {uri: stamp for pattern in _patterns(run) for uri, stamp in file_stamps(pattern).items()}


def digest(found: Mapping[str, FileStamp]) -> str:
    """Changes when a file is added, removed or changed."""
    lines = "\n".join(f"{uri} {stamp.version}" for uri, stamp in sorted(found.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def unfinished_folder(found: Mapping[str, FileStamp]) -> Location | None:
    """A folder of the files that `cloze fetch` has not finished, or of which only a part has been copied."""
    for folder in sorted({uri.rpartition("/")[0] for uri in found} - {""}):
        location = Location(folder)
        if is_whole(location) is False or (location / PARTIAL).files():
            return location
    return None


def just_changed(found: Mapping[str, FileStamp], seconds: float) -> Location | None:
    """A file that was changed less than so many seconds ago."""
    now = time.time()
    return next((Location(uri) for uri, stamp in found.items() if abs(now - stamp.changed) < seconds), None)


def _patterns(run: Run) -> Iterator[str]:
    patterns = dict.fromkeys(
        pattern
        for stage in run.unresolved_stages
        for files in stage.sources.values()
        if not files.path.mark.files_in
        for pattern in files.path.patterns
    )
    return iter(patterns)
