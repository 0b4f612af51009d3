import os
import subprocess
import sys
from pathlib import Path

from tests.paths import REPOSITORY

_SESSION = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.signals import keyboard_interrupt_on
with keyboard_interrupt_on(signal.SIGTERM), ray_session(num_cpus=1):
    import ray
    print(ray.cluster_resources()["CPU"], ray.get(ray.remote(lambda: __import__("cloze.pipeline").__name__).remote()))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_local_session_needs_no_home_finds_the_package_and_is_interrupted_by_sigterm(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", _SESSION, str(REPOSITORY)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0", "cloze", "interrupted"]
    assert list(tmp_path.iterdir()) == []
