import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from cloze.infra.cli import main
from tests.infra.launch.test_ray_jobs import environment_without
from tests.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs/quickstart.yaml")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_machine_that_lacks_nothing_is_status_0_in_under_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    assert main(["doctor"]) == 0
    assert time.process_time() - started < 5
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "this machine"
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert not Path("runs").exists()


def test_what_is_missing_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--root", "/proc/runs"]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[:3] == ["missing", "root", "/proc:"]
    assert last.endswith("; set root= to a folder that you own")


def test_json_has_the_same_checks(capsys: pytest.CaptureFixture[str], s3_bucket: str) -> None:
    arguments = ["doctor", CONFIG, "root=s3://no-such-bucket/runs"]
    assert main(arguments) == 2
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    checks = json.loads(out)
    assert err == ""
    assert all(list(check) == ["where", "check", "state", "found", "fix"] for check in checks)
    assert [check["state"] for check in checks] == [line[0] for line in lines]
    assert [check["check"] for check in checks if check["state"] == "missing"] == ["bucket"]
    assert checks[-1]["where"] == "s3://no-such-bucket/runs"


def test_the_packages_that_a_machine_lacks_are_named(tmp_path: Path) -> None:
    python = environment_without("pyarrow", tmp_path / "lacking")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [python, "-m", "cloze.infra.cli", "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "  missing  packages           pyarrow is missing; install Cloze's packages, in a clone: " in done.stdout
    assert done.stdout.splitlines()[-1].split()[:3] == ["warning", "other", "checks"]


def test_sources_of_the_run_on_s3_are_checked(capsys: pytest.CaptureFixture[str], s3_bucket: str) -> None:
    pattern = f"{s3_bucket}/no-dumps/*.bz2"
    assert main(["doctor", CONFIG, f"extract.sources.enwiki.files=[{pattern}]", "--json"]) == 2
    last = json.loads(capsys.readouterr().out)[-1]
    assert (last["where"], last["check"], last["found"]) == ("S3", "source", f"{pattern}: no file matches")


def test_a_wrong_configuration_or_cluster_file_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, line in (
        (["gone.yaml"], "gone.yaml: cannot be read "),
        (["vocab.size=7"], "vocab.size=7: overrides belong to a run; "),
        (["--cluster", "gone.yaml"], "gone.yaml: cannot be read "),
    ):
        assert main(["doctor", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"cloze: {line}") and err.count("\n") == 1
