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
from functools import cache, partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.artifacts import repeated
from pipeline.config import Config
from pipeline.storage import Location

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
    """
    folder, number = artifact / f"{_PREFIX}{uuid.uuid4().hex[:12]}", 0
    _record(folder, number).write_text(_ourselves().model_dump_json())
    for other, last in _others(artifact, folder):
        if _end(other, last, _record(folder, number)) == "stopped" and _claim(other, last + 1):
            _remove(folder)
            folder, number = other, last + 1
            break
    own = _record(folder, number)
    try:
        with repeated(partial(_say, own, "working"), _BEAT):
            yield folder / _WORK
    except BaseException:
        _say(own, "stopped")
        raise
    _say(own, "finished")
    for other, last in _others(artifact, folder):
        if _end(other, last, own) and _claim(other, last + 1):
            _remove(other)
    _remove(folder)


def _say(own: Location, state: State) -> bool:
    with suppress(OSError):  # a full disk: without a sign of life another attempt has to wait, that is all
        own.write_text(_ourselves().model_copy(update={"state": state}).model_dump_json())
    return True


def _record(folder: Location, number: int) -> Location:
    return folder / f"owner-{number}.json"


def _claim(folder: Location, number: int) -> bool:
    """Become a dead attempt's folder's owner of that number; whether nobody else was faster."""
    with suppress(OSError):  # a store without conditional writes: the folder is left alone
        return _record(folder, number).create(_ourselves().model_dump_json().encode())
    return False


def _others(artifact: Location, own: Location) -> list[tuple[Location, int]]:
    """The folders of other attempts, and the number of each one's last owner."""
    found = []
    for folder in artifact.folders():
        if folder.name.startswith(_PREFIX) and folder != own:
            number = 0
            while _record(folder, number).is_file():
                number += 1
            if number:  # else it has just begun, or is just being removed
                found.append((folder, number - 1))
    return found


def _end(folder: Location, number: int, own: Location) -> State | None:
    """How a folder's owner ended: stopped, also by a kill, or finished with it; None while it is at work.

    Machines' clocks are not compared: `own` is a file that was just written there.
    """
    record = _record(folder, number)
    try:
        owner = _Owner.model_validate_json(record.read_bytes())
        silent = (own.info().mtime - record.info().mtime).total_seconds()
    except (FileNotFoundError, ValidationError, TypeError):  # it is just being removed
        return None
    ours = _ourselves()
    killed = owner.machine == ours.machine and owner.started != _started(owner.process)
    if owner.state == "working":
        return "stopped" if killed or silent > _SILENT else None
    return owner.state if owner.state == "stopped" or killed or silent > _SILENT else None


def _remove(folder: Location) -> None:
    """The owners go last: a folder without any is nobody's to take over."""
    (folder / _WORK).delete()
    folder.delete()


@cache
def _ourselves() -> _Owner:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    processes = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (a container counts its own)
    return _Owner(machine=f"{boot} {processes}", process=os.getpid(), started=_started(os.getpid()))


def _started(process: int) -> str:
    """When a process of this machine was started, in ticks since the machine was; empty when there is none."""
    try:
        said = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return said.rpartition(")")[2].split()[19]
