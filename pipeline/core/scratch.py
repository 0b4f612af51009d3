"""An artifact -> scratch that one attempt at it has for itself, and leaves to the next where it is stopped.

Two runs of one configuration may be at work on one artifact at once: each has a folder scratch-<id>/ in it, and neither
reads or deletes the other's. An attempt that was stopped or killed leaves its folder behind; the next one takes it over
with all that is finished in it. Whose a folder is says the last of its owner-<n>.json. Each is written once, by a
conditional write, so that of several that would take a folder over one gets it, and is found by its name: a folder that
a listing leaves out is not taken over, which costs time and nothing else.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cloze.pipeline.core.artifacts import repeated
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

State = Literal["working", "stopped", "finished"]

_PREFIX = "scratch-"
_WORK = "work"
_BEAT = 60.0  # seconds between two signs of life
_SILENT = 3600.0  # seconds without one after which an attempt on another machine is dead


class _Owner(Config):
    """owner-<n>.json: whose a folder is, until there is one of the next number."""

    machine: str
    process: int
    started: str  # when the process was, in the machine's own count: process numbers are used again
    state: State = "working"


@contextmanager
def scratch(artifact: Location) -> Iterator[Location]:
    """A folder for this attempt: a new one, or a dead attempt's with what is in it.

    When the block ends it is removed, with those of other dead attempts; where the block raises, it stays for the next.
    Raises UserError, and removes it, where a file in it was not found: the next attempt would not find it either.
    """
    folder, number = artifact / f"{_PREFIX}{uuid.uuid4().hex[:12]}", 0
    _record(folder, number).write_text(_ourselves().model_dump_json())
    for other, last in _others(artifact, folder):
        if _end(other, last, _record(folder, number)) == "stopped" and _claim(other, last + 1, "working"):
            _remove(folder)
            folder, number = other, last + 1
            break
    own, heir = _record(folder, number), _record(folder, number + 1)
    try:
        with repeated(partial(_beat, own, heir), _BEAT):
            yield folder / _WORK
    except FileNotFoundError as error:
        if folder.path not in str(error):
            _say(own, "stopped")
            raise
        with suppress(OSError):
            _finish(folder, own, heir)
        raise UserError(
            f"{folder}: a file in it was taken away, by another run or by hand; run again ({error})"
        ) from error
    except BaseException:
        _say(own, "stopped")
        raise
    for other, last in _others(artifact, folder):
        if _end(other, last, own) and _claim(other, last + 1, "finished"):
            _remove(other)
    _finish(folder, own, heir)


def clear(artifact: Location) -> None:
    """Remove what dead attempts left in a finished artifact, which no attempt comes to any more."""
    with suppress(OSError):  # a folder that may only be read
        if any(folder.name.startswith(_PREFIX) for folder in artifact.folders()):
            with scratch(artifact):
                pass


def _beat(own: Location, heir: Location) -> bool:
    """Give a sign of life, as long as the folder is ours."""
    with suppress(OSError):
        if heir.is_file():
            return False
    _say(own, "working")
    return True


def _finish(folder: Location, own: Location, heir: Location) -> None:
    """Remove our folder, unless another attempt took us for dead and has it."""
    _say(own, "finished")
    if not heir.is_file():
        _remove(folder)


def _say(own: Location, state: State) -> None:
    with suppress(OSError):  # a full disk: without a sign of life another attempt has to wait, that is all
        own.write_text(_ourselves(state).model_dump_json())


def _record(folder: Location, number: int) -> Location:
    return folder / f"owner-{number}.json"


def _claim(folder: Location, number: int, state: State) -> bool:
    """Become a dead attempt's folder's owner of that number; whether nobody else was faster.

    One that is to be removed is "finished" from the start: of what a kill leaves of it nobody is to make use.
    """
    with suppress(OSError):  # a store without conditional writes: the folder is left alone
        return _record(folder, number).create(_ourselves(state).model_dump_json().encode())
    return False


def _others(artifact: Location, own: Location) -> list[tuple[Location, int]]:
    """The folders of other attempts, and the number of each one's last owner; -1 where there is none."""
    found = []
    for folder in artifact.folders():
        if folder.name.startswith(_PREFIX) and folder != own:
            number = 0
            while _record(folder, number).is_file():
                number += 1
            found.append((folder, number - 1))
    return found


def _end(folder: Location, number: int, own: Location) -> State | None:
    """How a folder's owner ended: stopped, also by a kill, or finished with it; None while it is at work.

    A process of this machine is looked up: it may be silent because it was suspended. Machines' clocks are not
    compared: `own` is a file that was just written there.
    """
    if number < 0:  # it has just begun or is being removed; or workers outlived its removal and wrote into it again
        return "finished" if (folder / _WORK).exists() else None
    record, ours = _record(folder, number), _ourselves()
    try:
        owner = _Owner.model_validate_json(record.read_bytes())
        silent = (own.info().mtime - record.info().mtime).total_seconds()
    except (FileNotFoundError, ValidationError, TypeError):  # it is just being removed
        return None
    dead = owner.started != _started(owner.process) if owner.machine == ours.machine else silent > _SILENT
    if owner.state == "working":
        return "stopped" if dead else None
    return owner.state if owner.state == "stopped" or dead else None


def _remove(folder: Location) -> None:
    """The owners go last: a folder without any is nobody's to take over."""
    (folder / _WORK).delete()
    folder.delete()


def _ourselves(state: State = "working") -> _Owner:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    processes = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (a container counts its own)
    return _Owner(machine=f"{boot} {processes}", process=os.getpid(), started=_started(os.getpid()), state=state)


def _started(process: int) -> str:
    """When a process of this machine was started, in ticks since the machine was; empty when it runs no more."""
    try:
        said = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = said.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is dead, though nobody has fetched its exit code
