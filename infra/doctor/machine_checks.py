"""What a machine has -> what it lacks for Cloze, and the fix. The same checks for this machine and for nodes.

This machine may lack packages: it imports the standard library only.
"""

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires

from cloze.infra.doctor.check import Check, missing, ok, warning
from cloze.infra.doctor.machine_facts import SHARED_MEMORY, Disk, MachineFacts
from cloze.infra.package_versions import PACKAGES, differences, pinned_versions

_PYTHONS = ("3.11", "3.12")  # requires-python in pyproject.toml
_MIN_FREE = 10**9  # the quickstart writes a few hundred megabytes
_SPILLING_STOPS = 0.95  # of a disk: Ray's local_fs_capacity_threshold
_OBJECT_STORE = 0.3  # of the memory: Ray's default, if shared memory has room for it
_MEMORY_PER_CPU = 10**9  # a worker of a data stage needs about 0.5 GB, Ray's own processes about 1 GB together
_RAY_MEMORY = 10**9
_MIN_OPEN_FILES = 8192  # what Ray recommends
_BF16_CAPABILITY = 8.0
#: CUDA's major version -> the oldest driver that runs it (NVIDIA's CUDA Toolkit release notes, table 3).
_MIN_DRIVERS = {"11": 450, "12": 525, "13": 580}


def machine_checks(facts: MachineFacts) -> Iterator[Check]:
    """Returns a check of everything that runs need on each machine."""
    yield _python(facts.versions["python"])
    yield _packages(facts.versions)
    yield _build_tools(facts)
    yield _memory(facts)
    yield disk_space(facts.temporary, "temporary files", "set TMPDIR to a folder on another disk", spills=True)
    yield _shared_memory(facts)
    yield _open_files(facts.open_files)
    yield _encoding(facts.encoding)
    yield _home(facts.home_error)
    yield gpus(facts)


def _python(version: str) -> Check:
    if version.rpartition(".")[0] in _PYTHONS:
        return ok("python", version)
    return missing("python", f"{version} is not supported", f"use Python {' or '.join(_PYTHONS)}")


def _packages(versions: Mapping[str, str]) -> Check:
    """Whether all packages are there, in versions that Cloze can use, and in those that it is tested with."""
    lacking = [package for package in PACKAGES if package not in versions]
    if wrong := [f"{package} is missing" for package in lacking] or _out_of_range(versions):
        return missing(
            "packages", _listed(wrong), "install Cloze's packages, in a clone: pip install -c constraints.txt -e ."
        )
    pinned = pinned_versions()
    if other := differences(pinned, versions):
        return warning(
            "packages", _listed(other), "the tested versions are: pip install -c constraints.txt -e ., in a clone"
        )
    return ok(
        "packages", f"{len(PACKAGES)}, " + ("as in constraints.txt" if pinned else "in versions that Cloze can use")
    )


