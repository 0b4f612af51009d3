import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloze.infra.cli import main
from tests.infra import toy_run as toy
from tests.paths import QUICKSTART, REPOSITORY

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


def test_an_attempt_of_a_job_does_not_force_again_what_an_earlier_one_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source.txt").write_text("what letters reads")
    toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt")
    parts, crashes = list[str](), ["words b", "pages b"]

    def note(stage: str, letter: str) -> None:
        parts.append(f"{stage} {letter}")
        if crashes and crashes[0] == parts[-1]:
            raise RuntimeError(f"crash at {crashes.pop(0)}")

    def attempt(*force: str, submitted: str) -> tuple[int, list[str]]:
        monkeypatch.setenv("CLOZE_JOB", "toy-1")
        monkeypatch.setenv("CLOZE_JOB_SUBMITTED", submitted)
        parts.clear()
        options = [word for stage in force for word in ("--force", stage)]
        return main(["run", str(QUICKSTART), "name=toy", f"root={tmp_path}/root", *options]), list(parts)

    assert attempt(submitted="1")[0] == 0
    time.sleep(1.1)  # manifests have whole seconds
    monkeypatch.setattr(toy, "before_part", note)
    assert attempt("words", "pages", submitted="2") == (1, ["words a", "words b"])
    assert attempt("words", "pages", submitted="2") == (1, ["words b", "words c", "pages a", "pages b"])
    assert attempt("words", "pages", submitted="2") == (0, ["pages b", "pages c"])
    time.sleep(1.1)
    assert attempt("words", submitted="3") == (0, ["words a", "words b", "words c"])
