import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster
import psutil
import pytest

from cloze.infra.workflow.history import home, open_history
from cloze.infra.workflow.run_process import end_orphans
from tests.conftest import free_port, wait_for_port
from tests.paths import REPOSITORY

_LAUNCH = """
mutation($p: ExecutionParams!) {
  launchPipelineExecution(executionParams: $p) { ... on LaunchRunSuccess { run { runId } } }
}
"""
_TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"

Ask = Callable[..., Any]
STATUS = dagster.DagsterRunStatus


@contextmanager
def dagster_dev(folder: Path) -> Iterator[Ask]:
    """Dagster's pages and daemon with the toy run, started as `python -m cloze.infra.workflow` does: a function that
    queries them with GraphQL. At the end all their processes are killed, as by a power failure."""
    port = free_port()

    def ask(query: str, **variables: object) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            (value,) = json.load(answer)["data"].values()
        return value

    with open_history() as instance:
        end_orphans(instance)
    command = [sys.executable, "-m", "dagster", "dev", "-m", "tests.infra.toy_definitions", "-p", str(port)]
    with subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True) as server:
        try:
            wait_for_port(port, seconds=240)
            yield ask
        finally:
            for process in processes(folder):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


def processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("TOY_FOLDER") == str(folder):
                found.append(process)
    return found


def launch(ask: Ask, job: str = "toy", assets: tuple[str, ...] = ()) -> str:
    selector: dict[str, Any] = {
        "repositoryLocationName": "tests.infra.toy_definitions",
        "repositoryName": "__repository__",
        "pipelineName": job,
    }
    if assets:
        selector["assetSelection"] = [{"path": ["toy", name]} for name in assets]
    return ask(_LAUNCH, p={"selector": selector, "runConfigData": {}, "mode": "default"})["run"]["runId"]


def run_of(run_id: str) -> dagster.DagsterRun:
    with open_history() as instance:
        run = instance.get_run_by_id(run_id)
    assert run
    return run


def wait_until(condition: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def retry_of(run_id: str) -> str | None:
    with open_history() as instance:
        return next((run.run_id for run in instance.get_runs() if run.parent_run_id == run_id), None)


@pytest.mark.campaign
def test_runs_wait_for_each_other_and_continue_after_a_crash_and_a_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TOY_FOLDER", "DAGSTER_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    hold, holding, kill = tmp_path / "hold", tmp_path / "holding-letters-a", tmp_path / "kill"
    (tmp_path / "source.txt").write_text("what letters reads")
    home()

    def ended(run_id: str) -> STATUS:
        return wait_until(lambda: (run := run_of(run_id)).is_finished and run.status)

    with dagster_dev(tmp_path) as ask:
        # Two runs of a root: the second, launched from the asset graph, waits for the first and for its retry.
        hold.touch()
        first, second = launch(ask), launch(ask, "__ASSET_JOB", ("letters", "words"))
        wait_until(holding.exists)
        assert (run_of(first).status, run_of(second).status) == (STATUS.STARTED, STATUS.QUEUED)
        kill.touch()
        hold.unlink()  # the next part is killed
        assert ended(first) == STATUS.FAILURE
        assert ended(wait_until(lambda: retry_of(first))) == STATUS.SUCCESS
        assert ended(second) == STATUS.SUCCESS
        # The page's button ends a run soon, and it is not retried.
        holding.unlink()
        shutil.rmtree(tmp_path / "root")
        hold.touch()
        third = launch(ask)
        wait_until(holding.exists)
        started = time.monotonic()
        assert ask(_TERMINATE, id=third) == {"__typename": "TerminateRunSuccess"}
        assert ended(third) == STATUS.CANCELED
        assert time.monotonic() - started < 30
        # A power failure.
        holding.unlink()
        fourth = launch(ask)
        wait_until(holding.exists)
    assert run_of(fourth).status == STATUS.STARTED and processes(tmp_path) == []
    hold.unlink()
    with dagster_dev(tmp_path):
        assert run_of(fourth).status == STATUS.FAILURE
        assert ended(wait_until(lambda: retry_of(fourth))) == STATUS.SUCCESS
        assert retry_of(third) is None