def _out_of_range(versions: Mapping[str, str]) -> list[str]:
    """The packages whose version is outside the range in pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        ranges = [Requirement(text) for text in requires("cloze") or ()]
    except PackageNotFoundError:  # run from a clone without installation
        return []
    needed = {need.name.lower(): need.specifier for need in ranges if not need.marker}
    return [
        f"{package} {version} is not {needed[package]}"
        for package, version in versions.items()
        if package in needed and not needed[package].contains(version, prereleases=True)
    ]


def _listed(phrases: list[str]) -> str:
    return ", ".join(phrases[:5]) + (f" and {len(phrases) - 5} more" if len(phrases) > 5 else "")


def _build_tools(facts: MachineFacts) -> Check:
    if not facts.lacks:
        return ok("build tools", "C and C++ compiler, ninja, Python's headers")
    if facts.gpus and {"C compiler", "Python.h"} & set(facts.lacks):
        lost = "training runs uncompiled and slower, as Triton cannot build its launcher"
    else:
        lost = "extensions of DeepSpeed and torch.compile on a CPU cannot be built"
    return warning(
        "build tools", f"no {', no '.join(facts.lacks)}: {lost}", "apt-get install g++ ninja-build python3-dev"
    )


def _memory(facts: MachineFacts) -> Check:
    has = f"{_gigabytes(facts.memory)} for {facts.cpus} CPUs"
    if facts.memory < facts.cpus * _MEMORY_PER_CPU + _RAY_MEMORY:
        room = max(1, (facts.memory - _RAY_MEMORY) // _MEMORY_PER_CPU)
        fix = f"use fewer CPUs: taskset -c 0-{room - 1} cloze ..., or on a node ray start --num-cpus={room}"
        return warning("memory", f"{has}: less than 1 GB each and 1 GB for Ray", fix)
    return ok("memory", has)


def disk_space(disk: Disk, check: str, fix: str, *, spills: bool = False) -> Check:
    """Returns whether a file system has room. `spills`: Ray writes objects there that do not fit into memory."""
    has = f"{disk.path} has {_gigabytes(disk.free)} free of {_gigabytes(disk.size)}"
    if disk.free < _MIN_FREE:
        return missing(check, has, f"free some, or {fix}")
    if spills and disk.free < (1 - _SPILLING_STOPS) * disk.size:
        return warning(check, f"{has}: Ray spills no objects above {_SPILLING_STOPS:.0%}", f"free some, or {fix}")
    return ok(check, has)


def _shared_memory(facts: MachineFacts) -> Check:
    disk, check = facts.shared_memory, "shared memory"
    fix = f"docker run --shm-size=8g; on Kubernetes an emptyDir of medium Memory at {SHARED_MEMORY}"
    if disk is None:
        return warning(check, f"there is no {SHARED_MEMORY}: Ray keeps objects on the disk", fix)
    has = f"{disk.path} has {_gigabytes(disk.free)} free of {_gigabytes(disk.size)}"
    if disk.free < _OBJECT_STORE * facts.memory:
        wanted = _gigabytes(int(_OBJECT_STORE * facts.memory))
        return warning(check, f"{has}: Ray uses {wanted}, otherwise the slower {facts.temporary.path}", fix)
    return ok(check, has)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _open_files(limit: int) -> Check:
    if 0 <= limit < _MIN_OPEN_FILES:  # -1 is unlimited
        return warning(
            "open files", f"at most {limit}, Ray needs {_MIN_OPEN_FILES}", f"ulimit -Hn {_MIN_OPEN_FILES}, as root"
        )
    return ok("open files", "unlimited" if limit < 0 else f"up to {limit}")


def _encoding(encoding: str) -> Check:
    if encoding.lower().replace("-", "") == "utf8":
        return ok("encoding", "UTF-8")
    return missing("encoding", f"file names are {encoding}, not UTF-8", "export PYTHONUTF8=1, or LC_ALL=C.UTF-8")


def _home(error: str) -> Check:
    if not error:
        return ok("HOME", "is writable")
    fix = "set HOME to a folder that you own: Ray, Triton and DeepSpeed write there"
    return missing("HOME", f"no file can be created ({error})", fix)


def gpus(facts: MachineFacts) -> Check:
    """Returns whether torch can use the GPUs with the installed driver."""
    check = "GPUs"
    if facts.gpu_error:
        return missing(check, f"nvidia-smi fails: {facts.gpu_error}", "install NVIDIA's driver again, or restart")
    if not facts.gpus:
        return ok(check, "none: training uses the CPUs")
    gpu = facts.gpus[0]
    memory = f" with {_gigabytes(gpu.memory)}" if gpu.memory else ""
    has = f"{len(facts.gpus)} {gpu.name}{memory}, driver {gpu.driver}"
    if not facts.cuda:
        torch = facts.versions.get("torch", "")
        return missing(check, f"{has}, but torch {torch} is a build for CPUs", "pip install torch from PyPI")
    needed = _MIN_DRIVERS.get(facts.cuda.partition(".")[0], 0)
    if int(gpu.driver.partition(".")[0]) < needed:
        fix = f"install driver {needed} or later, or a torch for an older CUDA"
        return missing(check, f"{has}: too old for torch's CUDA {facts.cuda}", fix)
    if float(gpu.capability) < _BF16_CAPABILITY:
        return warning(check, f"{has}: no bf16", "set pretrain.precision=fp16, or leave it at auto")
    return ok(check, f"{has}, CUDA {facts.cuda}, bf16")
