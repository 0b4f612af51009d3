import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

# Where a job runs, neither Dagster nor anything that imports it may be needed.
_JOB = """
import sys, pytest
sys.modules["dagster"] = None
from cloze.infra.cli import main
from tests.infra import toy_run
root, source = sys.argv[1:]
with pytest.MonkeyPatch.context() as patch:
    toy_run.toy_run(patch, root, source)
    sys.exit(main(["run", str(toy_run.QUICKSTART), "name=toy", f"root={root}", "--until", "words"]))
"""


def test_a_job_runs_its_stages_without_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source.txt").write_text("what letters reads")
    for name, value in {"PYTHONPATH": REPOSITORY, "CLOZE_JOB": "toy-1", "DAGSTER_HOME": tmp_path / "home"}.items():
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, "-c", _JOB, tmp_path / "root", tmp_path / "source.txt"]
    job = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stderr
    lines = [line.partition("] ")[2].split(maxsplit=1) for line in job.stderr.splitlines()]
    assert [stage for stage, _ in lines] == ["letters", "letters", "words", "words"]
    assert lines[-1][1] == "done in 0 s: 2 letters; dropped 1 vowels"
    assert (tmp_path / "root/runs/toy.job.json").exists() and not (tmp_path / "home").exists()
