"""The CPU image, built without a daemon and run as a pod runs it; ten minutes and 10 GB of disk (mark `image`)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

pytestmark = pytest.mark.image
FOLDER = Path(os.environ.get("IMAGE_FOLDER", REPOSITORY / "build/image"))


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    for tool in ("buildah", "mmdebstrap", "crun", "unshare"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    subprocess.run([REPOSITORY / "infra/docker/build-local", "cpu", FOLDER], check=True)


def run(*command: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
    options = ["--out", str(out)] if out else []
    run_local = [str(REPOSITORY / "infra/docker/run-local"), *options, *command]
    env = os.environ | {"IMAGE_FOLDER": str(FOLDER), "DEVICE": "cpu"}
    return subprocess.run(run_local, capture_output=True, text=True, env=env)


def test_the_user_cannot_write_to_the_image() -> None:
    ended = run("bash", "-c", "id -u; touch /cloze/a /opt/cloze/a /etc/a; echo x > /tmp/a && echo written")
    assert ended.stdout.split() == ["1000", "written"]
    assert ended.stderr.count("Read-only file system") == 3


def test_the_whole_quickstart_runs_in_the_image(tmp_path: Path) -> None:
    quickstart = ["cloze", "run", "configs/quickstart.yaml", "root=/out"]

    def written() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*/manifest.json")}

    ended = run(*quickstart, out=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "quickstart.html").is_file()
    before = written()
    again = run(*quickstart, out=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(before) >= 10 and written() == before, "nothing to do"


def test_pip_and_its_settings_are_not_in_the_image() -> None:
    ended = run("bash", "-c", "ls -A /etc/pip.conf /etc/xdg/pip /opt/wheels /opt/pypi /opt/cloze/bin/pip; python -V")
    assert "Python 3.11" in ended.stdout
    assert not [line for line in ended.stdout.splitlines() if line.endswith((".conf", ".txt", ".whl", "/pip"))]
