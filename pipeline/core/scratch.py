"""Scratch folders: each attempt at an artifact has one, and the next attempt takes over that of a stopped one.

Two runs of one configuration may write the same artifact at once. Each has its own folder scratch-<id>/ in it and never
reads or deletes the other's. An attempt that is stopped or killed leaves its folder behind; the next attempt takes it
over with the files in it. The last of a folder's owner-<n>.json names its owner. Each of these is created once, by a
conditional write, so that exactly one of several attempts takes a folder over. They are found by name, not listed. A
folder that a listing omits is not taken over, which only costs time.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import run_periodically

State = Literal["working", "stopped", "finished"]

_PREFIX = "scratch-"
_WORK = "work"
_HEARTBEAT = 60.0  # seconds
_HEARTBEAT_TIMEOUT = 3600.0  # seconds after which an attempt on another machine counts as killed


class _Owner(Config):
    """owner-<n>.json: the process that owns a folder, until there is a file with the next number."""

    machine: str
    process: int
    started: str  # when the process was started, in the machine's clock ticks: process numbers are used again
    state: State = "working"


@contextmanager
def scratch_folder(artifact: Location) -> Iterator[Location]:
    """Yields a folder for this attempt: a new one, or that of a stopped attempt with its content.

    The folder is removed after the block, with those of other attempts that have ended. If the block raises, it stays
    for the next attempt. Raises UserError, and removes the folder, if a file in it was missing: the next attempt would
    miss it, too.
    """
    folder, number = artifact / f"{_PREFIX}{uuid.uuid4().hex[:12]}", 0
    _owner_file(folder, number).write_text(_this_process().model_dump_json())
    for other, last in _other_folders(artifact, folder):
        if _final_state(other, last, _owner_file(folder, number)) == "stopped" and _take_over(
            other, last + 1, "working"
        ):
            _remove(folder)
            folder, number = other, last + 1
            break
    owner, successor = _owner_file(folder, number), _owner_file(folder, number + 1)
    try:
        with run_periodically(partial(_send_heartbeat, owner, successor), _HEARTBEAT):
            yield folder / _WORK
    except FileNotFoundError as error:
        if folder.path not in str(error):
            _write_state(owner, "stopped")
            raise
        with suppress(OSError):
            _finish(folder, owner, successor)
        raise UserError(
            f"{folder}: a file in it was deleted, by another run or by hand; run again ({error})"
        ) from error
    except BaseException:
        _write_state(owner, "stopped")
        raise
    for other, last in _other_folders(artifact, folder):
        if _final_state(other, last, owner) and _take_over(other, last + 1, "finished"):
            _remove(other)
    _finish(folder, owner, successor)


def delete_abandoned(artifact: Location) -> None:
    """Delete the folders of ended attempts from a finished artifact, as no next attempt does."""
    with suppress(OSError):  # a read-only folder
        if any(folder.name.startswith(_PREFIX) for folder in artifact.folders()):
            with scratch_folder(artifact):
                pass


def _send_heartbeat(owner: Location, successor: Location) -> bool:
    """Returns whether this process still owns the folder."""
    with suppress(OSError):
        if successor.is_file():
            return False
    _write_state(owner, "working")
    return True


def _finish(folder: Location, owner: Location, successor: Location) -> None:
    """Remove this attempt's folder, unless another attempt has taken it over."""
    _write_state(owner, "finished")
    if not successor.is_file():
        _remove(folder)


def _write_state(owner: Location, state: State) -> None:
    with suppress(OSError):  # a full disk: without heartbeats another attempt only has to wait
        owner.write_text(_this_process(state).model_dump_json())


def _owner_file(folder: Location, number: int) -> Location:
    return folder / f"owner-{number}.json"


def _take_over(folder: Location, number: int, state: State) -> bool:
    """Become the owner of that number. Returns False if another attempt was faster.

    A folder that is to be removed is "finished" from the start: if the removal is interrupted, nobody may use the rest.
    """
    with suppress(OSError):  # a store without conditional writes: the folder stays as it is
        return _owner_file(folder, number).write_if_absent(_this_process(state).model_dump_json().encode())
    return False


def _other_folders(artifact: Location, own: Location) -> list[tuple[Location, int]]:
    """Returns the folders of other attempts, with the number of each one's last owner; -1 if it has none."""
    folders = []
    for folder in artifact.folders():
        if folder.name.startswith(_PREFIX) and folder != own:
            number = 0
            while _owner_file(folder, number).is_file():
                number += 1
            folders.append((folder, number - 1))
    return folders


def _final_state(folder: Location, number: int, own: Location) -> State | None:
    """Returns the state in which a folder's owner ended ("stopped" if it was killed); None while it is working.

    A process of this machine is looked up: it may be suspended and send no heartbeats. Ages of heartbeats are measured
    against `own`, a file that was just written to the same store: clocks of machines may differ.
    """
    if number < 0:  # it has just begun or is being removed; or workers outlived its removal and wrote into it again
        return "finished" if (folder / _WORK).exists() else None
    owner_file, this_process = _owner_file(folder, number), _this_process()
    try:
        owner = _Owner.model_validate_json(owner_file.read_bytes())
        silence = (own.info().mtime - owner_file.info().mtime).total_seconds()
    except (FileNotFoundError, ValidationError, TypeError):  # it is just being removed
        return None
    if owner.machine == this_process.machine:
        ended = owner.started != _start_time(owner.process)
    else:
        ended = silence > _HEARTBEAT_TIMEOUT
    if owner.state == "working":
        return "stopped" if ended else None
    return owner.state if owner.state == "stopped" or ended else None


def _remove(folder: Location) -> None:
    """The owner files are deleted last: nobody can take over a folder that has none."""
    (folder / _WORK).delete()
    folder.delete()


def _this_process(state: State = "working") -> _Owner:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    processes = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (a container has its own process numbers)
    return _Owner(machine=f"{boot} {processes}", process=os.getpid(), started=_start_time(os.getpid()), state=state)


def _start_time(process: int) -> str:
    """Returns when a process of this machine was started, in ticks since boot; empty if it no longer runs."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended, even if its exit code was not collected
