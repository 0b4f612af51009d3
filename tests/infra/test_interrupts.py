"""Commands that a signal interrupts end soon, whatever they are doing, with their line and their status."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloze.infra.interrupts import ends_soon_when_interrupted
from cloze.pipeline.core.signals import Ending, interrupt_with, own_ending
from tests.paths import REPOSITORY

_COMMAND = """
import subprocess, sys, threading, time
from cloze.infra import cli, interrupts

def work(_):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    threading.Thread(target=time.sleep, args=(600,)).start()
    print(child.pid, flush=True)
    {work}

cli._COMMANDS["plan"], interrupts._SECONDS = work, 1.0
cli.command()
"""
_WORK = {
    "waits": "time.sleep(600)",
    "ignores it": """
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass""",
    "is in a library's call": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",  # minutes
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("work", _WORK)
def test_an_interrupted_command_ends_soon_and_leaves_no_process(work: str, number: signal.Signals) -> None:
    code = _COMMAND.format(work=_WORK[work])
    command = [sys.executable, "-c", code, "plan", "configs/quickstart.yaml"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        child = int(process.stdout.readline())
        time.sleep(0.2)
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(30) == 128 + number
        assert time.monotonic() - sent < 10
        line = "cloze: stopped; the same command continues from the finished parts"
        assert process.stderr.read().strip() == line
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


_LOST_LEASE = """
import sys, time
from cloze.infra import cli, interrupts
from cloze.pipeline.core import leases
from cloze.pipeline.core.lease_files import Owner, lease_file
from cloze.pipeline.core.storage import Location

def work(_):
    artifact = Location(sys.argv.pop())
    with leases.hold_lease(artifact, print):
        other = Owner(token="other", attempt=2)
        while not lease_file(artifact).claim(other, lease_file(artifact).read()):  # after a heartbeat it fails
            pass
        while True:
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                pass

cli._COMMANDS["plan"], interrupts._SECONDS, leases._HEARTBEAT = work, 1.0, 0.1
cli.main(["plan", "configs/quickstart.yaml"])
"""


def test_a_command_that_has_lost_its_lease_and_does_not_unwind_in_time_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LOST_LEASE, str(tmp_path / "toy/0")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"cloze: {tmp_path}/toy/0: process 0 on an unknown machine took over, ")


def test_work_does_not_end_with_the_line_of_an_earlier_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_with(Ending("the earlier line", 2), signal.SIGINT)
        time.sleep(10)
    assert own_ending() == ("the earlier line", 2)
    with ends_soon_when_interrupted("the later line"):
        assert own_ending() is None


_RAY = """
import time
from cloze.infra import cli
from cloze.infra.ray_session import ray_session
import ray

def work(_):
    print("starting", flush=True)
    with ray_session(num_cpus=1):
        time.sleep(600)

cli._COMMANDS["plan"] = work
cli.command()
"""


def test_ray_that_is_interrupted_while_it_starts_prints_nothing() -> None:
    command = [sys.executable, "-c", _RAY, "plan", "configs/quickstart.yaml"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline()
        seconds = random.uniform(0, 4)
        print(f"interrupted after {seconds:.1f} s")
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "cloze: stopped; the same command continues from the finished parts"


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
