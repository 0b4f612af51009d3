"""The process of a job: it starts `cloze run`, passes on a stop, ends it at a deadline and starts it again.

    python -m cloze.infra.launch.supervisor [--folder DIR] [--deadline-seconds N] [--retries N] [--root ROOT] -- COMMAND

A job of this machine has a folder, which receives process.json at the start and end.json at the end. On a Ray cluster
Ray records the job, and itself sends SIGTERM to all its processes when the job is stopped. On Kubernetes KubeRay starts
it again after every exit status but 0: an end that may not be repeated is recorded under the root (job_record.py), and
the exit status is then 0.
"""

import argparse
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cloze.infra.interrupts import descendants

PROCESS_FILE = "process.json"  # of the supervisor: pipeline/core/processes.py
END_FILE = "end.json"  # exit_status, stopped, started and ended of each attempt

STOP_SECONDS = 300  # from SIGTERM, at which a run saves, to SIGKILL
FINAL = (0, 2, 130, 143)  # exit statuses of `cloze run` after which another attempt would end the same way
_POLL = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Job:
    """The attempts of a job. It ends when it is `stopped` by a user, or `expired` at its deadline."""

    def __init__(self, command: Sequence[str], deadline_seconds: float, forward: bool):
        self._command, self._forward = command, forward
        self._seconds = deadline_seconds
        self._deadline = time.monotonic() + deadline_seconds
        self.stopped = self.expired = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal is closed

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def run(self) -> int:
        """Start the command once and wait for its end. Returns its exit status, with that of a shell for a signal."""
        kill_at = None
        with subprocess.Popen(self._command, preexec_fn=_end_with_parent) as child:
            while child.poll() is None:
                if kill_at is None and (self.stopped or time.monotonic() > self._deadline):
                    self._request_end(child)
                    kill_at = time.monotonic() + STOP_SECONDS
                elif kill_at is not None and time.monotonic() > kill_at:
                    _log(f"the run did not end within {STOP_SECONDS} seconds of SIGTERM; killed")
                    _kill(child.pid)
                    child.wait()
                time.sleep(_POLL)
        if child.returncode >= 0:
            return child.returncode
        if not self.stopped and not self.expired:
            _log(f"the run was killed by {signal.Signals(-child.returncode).name}")
        return 128 - child.returncode

    def _request_end(self, child: "subprocess.Popen[bytes]") -> None:
        if not self.stopped:
            self.expired = True
            _log(f"the job's deadline of {self._seconds:g} seconds is reached; the run saves and ends")
        if self.expired or self._forward:
            child.send_signal(signal.SIGTERM)

    def may_retry(self, status: int) -> bool:
        """Whether another attempt may succeed: after a bug, a hardware fault or a kill, not after a user's error."""
        return not self.stopped and not self.expired and status not in FINAL


def supervise(
    command: Sequence[str], folder: Path | None, deadline_seconds: float, retries: int, root: str | None
) -> int:
    """Run the command until it succeeds or may not be repeated. Returns the last exit status; with a root, 0 if no
    attempt is to follow.
    """
    job = _Job(command, deadline_seconds, forward=folder is not None)
    if folder:
        from cloze.pipeline.core.processes import this_process  # a job on Ray does not need it

        _leave_parent()  # after the import: where packages are missing, `cloze submit` sees that this process fails
        _write(folder / PROCESS_FILE, this_process().model_dump_json())
    attempts: list[dict[str, object]] = []
    while True:
        started = _now()
        status = job.run()
        attempts.append({"started": started, "ended": _now(), "exit_status": status})
        if len(attempts) > retries or not job.may_retry(status):
            break
        _log(f"the run ended with exit status {status}; attempt {len(attempts) + 1} of {retries + 1} starts")
    if job.expired:
        _log(f"the job's deadline of {deadline_seconds:g} seconds is over; the same command continues")
    if folder:
        _write(folder / END_FILE, json.dumps({"exit_status": status, "stopped": job.stopped, "attempts": attempts}))
    if root and status in FINAL:
        from cloze.infra.job_record import record_end

        return 0 if record_end(root, status) else status
    return status


def arguments(
    folder: Path | None = None, deadline_seconds: float | None = None, retries: int = 0, root: str | None = None
) -> list[str]:
    """The arguments of Python that supervise the command after them."""
    options = ["-m", "cloze.infra.launch.supervisor"]
    options += ["--folder", str(folder)] if folder else []
    options += ["--deadline-seconds", str(deadline_seconds)] if deadline_seconds else []
    options += ["--retries", str(retries)] if retries else []
    options += ["--root", root] if root else []
    return [*options, "--"]


def _leave_parent() -> None:
    """Continue in a child whose parent has exited: an interrupted `cloze submit` kills the processes it has started."""
    if os.fork():
        os._exit(0)


def _end_with_parent() -> None:
    """In the child: receive SIGTERM, at which it saves, when the supervisor is killed, as nobody could stop it then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _kill(pid: int) -> None:
    for process in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _write(file: Path, text: str) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _log(line: str) -> None:
    print(f"cloze: {line}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a job's command; see the module's text.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--deadline-seconds", type=float, default=math.inf)
    parser.add_argument("--retries", type=int, default=0)
    parser.add_argument("--root")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return supervise(options.command, options.folder, options.deadline_seconds, options.retries, options.root)


if __name__ == "__main__":
    sys.exit(main())
