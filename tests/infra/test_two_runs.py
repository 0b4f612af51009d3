"""Runs of one configuration that are at work at the same time, each a process of its own, on a disk and on S3."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloze.pipeline.core.storage import Location
from tests.infra.toy_run import ToyConfig, toy_run
from tests.paths import QUICKSTART, REPOSITORY

pytestmark = pytest.mark.parametrize("folder", ["local", pytest.param("s3", marks=pytest.mark.campaign)], indirect=True)

PARTS = "bcdfgh"
_RUN = """
import socket, sys, time, pytest
from pathlib import Path
from tests.infra import toy_run
from cloze.infra.workflow.command import materialize  # takes seconds
from cloze.infra.cli import main
from cloze.pipeline.core import leases
root, source, log, timeout, seconds, gate_at, host, *arguments = sys.argv[1:]
if host:
    socket.gethostname = lambda: host
leases._TIMEOUT, leases._HEARTBEAT, leases._POLL = float(timeout), 0.2, 0.1
parts = []
def before_part(stage, letter):
    parts.append(letter)
    with open(log, "a") as file:
        file.write(f"{stage} {letter}\\n")
    time.sleep(float(seconds))
    while len(parts) == int(gate_at) and not Path(f"{log}-gate").exists():
        time.sleep(0.05)
toy_run.before_part = before_part
with pytest.MonkeyPatch.context() as patch:
    toy_run.toy_run(patch, root, source, letters=toy_run.ToyConfig(parts=PARTS))
    print("ready", flush=True)
    sys.stdin.readline()
    sys.exit(main(arguments))
""".replace("PARTS", repr(PARTS))


class Cloze:
    """Starts `cloze run` of the toy run in processes, on one root."""

    def __init__(self, root: str, tmp_path: Path, resources: ExitStack) -> None:
        self.root, self.log, self._tmp_path, self._resources = root, tmp_path / "log", tmp_path, resources
        self._processes: list[subprocess.Popen[str]] = []
        (tmp_path / "source.txt").write_text("what letters reads")
        self.log.write_text("")

    def prepare(
        self, *arguments: str, timeout: float = 60.0, seconds: float = 0.05, gate_at: int = 0, host: str = ""
    ) -> subprocess.Popen[str]:
        """A process that has imported everything; it starts when it reads a line.

        Without a heartbeat for `timeout` seconds another run counts as killed. A part takes `seconds`; the one with the
        number `gate_at`, from 1, until `open_gate` is called. `host` names a machine other than this one.
        """
        run = ["run", str(QUICKSTART), "name=toy", f"root={self.root}", *arguments]
        numbers = [str(number) for number in (timeout, seconds, gate_at)]
        settings = [self.root, str(self._tmp_path / "source.txt"), str(self.log), *numbers, host]
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *settings, *run],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._resources.enter_context((self._tmp_path / f"err-{len(self._processes)}").open("w")),
            text=True,
        )
        self._processes.append(process)
        self._resources.enter_context(process)
        self._resources.callback(process.kill)
        return process

    def parts(self) -> list[str]:
        """The parts that were begun, in their order."""
        return self.log.read_text().splitlines()

    def wait_for_parts(self, number: int) -> None:
        wait_until(lambda: len(self.parts()) >= number)

    def wait_until_it_waits(self, process: subprocess.Popen[str]) -> None:
        wait_until(lambda: "waits for process" in self.printed(process))

    def open_gate(self) -> None:
        Path(f"{self.log}-gate").touch()

    def printed(self, process: subprocess.Popen[str]) -> str:
        """What a process has printed to stderr."""
        return (self._tmp_path / f"err-{self._processes.index(process)}").read_text()

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Its status and what it has printed to stderr."""
        process.communicate(timeout=120)
        return process.returncode, self.printed(process)

    def files(self) -> dict[str, bytes]:
        """Every file of the outputs; of the manifests only that they exist, as they have dates."""
        found = [file for file in Location(self.root).files() if re.search("/(letters|words|pages)/", file.uri)]
        return {
            file.uri.removeprefix(self.root): b"" if file.name == "manifest.json" else file.read_bytes()
            for file in found
        }


def start(*processes: subprocess.Popen[str]) -> None:
    """Start prepared processes at the same time."""
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def cloze(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloze]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    with ExitStack() as resources:
        yield Cloze(f"{folder}/root", tmp_path, resources)


