"""What the README shows is what there is."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_configuration_shown_is_the_quickstarts() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert blocks[0] == (REPOSITORY / "configs/quickstart.yaml").read_text()


def test_every_command_shown_is_one() -> None:
    from cloze.infra.cli import _parser

    shown = set(re.findall(r"^    cloze (\w+) RUN", README, re.MULTILINE))
    choices = next(action.choices for action in _parser()._actions if action.choices)
    assert shown == set(choices)


_MARK = "CLOZE_TEST_OF_THE_README"
_PORTS = {6379: "Ray", 8265: "its dashboard", 10001: "its clients"}  # as `ray start` has them


@pytest.fixture
def bare_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables without an active environment; Ray's processes that were started with them are ended."""
    mark, folder = uuid.uuid4().hex, tempfile.mkdtemp(prefix="cloze-")  # a short path: Ray's sockets lie there
    yield {
        "HOME": str(tmp_path),
        "PATH": os.defpath,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_TMPDIR": folder,
        _MARK: mark,
    }
    while left := list(marked(mark)):  # what one of them starts meanwhile is found the next time
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)
    shutil.rmtree(folder)


def marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:  # another user's, or gone
            continue


def wait_until_free(ports: dict[int, str], seconds: float = 120.0) -> None:
    """Raises TimeoutError when something else, such as a Ray of this machine's, keeps one of them."""
    deadline = time.monotonic() + seconds
    for port, whose in ports.items():
        while not free(port):
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {port} is taken, which the README's cluster needs for {whose}: free it")
            time.sleep(1)


def free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True


@pytest.mark.slow
def test_the_cluster_shown_runs_a_job_with_no_environment_active_and_another_ray_at_work(
    tmp_path: Path, bare_environment: dict[str, str], ray_session: None
) -> None:
    [recipe] = re.findall(r"To try it here:\n\n((?:    .*\n)+)", README)
    assert recipe.rstrip().endswith(" --cluster configs/clusters/local.yaml")
    shown = f"{recipe.rstrip()} --until vocab vocab.size=500\n"  # as written, and less of it
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    wait_until_free(_PORTS)
    command = ["/bin/sh", "-e", "-c", shown]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare_environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vocab             done in" in done.stdout
    [vocabulary] = (tmp_path / "runs").glob("vocab/*/vocab.txt")
    assert len(vocabulary.read_text().splitlines()) == 500
