"""The kit of tests/gpu: that a check which fails, dies or hangs ends only itself, and a dry run from packed wheels."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import pack
from tests.gpu.__main__ import install
from tests.gpu.kit import Check, Failed, Figures, Kit, checks
from tests.gpu.processes import Hosts
from tests.paths import REPOSITORY

ENVIRONMENT = REPOSITORY / "build/gpu-env"
REQUIREMENTS = REPOSITORY / "tests/gpu/requirements.txt"


def process_id(kit: Kit) -> Figures:
    return {"process": os.getpid()}


def fails(kit: Kit) -> Figures:
    raise Failed("2 is not 3")


def breaks(kit: Kit) -> Figures:
    raise ValueError("first line\n  ^^^^\nlast line")


def dies(kit: Kit) -> Figures:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(kit: Kit) -> Figures:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(kit.work, "child").write_text(str(child.pid))
    time.sleep(600)
    return {}


def check(name: str, seconds: float = 30.0) -> Check:
    return Check(name, 1, "plain", f"{__name__}:{name}", {}, seconds, 0)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit("cpu", False, str(tmp_path), str(tmp_path), str(tmp_path))


def test_a_check_that_fails_dies_or_hangs_ends_only_itself(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.gpu.processes.START_SECONDS", 3.0)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with Hosts(kit, environment) as hosts:
        found = {name: hosts.run(check(name), 3) for name in ("fails", "breaks", "dies", "hangs")}
        first, second = (hosts.run(check("process_id"), 30) for _ in range(2))
        after_failure = [hosts.run(check(name), 30) for name in ("fails", "process_id")][1]
    assert {result["status"] for result in found.values()} == {"FAIL"}
    assert found["fails"]["error"] == "Failed: 2 is not 3"
    assert found["breaks"]["error"] == "ValueError: first line ... last line"
    assert found["dies"]["error"] == "its process ended with status -9: see log.txt"
    assert found["hangs"]["error"] == "did not end in 6 s and was killed: see log.txt"
    deadline = time.monotonic() + 10
    while is_running((tmp_path / "child").read_text()):
        assert time.monotonic() < deadline, "what the hanging check has started still runs"
        time.sleep(0.1)
    assert first["status"] == "ok" and first == second == after_failure  # one process, also after a clean failure
    assert "ValueError: first line" in (tmp_path / "log.txt").read_text()


def is_running(process: str) -> bool:
    """Whether a process exists and is no zombie, which init has still to remove."""
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_check_has_its_own_name_and_all_parts_have_some() -> None:
    assert len({check.name for check in checks()}) == len(checks())
    assert {check.part for check in checks()} == {0, 1, 2, 3}


def test_packed_wheels_are_unpacked_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/packed-1-py3-none-any.whl", "w") as wheel:
        for name, mode in (("packed/program", 0o755), ("packed/__init__.py", 0o644)):
            item = zipfile.ZipInfo(name)
            item.external_attr = (0o100000 | mode) << 16
            wheel.writestr(item, "1")
    monkeypatch.setattr(pack, "FOLDER", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    site = install(tmp_path / "site")
    assert site and os.access(site / "packed/program", os.X_OK)
    assert (site / "packed/__init__.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.campaign
def test_the_pack_is_built_and_fits() -> None:
    """A test of its own, before the dry runs: together they may take longer than one test may."""
    bare_environment()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "tests.gpu.pack"], cwd=REPOSITORY, env=environment, check=True)
    assert pack.state() == ""


@pytest.mark.campaign
@pytest.mark.parametrize("parts", [(0, 1), (0, 2, 3)])
def test_all_checks_pass_from_packed_wheels_in_an_environment_like_the_bare_machines(
    parts: tuple[int, ...], tmp_path: Path
) -> None:
    dry = f"--device cpu --tiny --parts {','.join(map(str, parts))} --minutes 1:9,2:9,3:9"
    command = ["make", "gpu", f"GPU_PYTHON={bare_environment()}", f"OUT={tmp_path}", f"ARGS={dry}"]
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "DS_ACCELERATOR", "MAKELEVEL", "MAKEFLAGS"}  # make prints more inside make
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    kit = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    printed = kit.stdout
    summary: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert kit.returncode == 0, f"{printed}\n{(tmp_path / 'log.txt').read_text()[-20_000:]}"
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["pack"] == "current"
    expected = [check.name for check in checks() if check.part in parts]
    assert {name: result["status"] for name, result in summary["checks"].items()} == dict.fromkeys(expected, "ok")
    assert len(list(tmp_path.iterdir())) <= 8


def bare_environment() -> Path:
    """A Python 3.12 with the packages of tests/gpu/requirements.txt and none of the packed ones, built once."""
    python, marker = ENVIRONMENT / "bin/python", ENVIRONMENT / "requirements.txt"
    if marker.exists() and marker.read_text() == REQUIREMENTS.read_text():
        return python
    interpreter = python_312()
    if interpreter is None:
        pytest.skip("no Python 3.12")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([interpreter, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([*pip, "install", "-r", str(REQUIREMENTS)], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *pack.PACKAGES], check=True)
    shutil.copy(REQUIREMENTS, marker)
    return python


def python_312() -> str | None:
    """A Python 3.12 that starts: pyenv's python3.12 does not where another version is chosen."""
    home = Path(os.environ.get("PYENV_ROOT", f"{pwd.getpwuid(os.getuid()).pw_dir}/.pyenv"))
    installed = sorted(map(str, home.glob("versions/3.12*/bin/python3.12")))
    for python in filter(None, (shutil.which("python3.12"), *installed, sys.executable)):
        version = ["-c", "import sys, venv; print(*sys.version_info[:2])"]
        if subprocess.run([python, *version], capture_output=True, check=False).stdout == b"3 12\n":
            return python
    return None