@pytest.fixture
def quiet(tmp_path: Path) -> dict[str, bytes]:
    """The files of a run that was alone."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as resources:
        (tmp_path / "quiet").mkdir()
        alone = Cloze(f"{tmp_path}/quiet/root", tmp_path / "quiet", resources)
        run = toy_run(patch, alone.root, tmp_path / "quiet/source.txt", letters=ToyConfig(parts=PARTS))
        for name in run.stages:
            run.execute(name)
        return alone.files()


def assert_same_files(cloze: Cloze, quiet: dict[str, bytes]) -> None:
    files = cloze.files()
    assert files.keys() == quiet.keys()
    assert [name for name in files if files[name] != quiet[name]] == []


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.campaign)])
def test_runs_that_start_together_do_the_work_once(cloze: Cloze, quiet: dict[str, bytes], number: int) -> None:
    processes = [cloze.prepare() for _ in range(number)]
    start(*processes)
    ended = [cloze.end(process) for process in processes]
    assert [status for status, _ in ended] == [0] * number, ended
    assert set(Counter(cloze.parts()).values()) == {1}
    assert_same_files(cloze, quiet)


def test_the_run_that_waits_continues_when_the_other_is_killed(cloze: Cloze, quiet: dict[str, bytes]) -> None:
    first, second = cloze.prepare(gate_at=3), cloze.prepare()
    start(first)
    cloze.wait_for_parts(3)
    start(second)
    cloze.wait_until_it_waits(second)
    first.kill()
    status, err = cloze.end(second)
    assert status == 0, err
    assert "letters  continue: was interrupted" in err
    assert [part for part, times in Counter(cloze.parts()).items() if times > 1] == ["letters d"]
    assert_same_files(cloze, quiet)


def test_a_run_that_is_killed_on_another_machine_is_replaced_when_its_heartbeats_stop(
    cloze: Cloze, quiet: dict[str, bytes]
) -> None:
    first, second = cloze.prepare(gate_at=3, host="another"), cloze.prepare(timeout=3)
    start(first)
    cloze.wait_for_parts(3)
    start(second)
    wait_until(lambda: f"waits for process {first.pid} on another" in cloze.printed(second))
    time.sleep(5)  # longer than the timeout: the other machine's heartbeats are received
    assert second.poll() is None and len(cloze.parts()) == 3
    first.kill()
    first.wait()
    killed = time.monotonic()
    cloze.wait_for_parts(4)
    assert time.monotonic() - killed > 2  # its process number says nothing here
    status, err = cloze.end(second)
    assert status == 0, err
    assert_same_files(cloze, quiet)


def test_a_run_that_wakes_after_a_takeover_writes_nothing_and_ends_in_one_line(
    cloze: Cloze, quiet: dict[str, bytes]
) -> None:
    first, second = cloze.prepare(seconds=0.3), cloze.prepare(timeout=1)
    start(first)
    cloze.wait_for_parts(3)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        start(second)
        status, err = cloze.end(second)
        assert status == 0, err
        before = stamps(cloze)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    status, err = cloze.end(first)
    assert status == 2, err
    last = err.splitlines()[-1]
    assert last.startswith(f"cloze: {cloze.root}/letters/") and "this run writes nothing more; run again" in last
    assert [line for line in err.splitlines() if line.startswith("cloze:") or "Traceback" in line] == [last]
    assert stamps(cloze) == before
    assert_same_files(cloze, quiet)


def stamps(cloze: Cloze) -> dict[str, tuple[int | None, bytes]]:
    """Every file below the root: when it was written, and its bytes."""
    return {file.uri: (file.info().mtime_ns, file.read_bytes()) for file in Location(cloze.root).files()}


def test_with_no_wait_a_run_ends_in_one_line(cloze: Cloze) -> None:
    first, second = cloze.prepare(gate_at=1), cloze.prepare("--no-wait")
    start(first)
    cloze.wait_for_parts(1)
    start(second)
    status, err = cloze.end(second)
    assert status == 2 and err.count("\n") == 1
    assert re.fullmatch(rf"cloze: .*/letters/\w+: process {first.pid} on \S+ \(since .*\) is writing it; .*\n", err)


def test_force_waits_for_the_other_run_and_then_does_the_work_again(cloze: Cloze, quiet: dict[str, bytes]) -> None:
    first, second = cloze.prepare(gate_at=1), cloze.prepare("--force", "letters")
    start(first)
    cloze.wait_for_parts(1)
    start(second)
    cloze.wait_until_it_waits(second)
    cloze.open_gate()
    for process in (first, second):
        status, err = cloze.end(process)
        assert status == 0, err
    counts = Counter(part for part in cloze.parts() if part.startswith("letters"))
    assert set(counts.values()) == {2}
    assert set(Counter(part for part in cloze.parts() if part.startswith("words")).values()) == {1}
    assert_same_files(cloze, quiet)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_work_to_the_one_that_waits_at_once(cloze: Cloze, number: int) -> None:
    first, second = cloze.prepare(gate_at=2), cloze.prepare(timeout=3600)
    start(first)
    cloze.wait_for_parts(2)
    start(second)
    cloze.wait_until_it_waits(second)
    os.kill(first.pid, number)
    assert cloze.end(first)[0] in (128 + signal.SIGINT, 128 + number)
    status, err = cloze.end(second)
    assert status == 0, err
