"""One Ray session for every test that needs one, and a HOME of the tests' own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray and Dagster write into HOME: give them one that goes away."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        yield home


@pytest.fixture(scope="session")
def ray_session(own_home: Path) -> Iterator[None]:
    """A local Ray of two CPUs, started once."""
    from infra.launch.local import ray_session as start

    with start(num_cpus=2):
        yield
        assert os.environ["HOME"] == str(own_home)
