"""A Ray actor that runs Beam's SDK harness in a process next to it, on any node of the cluster."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from cloze.pipeline.core.beam_workers import DRAIN, RUN, recorded_work

_POLL_SECONDS = 0.2


class HarnessReport(NamedTuple):
    """The item that a harness works on, empty between items, and its exit status once it has exited.

    `error` is why it could not be started or watched, empty if it could.
    """

    work: str
    exit_status: int | None
    error: str = ""

    @property
    def loss(self) -> str:
        """How the harness was lost; empty while it runs."""
        if self.error:
            return f"as its process could not run ({self.error})"
        return "" if self.exit_status is None else f"with exit status {self.exit_status}"


class HarnessActor:
    """Runs harnesses, one after the other."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir(), f"cloze-beam-{uuid.uuid4().hex}")  # exists while a harness runs

    def is_ready(self) -> bool:
        """Returns once the actor has started."""
        return True

    def run(self, variables: dict[str, str]) -> Iterator[HarnessReport]:
        """Run a harness with these environment variables until it exits, or has finished its item after `drain`.

        Yields a report whenever it changes. One with an error is the last: the node's disk or memory is full.
        """
        last = HarnessReport("", None)
        try:
            with contextlib.closing(self._run(variables)) as reports:
                for last in reports:
                    yield last
        except OSError as error:
            yield last._replace(error=str(error))

    def _run(self, variables: dict[str, str]) -> Generator[HarnessReport]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        environment = {**os.environ, **variables, RUN: f"{os.getpid()}:{self._folder}"}
        command = [sys.executable, "-m", "cloze.pipeline.core.beam_workers"]
        process = subprocess.Popen(command, env=environment)
        last = HarnessReport("", None)
        try:
            while True:
                draining = (self._folder / DRAIN).exists()
                report = HarnessReport(exit_status=process.poll(), work=", ".join(recorded_work(self._folder)))
                if report != last:
                    yield report
                    last = report
                if report.exit_status is not None or (draining and not report.work):
                    return
                time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def drain(self) -> None:
        """Let the running harness finish its item, and start no other."""
        with contextlib.suppress(FileNotFoundError):  # it has just exited
            (self._folder / DRAIN).touch()
