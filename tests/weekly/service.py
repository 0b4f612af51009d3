"""Dagster's pages and daemon for the weekly campaign: started, asked, killed and started again, as systemd does."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster

from cloze.infra.workflow.run_process import process_of
from cloze.pipeline.core.processes import has_ended
from tests.conftest import free_port
from tests.paths import REPOSITORY
from tests.weekly.corpus import NAME

_SELECTOR = {"repositoryLocationName": "cloze.infra.workflow", "repositoryName": "__repository__"}
#: Schedule or sensor: its name, and the queries that start it, find the id of its state, and stop it.
_QUERIES = {
    "schedule": (
        {"scheduleName": f"{NAME}_schedule"},
        "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename } }",
        "query($s: ScheduleSelector!) { scheduleOrError(scheduleSelector: $s) { ... on Schedule "
        "{ state: scheduleState { id } } } }",
        "mutation($id: String!) { stopRunningSchedule(id: $id) { __typename } }",
    ),
    "sensor": (
        {"sensorName": f"{NAME}_new_files"},
        "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
        "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor "
        "{ state: sensorState { id } } } }",
        "mutation($id: String!) { stopSensor(id: $id) { __typename } }",
    ),
}
_START_SECONDS = 180.0


class Service:
    """`python -m cloze.infra.workflow` with its own Dagster home and port, in a session of its own."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, free_port()
        self._home = folder / "dagster"
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        os.environ["DAGSTER_HOME"] = str(self._home)

    def start(self) -> None:
        environment = {**os.environ, "CLOZE_CONFIG": str(self._folder / "weekly.yaml"), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "cloze.infra.workflow", "-p", str(self._port)]
        with (self._folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.starts += 1
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError):
                if self._ask("{ version }"):
                    return
            time.sleep(1)
        raise TimeoutError("Dagster's pages did not start; see service.log")

    def keep_running(self) -> None:
        """Start it again if it has ended, as systemd does with Restart=always."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self.start()

    def switch_on(self, what: str) -> None:
        """The schedule, or the sensor for new files."""
        name, start, _, _ = _QUERIES[what]
        answer = self._ask(start, s={**_SELECTOR, **name})
        assert answer["__typename"] in ("ScheduleStateResult", "Sensor"), answer

    def switch_off(self, what: str) -> None:
        name, _, find, stop = _QUERIES[what]
        answer = self._ask(stop, id=self._ask(find, s={**_SELECTOR, **name})["state"]["id"])
        assert answer["__typename"].endswith("Result"), answer

    def runs(self, *statuses: dagster.DagsterRunStatus) -> list[dagster.RunRecord]:
        """The runs of the history, the newest first."""
        filters = dagster.RunsFilter(statuses=statuses or None)
        with dagster.DagsterInstance.get() as instance:
            return list(instance.get_run_records(filters))

    def kill(self, what: str) -> bool:
        """SIGKILL for the process of a run, for the daemon, or, as a power failure, for everything. Returns whether
        there was something to kill."""
        if what == "reboot":
            self.stop()
            self.start()
            return True
        pids = self._run_processes() if what == "run" else self._processes("dagster._daemon")
        for pid in pids[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def stop(self) -> None:
        """End all processes of this home."""
        while pids := self._processes(""):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process:
                self._process.wait()
            time.sleep(0.2)

    def _run_processes(self) -> list[int]:
        """The process of the run that is at work, once it has told it."""
        processes = [process_of(record.dagster_run) for record in self.runs(dagster.DagsterRunStatus.STARTED)]
        return [process.pid for process in processes if process and not has_ended(process)]

    def _processes(self, command: str) -> list[int]:
        """The processes with this home whose command line contains the text."""
        home, found = f"DAGSTER_HOME={self._home}".encode(), list[int]()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                is_ours = home in (folder / "environ").read_bytes().split(b"\0")
                if is_ours and command in (folder / "cmdline").read_text() and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return found

    def _ask(self, query: str, **variables: object) -> Any:
        """The value of the query's one field."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        address, headers = f"http://127.0.0.1:{self._port}/graphql", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:
            (value,) = json.load(answer)["data"].values()
        return value
