"""Two processes run the main job from the same moment, or seconds apart: in every stage, on a disk and on S3."""

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloze.pipeline.core.storage import Location
from tests.paths import REPOSITORY
from tests.test_main_job import CLOZE, DATA_STAGES, STAGES, arguments, digests, manifests, run

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
    processes, logs = list[subprocess.Popen[bytes]](), [tmp_path / "first.log", tmp_path / "second.log"]
    for log in logs:
        with log.open("wb") as file:
            command = [*CLOZE, *arguments(root), "--until", stage]
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file))
        time.sleep(seconds)
    statuses = [process.wait(timeout=900) for process in processes]
    printed = [log.read_text() for log in logs]
    assert statuses == [0, 0], printed
    actions = re.findall(rf"^\[.*\] {stage} +(run|continue|skip): ", "\n".join(printed), re.MULTILINE)
    assert sorted(actions) == ["run", "skip"], printed
    assert_same_stage(root, alone, stage)


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
