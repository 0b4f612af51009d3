import json
import resource
import stat
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cloze.infra.doctor import machine_facts as facts_module
from cloze.infra.doctor.machine_checks import machine_checks
from cloze.infra.doctor.machine_facts import Disk, MachineFacts, machine_facts
from tests.infra.doctor.machines import facts_with, result, this_machine
from tests.infra.launch.test_ray_jobs import environment_without
from tests.test_full_disk import Disk as SmallDisk
from tests.test_full_disk import disk  # noqa: F401 (a fixture)

GPU = "NVIDIA H100 80GB HBM3, 81559, {driver}, {capability}"


def test_this_machine_lacks_nothing() -> None:
    checks = list(machine_checks(this_machine()))
    assert not [check for check in checks if check.state == "missing"]
    assert all(check.found and bool(check.fix) == (check.state != "ok") for check in checks)


def test_facts_survive_the_way_from_a_node() -> None:
    assert MachineFacts.from_json(json.loads(json.dumps(asdict(this_machine())))) == this_machine()


@pytest.mark.parametrize(("version", "state"), [("3.10.14", "missing"), ("3.11.0", "ok"), ("3.12.9", "ok")])
def test_python_must_be_a_supported_one(version: str, state: str) -> None:
    versions = {**this_machine().versions, "python": version}
    assert result("python", replace(this_machine(), versions=versions)).state == state


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    check = result("packages", facts_with(python=environment_without("tokenizers", tmp_path / "lacking")))
    assert (check.state, check.found) == ("missing", "tokenizers is missing")


@pytest.mark.parametrize(
    ("version", "state", "found"),
    [("1.0", "missing", "rich 1.0 is not >=14"), ("14.0.1", "warning", "rich 14.0.1 instead of ")],
)
def test_another_version_of_a_package_is_named(tmp_path: Path, version: str, state: str, found: str) -> None:
    metadata = tmp_path / f"rich-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: rich\nVersion: {version}\n")
    check = result("packages", facts_with(tmp_path))
    assert check.state == state and check.found.startswith(found)


def test_missing_build_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = result("build tools", facts_with(PATH=str(tmp_path)))
    assert check.state == "warning" and check.found.startswith("no C++ compiler, no C compiler, no ninja: ")
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    lacks = machine_facts().lacks
    assert lacks == ("Python.h",)
    with_gpu = replace(this_machine(), lacks=lacks, gpus=(facts_module.Gpu("H100", 1, "580.1", "9.0"),))
    assert "training runs uncompiled" in result("build tools", with_gpu).found


def test_a_containers_limit_counts_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(facts_module, "_CGROUP_LIMITS", (str(limit), str(tmp_path / "none")))
    limit.write_text("max\n")
    assert machine_facts().memory == this_machine().memory
    limit.write_text("2500000000\n")
    check = result("memory", replace(machine_facts(), cpus=4))
    assert (check.state, check.found) == ("warning", "2.5 GB for 4 CPUs: less than 1 GB each and 1 GB for Ray")
    assert "--num-cpus=1" in check.fix


def test_full_disks_are_named(disk: SmallDisk) -> None:  # noqa: F811
    disk.set_free_space(1 << 20)
    facts = facts_with(TMPDIR=str(disk.folder))
    check = result("temporary files", facts)
    assert check.state == "missing" and check.found.startswith(f"{disk.folder} has 0.0 GB free of ")
    shared = result("shared memory", replace(facts, shared_memory=facts.temporary))
    assert shared.state == "warning" and "otherwise the slower" in shared.found


def test_ray_needs_a_twentieth_of_the_disk() -> None:
    facts = replace(this_machine(), temporary=Disk("/tmp", 10**12, 40 * 10**9))
    assert result("temporary files", facts).state == "warning"
    facts = replace(facts, temporary=Disk("/tmp", 10**12, 60 * 10**9))
    assert result("temporary files", facts).state == "ok"


def test_a_machine_without_shared_memory_is_warned_of() -> None:
    assert result("shared memory", replace(this_machine(), shared_memory=None)).state == "warning"


def test_a_low_limit_of_open_files_is_named() -> None:
    low = facts_with(prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)))
    check = result("open files", low)
    assert (check.state, check.found) == ("warning", "at most 1000, Ray needs 8192")
    assert result("open files", replace(low, open_files=-1)).found == "unlimited"


def test_file_names_must_be_utf_8() -> None:
    facts = facts_with(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    check = result("encoding", facts)
    assert (check.state, check.found) == ("missing", "file names are ascii, not UTF-8")


def test_home_must_be_writable() -> None:
    check = result("HOME", facts_with(HOME="/proc"))
    assert check.state == "missing" and check.found.startswith("no file can be created (")


@pytest.mark.parametrize(
    ("driver", "capability", "cuda", "state", "found"),
    [
        ("580.65.06", "9.0", "'13.0'", "ok", "driver 580.65.06, CUDA 13.0, bf16"),
        ("535.54.03", "9.0", "'13.0'", "missing", "driver 535.54.03: too old for torch's CUDA 13.0"),
        ("535.54.03", "9.0", "'12.8'", "ok", "driver 535.54.03, CUDA 12.8, bf16"),
        ("580.65.06", "7.5", "'13.0'", "warning", "no bf16"),
        ("580.65.06", "9.0", "None", "missing", "is a build for CPUs"),
    ],
)
def test_the_driver_must_run_the_cuda_of_torch(
    tmp_path: Path, driver: str, capability: str, cuda: str, state: str, found: str
) -> None:
    smi = program(tmp_path, f"echo '{GPU.format(driver=driver, capability=capability)}'")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda}\n")
    facts = facts_with(tmp_path, PATH=str(smi))
    check = result("GPUs", facts)
    assert check.state == state and check.found.startswith("1 NVIDIA H100 80GB HBM3 with 85.5 GB, driver ")
    assert check.found.endswith(found)


def test_a_driver_that_fails_is_named(tmp_path: Path) -> None:
    smi = program(tmp_path, "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    check = result("GPUs", facts_with(PATH=str(smi)))
    assert check.state == "missing" and check.found.startswith("nvidia-smi fails: NVIDIA-SMI has failed because")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("No devices were found", "none: training uses the CPUs"),
        ("NVIDIA GB10, [N/A], 580.95.05, 12.1", "1 NVIDIA GB10, driver 580.95.05"),
    ],
)
def test_what_a_driver_without_figures_prints_is_no_error(tmp_path: Path, line: str, found: str) -> None:
    smi = program(tmp_path, f"echo '{line}'")
    assert result("GPUs", facts_with(PATH=str(smi))).found.startswith(found)


def program(folder: Path, line: str) -> Path:
    """A folder with a program nvidia-smi."""
    path = folder / "bin"
    path.mkdir()
    (path / "nvidia-smi").write_text(f"#!/bin/sh\n{line}\n")
    (path / "nvidia-smi").chmod(stat.S_IRWXU)
    return path
