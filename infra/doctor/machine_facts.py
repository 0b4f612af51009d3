"""What a machine has: packages, compilers, memory, disks, limits, GPUs.

It also runs on the nodes of a cluster, which may lack packages: it imports the standard library only.
"""

import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cloze.infra.package_versions import installed_versions

SHARED_MEMORY = "/dev/shm"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
_TOOLS = {"C++ compiler": ("CXX", ("c++", "g++", "clang++")), "C compiler": ("CC", ("gcc", "clang"))}
_GPU_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader,nounits"]
_SMI_SECONDS = 10


class Disk(NamedTuple):
    """A file system: its size and its free space in bytes."""

    path: str
    size: int
    free: int


class Gpu(NamedTuple):
    name: str
    memory: int  # bytes; 0 if it has none of its own
    driver: str  # such as 580.65.06
    capability: str  # such as 9.0


@dataclass(frozen=True)
class MachineFacts:
    """What a machine has. Plain JSON after `dataclasses.asdict`; `from_json` reads it."""

    versions: dict[str, str]
    cpus: int
    memory: int  # bytes that processes may use: the container's limit, if it has one
    temporary: Disk
    shared_memory: Disk | None
    open_files: int  # the hard limit, up to which Ray raises its own
    encoding: str  # of file names
    lacks: tuple[str, ...]  # of a C++ compiler, a C compiler, ninja and Python's headers
    home_error: str  # why HOME cannot be written; empty if it can
    cuda: str  # of torch's build, such as 13.0; empty for a build without
    gpus: tuple[Gpu, ...]
    gpu_error: str  # of nvidia-smi

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "MachineFacts":
        shared = plain["shared_memory"]
        return cls(
            **{
                **plain,
                "temporary": Disk(*plain["temporary"]),
                "shared_memory": shared and Disk(*shared),
                "lacks": tuple(plain["lacks"]),
                "gpus": tuple(Gpu(*gpu) for gpu in plain["gpus"]),
            }
        )


def machine_facts() -> MachineFacts:
    """Returns what this machine has."""
    gpus, gpu_error = _gpus()
    return MachineFacts(
        versions=installed_versions(),
        cpus=len(os.sched_getaffinity(0)),
        memory=_memory(),
        temporary=disk(tempfile.gettempdir()),
        shared_memory=disk(SHARED_MEMORY) if Path(SHARED_MEMORY).is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        encoding=sys.getfilesystemencoding(),
        lacks=tuple(_lacking_tools()),
        home_error=writing_error(Path.home()),
        cuda=_cuda_of_torch(),
        gpus=gpus,
        gpu_error=gpu_error,
    )


def disk(path: str | Path) -> Disk:
    usage = shutil.disk_usage(path)
    return Disk(str(path), usage.total, usage.free)


def writing_error(folder: Path) -> str:
    """Returns why no file can be created in the folder; empty if one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _memory() -> int:
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in map(Path, _CGROUP_LIMITS):
        with suppress(OSError, ValueError):  # "max"
            limits.append(int(file.read_text()))
    return min(limits)


def _lacking_tools() -> list[str]:
    """The build tools that this machine lacks, by the same rules as torch and Triton."""
    tools = [
        tool for tool, (variable, names) in _TOOLS.items() if not any(map(shutil.which, _commands(variable, names)))
    ]
    if not shutil.which("ninja"):
        tools.append("ninja")
    if not Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file():
        tools.append("Python.h")
    return tools


def _commands(variable: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return (os.environ[variable],) if variable in os.environ else names


def _cuda_of_torch() -> str:
    """The CUDA version of torch's build, from its file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if not spec or not spec.origin:
        return ""
    with suppress(OSError):
        text = Path(spec.origin).with_name("version.py").read_text()
        if match := re.search(r"^cuda\b[^=]*= *'([^']+)'", text, re.M):
            return match[1]
    return ""


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """Returns the GPUs that NVIDIA's driver lists, and the error if it fails; nothing without a driver."""
    if not shutil.which("nvidia-smi"):
        return (), ""
    try:
        done = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if done.returncode:
        return (), " ".join((done.stdout + done.stderr).split())[:200]
    lines = [line.strip() for line in done.stdout.splitlines() if "," in line]  # without "No devices were found"
    rows = [re.split(", *", line) for line in lines]
    return tuple(Gpu(name, _bytes(memory), driver, capability) for name, memory, driver, capability in rows), ""


def _bytes(mebibytes: str) -> int:
    """0 for a GPU without memory of its own, for which nvidia-smi prints [N/A]."""
    return int(mebibytes) << 20 if mebibytes.isdecimal() else 0
