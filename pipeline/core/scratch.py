"""The scratch folder of an artifact: files that only the stage needs while it runs.

An attempt that is stopped or killed leaves the folder behind, and the next attempt continues with the files in it. Only
the owner of the artifact's lease deletes it. Two attempts, of which one has lost its lease, may write the same files:
they have the same content, and each is written atomically.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.leases import ArtifactInUse, hold_lease, refuse_to_wait
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location

_NAME = "scratch"  # earlier versions: scratch-<id>, one for each attempt


@contextmanager
def scratch_folder(out: Output) -> Iterator[Location]:
    """Yields the folder, with what an earlier attempt has left there. It is deleted after the block.

    If the block raises, the folder stays for the next attempt. Raises UserError, and deletes the folder, if a file in
    it was missing: the next attempt would miss it, too.
    """
    folder = out.location / _NAME
    try:
        yield folder
    except FileNotFoundError as error:
        if folder.path not in str(error):
            raise
        out.check_lease()
        with suppress(OSError):
            folder.delete()
        raise UserError(f"{folder}: a file in it was deleted; run again ({error})") from error
    out.check_lease()
    folder.delete()


def delete_scratch(artifact: Location) -> None:
    """Delete what ended attempts have left. Only the owner of the artifact's lease may call it."""
    for folder in artifact.folders():
        if folder.name.startswith(_NAME):
            folder.delete()


def delete_abandoned(artifact: Location) -> None:
    """Delete what ended attempts have left in a finished artifact: its scratch, unless a run works on it, and temporary
    files of writers that were killed over an hour ago.
    """
    with suppress(OSError, ArtifactInUse):  # a read-only folder
        artifact.delete_stale_writes()
        if any(folder.name.startswith(_NAME) for folder in artifact.folders()):
            with hold_lease(artifact, refuse_to_wait(artifact)):
                delete_scratch(artifact)
