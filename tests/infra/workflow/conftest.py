"""The toy run, with an empty Dagster home."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster
import pytest

from cloze.infra.planner import Run
from cloze.infra.workflow.history import home
from tests.infra import toy_run as toy


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dagster home without a run: creating its databases takes a second, copying them no time."""
    folder = tmp_path_factory.mktemp("empty") / "dagster"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        with dagster.DagsterInstance.local_temp(str(home())) as instance:
            assert instance.get_runs() == []
    return folder


@pytest.fixture
def own_dagster(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Dagster home of this test."""
    folder = shutil.copytree(empty_home, tmp_path / "dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder


@pytest.fixture
def make(own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Creates the toy run; Dagster's home is empty."""
    (tmp_path / "source.txt").write_text("what letters reads")
    os.utime(tmp_path / "source.txt", (1e9, 1e9))  # long ago: a tick takes it
    return lambda **configs: toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt", **configs)
