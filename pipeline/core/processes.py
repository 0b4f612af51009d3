"""Which process wrote a record, and whether it has ended: known only within a machine, and within a container."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from cloze.pipeline.core.config import Config


class Process(Config):
    """A process, as a record names it."""

    host: str = "an unknown machine"
    pid: int = 0
    machine: str = ""
    """The boot and the container's process numbers; empty where Linux does not name them."""
    started: str = ""
    """In clock ticks since the boot: process numbers are used again."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    host, machine = socket.gethostname(), ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (each container has its own process numbers)
        machine = f"{host} {boot} {numbers}"  # the host as well: copies of a virtual machine share the other two
    return Process(host=host, pid=os.getpid(), machine=machine, started=_start_time(os.getpid()) or "")


def has_ended(process: Process) -> bool:
    """Returns whether a process has ended for certain. False for one of another machine or container."""
    if not process.machine or process.machine != this_process().machine:
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs as another user
        return False
    started = _start_time(process.pid)
    return started is not None and started != process.started


def ended_with_boot(process: Process) -> bool:
    """Returns whether a process has ended or was of an earlier boot of this machine, which its host's name identifies.

    For records that only this machine's user reads. Machines that share a disk may have the same name: see `has_ended`.
    """
    here = this_process()
    boots = [of.machine.split()[1:2] for of in (process, here)]
    return has_ended(process) or (process.host == here.host and boots[0] != boots[1])


def _start_time(pid: int) -> str | None:
    """Returns when a process was started, in ticks since the boot; empty for a zombie; None if it cannot be read."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has just ended, or /proc hides it
        return None
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended, even if its exit code was not collected
