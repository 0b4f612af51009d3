import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cloze.infra.doctor.local import loopback, port, ray_token, root_folder, torch_gpus
from tests.conftest import free_port
from tests.test_full_disk import Disk, disk  # noqa: F401 (a fixture)


def test_a_machine_without_a_loopback_interface_is_noticed() -> None:
    assert loopback().state == "ok"
    code = "from cloze.infra.doctor.local import loopback; print(loopback())"
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespace can be created: {done.stderr.strip()}")
    assert "state='missing'" in done.stdout and "cannot connect to 127.0.0.1 (Network is unreachable)" in done.stdout


def test_the_program_that_uses_a_port_is_named() -> None:
    number = free_port()
    assert port(number, "Ray's dashboard", "ray/dashboard", "use another").state == "ok"
    with socket.create_server(("127.0.0.1", number)):
        used = port(number, "Ray's dashboard", "ray/dashboard", "use another")
        assert used.state == "warning" and used.fix == "end it, or use another"
        assert used.found.startswith(f"is used by process {os.getpid()} (")
        expected = port(number, "the tests", "python", "use another")
        assert (expected.state, expected.found) == ("ok", f"the tests (process {os.getpid()})")


def test_a_token_must_be_readable_by_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    file = tmp_path / "auth_token"
    assert ray_token(file).found.startswith("none: ")
    file.write_text("\n")
    assert (ray_token(file).state, ray_token(file).found) == ("missing", f"{file} is empty")
    file.write_text("secret")
    file.chmod(0o644)
    assert (ray_token(file).state, ray_token(file).fix) == ("warning", f"chmod 600 {file}")
    file.chmod(0o600)
    assert ray_token(file).state == "ok"
    assert ray_token(tmp_path).found == f"{tmp_path} cannot be read (Is a directory)"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert ray_token(tmp_path).found == "in RAY_AUTH_TOKEN"


def test_the_root_must_be_a_writable_folder_with_room(tmp_path: Path, disk: Disk) -> None:  # noqa: F811
    assert root_folder(tmp_path / "new" / "runs").state == "ok"
    (tmp_path / "file").touch()
    assert root_folder(tmp_path / "file" / "runs").found == f"{tmp_path}/file is a file"
    assert root_folder(Path("/proc/runs")).found.startswith("/proc: no file can be created (")
    disk.set_free_space(1 << 20)
    full = root_folder(disk.folder / "runs")
    assert full.state == "missing" and full.found.startswith(f"{disk.folder} has 0.0 GB free of ")


def test_gpus_that_torch_does_not_find_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert torch_gpus(2, 2).state == "ok"
    assert (torch_gpus(2, 0).state, torch_gpus(2, 0).found) == ("missing", "finds 0 of 2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (torch_gpus(2, 1).state, torch_gpus(2, 1).fix) == ("warning", "unset it to use all")
