import os
import subprocess
import sys
from pathlib import Path

from tests.paths import REPOSITORY

_SESSION = """
import sys
sys.path.insert(0, sys.argv[1])
from cloze.infra.ray_session import ray_session
with ray_session(num_cpus=1):
    import ray
    print(ray.cluster_resources()["CPU"], ray.get(ray.remote(lambda: __import__("cloze.pipeline").__name__).remote()))
"""


def test_a_local_session_needs_no_home_and_its_workers_find_the_package(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", _SESSION, str(REPOSITORY)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0", "cloze"]
    assert list(tmp_path.iterdir()) == []
