"""An exception -> its message of one line, if it is an error that the user can fix."""

import errno
import sqlite3
from collections.abc import Iterator

from cloze.pipeline.core.errors import UserError


def explain(error: BaseException | None) -> str | None:
    """The message of an error that a user can fix, however deep Beam or Ray has wrapped it; None for other errors."""
    for current in with_causes(error):
        if isinstance(current, UserError):
            return str(current)
        if isinstance(current, OSError) and (line := _explain_os_error(current)):
            return line
        if isinstance(current, sqlite3.OperationalError):
            return f"Dagster's history: {current}; set DAGSTER_HOME to a writable folder on a disk with free space"
    return None


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it wraps, each once."""
    seen: list[BaseException] = []
    pending = [error]
    while pending:
        current = pending.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        yield current
        pending += [current.__cause__, getattr(current, "cause", None), current.__context__]


def _explain_os_error(error: OSError) -> str | None:
    fixes = {
        errno.ENOSPC: "no space is left on the device; free some, or name a folder on another disk (root=, --to)",
        errno.EDQUOT: "the disk quota is used up; free some, or name a folder on another disk (root=, --to)",
        errno.EACCES: "no permission; change the folder's owner, or name one that you own (root=, --to)",
        errno.EPERM: "not permitted; change the folder's owner, or name one that you own (root=, --to)",
        errno.EROFS: "the file system is read-only; name a folder that can be written (root=, --to)",
        errno.ENOTDIR: "a part of that path is a file, not a folder; correct the path",
    }
    if error.errno in fixes:
        name = error.filename2 or error.filename
        return f"{name}: {fixes[error.errno]}" if name else fixes[error.errno]
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith("s3://"):
        return f"{error.filename}: is missing; run the same command again: what is finished is kept"
    text = str(error)  # in another process a StorageError may have become a plain OSError
    return text if error.errno is None and text.startswith("s3://") else None
