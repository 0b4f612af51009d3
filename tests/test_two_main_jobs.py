"""Processes run the main job at the same time: one of them does the work of a stage, on a disk and on S3."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cloze.pipeline.core.storage import Location
from tests.paths import REPOSITORY
from tests.test_main_job import CLOZE, DATA_STAGES, STAGES, arguments, begun, digests, manifests, run

#: `cloze`, for which an owner without heartbeats for three seconds counts as killed.
_IMPATIENT = """
from cloze.infra.cli import command
from cloze.pipeline.core import leases
leases._TIMEOUT = 3.0
command()
"""
_REPEATS = int(os.environ.get("CLOZE_CAMPAIGN_REPEATS", "1"))  # of each stage on each store


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was alone."""
    root = tmp_path_factory.mktemp("alone")
    done = run(str(root))
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def prepare(alone: Path, folder: str) -> Callable[[str], str]:
    """Creates a root in which all stages before one are finished."""

    def create(stage: str) -> str:
        root = Location(f"{folder}/{stage}")
        for before in STAGES[: STAGES.index(stage)]:
            if root.local_path:
                shutil.copytree(alone / before, root.local_path / before)
            else:
                for file in Location(str(alone / before)).files():
                    (root / f"{before}{file.uri.removeprefix(f'{alone}/{before}')}").write_bytes(file.read_bytes())
        return root.uri

    return create


@pytest.mark.campaign
@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("repeat", range(_REPEATS))  # varies slowest: each repeat covers all stages
def test_two_runs_seconds_apart_do_the_work_once(
    alone: Path, prepare: Callable[[str], str], tmp_path: Path, stage: str, repeat: int
) -> None:
    root, seconds = prepare(stage), random.choice([0.0, random.uniform(0, 5)])
    print(f"started {seconds:.1f} s apart")
    run_together(root, stage, [0.0, seconds], tmp_path)
    assert_same_stage(root, alone, stage)


@pytest.mark.campaign
@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_three_runs_do_the_work_of_every_stage_once(alone: Path, prepare: Callable[[str], str], tmp_path: Path) -> None:
    root, pauses = prepare("extract"), [0.0, random.uniform(0, 5), random.uniform(0, 5)]
    print(f"started {pauses[1]:.1f} and {pauses[2]:.1f} s apart")
    run_together(root, "report", pauses, tmp_path)
    for stage in STAGES:
        assert_same_stage(root, alone, stage)


def run_together(root: str, until: str, pauses: list[float], tmp_path: Path) -> None:
    """Start a run after each pause. All must end with 0, and one of them must do the work of the last stage."""
    processes, logs = list[subprocess.Popen[bytes]](), list[Path]()
    for number, seconds in enumerate(pauses):
        time.sleep(seconds)
        logs.append(tmp_path / f"{number}.log")
        processes.append(start([*CLOZE, *arguments(root), "--until", until], logs[-1]))
    statuses = [process.wait(timeout=900) for process in processes]
    printed = [log.read_text() for log in logs]
    assert statuses == [0] * len(pauses), printed
    actions = re.findall(rf"^\[.*\] {until} +(run|continue|skip): ", "\n".join(printed), re.MULTILINE)
    assert sorted(actions) == ["run", *["skip"] * (len(pauses) - 1)], printed


def start(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True)


@pytest.mark.campaign
@pytest.mark.parametrize("folder", ["local"], indirect=True)
@pytest.mark.parametrize("stage", ["vocab", "examples-128", "pretrain"])
def test_an_owner_that_wakes_after_a_takeover_commits_nothing(
    alone: Path, prepare: Callable[[str], str], tmp_path: Path, stage: str
) -> None:
    """All its processes are suspended, or only the driver: then Ray's workers continue until another run takes over."""
    root, suspends_all = prepare(stage), random.random() < 0.5
    seconds = random.uniform(0, 2) if stage == "pretrain" else 0.0  # the others take less
    print(f"drew SIGSTOP of {'all processes' if suspends_all else 'the driver'} {seconds:.1f} s after the first file")
    send = os.killpg if suspends_all else os.kill
    command = [*arguments(root), "--until", stage]
    first = start([*CLOZE, *command], tmp_path / "first.log")
    try:
        while not begun(Location(root) / stage):
            assert first.poll() is None
            time.sleep(0.02)
        time.sleep(seconds)
        send(first.pid, signal.SIGSTOP)
        second = start([sys.executable, "-c", _IMPATIENT, *command], tmp_path / "second.log")
        assert second.wait(timeout=900) == 0, (tmp_path / "second.log").read_text()
        assert_same_stage(root, alone, stage)
        before = contents(root)
        send(first.pid, signal.SIGCONT)
        assert first.wait(timeout=120) == 2
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    err = (tmp_path / "first.log").read_text()
    last = err.splitlines()[-1]
    assert last.startswith(f"cloze: {root}/{stage}/") and "this run writes nothing more; run again" in last
    assert "Traceback" not in err and contents(root) == before


def contents(root: str) -> dict[str, bytes]:
    return {file.uri: file.read_bytes() for file in Location(root).files()}


def assert_same_stage(root: str, alone: Path, stage: str) -> None:
    """The digests of the data stages, of the checkpoint, and the scores. Metrics and the report have times."""
    stages = STAGES[: STAGES.index(stage) + 1]
    actual, expected = (manifests(folder, [stage])[stage] for folder in (root, str(alone)))
    assert all(len((Location(root) / one).folders()) == 1 for one in stages)
    assert not [file for file in (Location(root) / stage).files() if "/lease" in file.uri or "/scratch" in file.uri]
    if stage in DATA_STAGES:
        assert digests(actual) == digests(expected)
    elif stage == "pretrain":
        assert actual.facts["checkpoint"]["digest"] == expected.facts["checkpoint"]["digest"]
    elif stage == "finetune-authors":
        assert actual.facts["scores"] == expected.facts["scores"]
