"""The processes that run checks: started when one is needed, killed with all their descendants when a check hangs."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.gpu.kit import Check, Kit

MARK = "CLOZE_GPU_CHECKS"  # environment variable that all processes of a host inherit
EXIT_SECONDS = 12.0  # for a host to end by itself: Ray stops its processes
START_SECONDS = 30.0  # in addition to a check's limit, for imports and Ray
RAY_LOG_BYTES = 200_000  # of Ray's logs that are kept after a failure
LOG_BYTES = 8_000_000  # of log.txt that are kept


class Hosts:
    """Runs one check at a time. A check shares the process of the one before, if both have the same host."""

    def __init__(self, kit: Kit, environment: dict[str, str]) -> None:
        self._kit, self._environment = kit, environment
        self._current: _Process | None = None
        self._name = ""
        Path(kit.out, "log.txt").write_bytes(b"")
        self._log = Path(kit.out, "log.txt").open("ab")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._log.close()
        file = Path(self._kit.out, "log.txt")
        file.write_bytes(file.read_bytes()[-LOG_BYTES:])

    def run(self, check: Check, seconds: float) -> dict[str, Any]:
        """The result of a check: status, and figures or error. After an unexpected error its process is replaced."""
        if self._current is None or self._name != check.host:
            self._end()
            self._current, self._name = _Process(self._kit, check.host, self._environment, self._log), check.host
        result = self._current.run(check, seconds)
        if result["status"] == "FAIL" and not result.pop("clean", False):  # else the process is as good as before
            if check.host == "ray":
                _keep_ray_logs(self._kit, check.name)
            self._end(kill="traceback" not in result)  # it is dead or hangs
        return result

    def _end(self, kill: bool = False) -> None:
        if self._current:
            self._current.end(kill)
            self._current = None


class _Process:
    def __init__(self, kit: Kit, host: str, environment: dict[str, str], log: Any) -> None:
        self._mark = uuid.uuid4().hex
        results, results_there = os.pipe()
        self._results = os.fdopen(results, "rb", buffering=0)
        self._received = b""
        self._fresh = True
        command = [sys.executable, "-m", "tests.gpu.host", kit.to_json(), host, str(results_there)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[results_there],
            env={**environment, MARK: self._mark},
            start_new_session=True,
        )
        os.close(results_there)

    def run(self, check: Check, seconds: float) -> dict[str, Any]:
        limit = seconds + START_SECONDS * self._fresh
        self._fresh = False
        try:
            assert self._process.stdin
            self._process.stdin.write(f"{json.dumps(check)}\n".encode())
            self._process.stdin.flush()
            answer = self._read_line(limit)
        except TimeoutError:
            return {"status": "FAIL", "error": f"did not end in {limit:.0f} s and was killed: see log.txt"}
        except (OSError, EOFError):
            return {"status": "FAIL", "error": f"its process ended with status {self._status()}: see log.txt"}
        found = json.loads(answer)
        return {"status": "ok" if found.pop("ok") else "FAIL", **found}

    def _read_line(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            ended = self._process.poll() is not None  # a process that it has forked may keep the pipe open
            ready, _, _ = select.select([self._results], [], [], 0.0 if ended else 1.0)
            data = self._results.read(65536) if ready else b""
            self._received += data
            if not data and (ready or ended):
                raise EOFError
            if not data and time.monotonic() > deadline:
                raise TimeoutError
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _status(self) -> int | None:
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def end(self, kill: bool) -> None:
        """End the process, at the end of its input by itself unless `kill`, and then all that it has started."""
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
        if not kill:
            self._status()
        for _ in range(10):
            for pid in _marked(self._mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process.poll() is not None and not _marked(self._mark):
                break
            time.sleep(0.3)
        self._results.close()


def _marked(mark: str) -> list[int]:
    """The processes whose environment has the mark: those that a host has started, and itself."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def _keep_ray_logs(kit: Kit, name: str) -> None:
    """Append the end of the newest Ray session's logs of workers and of Ray Train to ray.txt."""
    sessions = sorted(Path(kit.work).glob("**/session_2*"), key=lambda folder: folder.name)
    with Path(kit.out, "ray.txt").open("ab") as out:
        out.write(f"\n===== {name}\n".encode())
        if not sessions:
            return
        files = [*sessions[-1].glob("logs/worker-*.err"), *sessions[-1].glob("logs/raylet.err")]
        files += sessions[-1].glob("logs/train/*.log")
        newest = sorted((file for file in files if file.stat().st_size), key=lambda file: file.stat().st_mtime)[-6:]
        for file in newest:
            out.write(f"--- {file.name}\n".encode() + file.read_bytes()[-RAY_LOG_BYTES // 6 :])
