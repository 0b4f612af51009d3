"""Jobs on a real Ray cluster, by the command line. In most tests a script runs in place of `cloze run`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloze.infra import named_runs
from tests.infra.launch.test_ray_jobs import started_head
from tests.paths import QUICKSTART, REPOSITORY

pytestmark = pytest.mark.slow

# Saves when it is stopped; the next run continues from there.
SAVES = """
[ -e "$FOLDER/saved" ] && exec echo continued
trap 'touch "$FOLDER/saved"; exit 143' TERM
echo started
n=0; while [ $((n += 1)) -lt 3000 ]; do sleep 0.1; done  # not indefinitely: a head that is killed leaves it
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a real `ray start --head` that requires the token `secret`."""
    with started_head(sys.executable, tmp_path_factory.mktemp("ray")) as address:
        yield address


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


def write_cluster(address: str, script: str, *lines: str) -> None:
    """The file cluster.yaml, on whose cluster the shell script runs in place of `cloze run`."""
    python = Path.cwd() / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = cloze.infra.cli ] || exec {sys.executable} "$@"\n{script}')
    python.chmod(0o755)
    keys = ["name: head", f"address: {address}", "shared_disk: true", f"python: {python}"]
    keys += [f"env_vars: {{FOLDER: {Path.cwd()}}}", *lines]
    Path("cluster.yaml").write_text("\n".join(keys))


def cloze(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "cloze.infra.cli", *arguments, "--cluster", "cluster.yaml"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN": "secret"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]", status: int) -> tuple[str, str]:
    """What the command has printed, once it has ended with that status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return out, err


def listed() -> list[dict[str, Any]]:
    return json.loads(ended(cloze("job", "list", "--json"), 0)[0])


def test_two_submissions_at_once_are_one_job_that_saves_when_stopped_and_continues(head: str) -> None:
    write_cluster(head, SAVES)
    submit = ("submit", str(QUICKSTART))
    both = [cloze(*submit, "--detach") for _ in range(2)]
    printed = [ended(one, 0) for one in both]
    assert printed[0][0] == printed[1][0]
    job = printed[0][0].strip()
    assert sorted(err for _, err in printed) == [f"{job} is running already; attached\n", f"submitted as {job}\n"]
    follower = cloze(*submit)
    assert follower.stderr and follower.stderr.readline() == f"{job} is running already; attached\n"
    [info] = [one for one in listed() if one["id"] == job]
    assert (info["run"], info["root"], info["state"]) == ("quickstart", f"{Path.cwd()}/runs", "running")
    _, err = ended(cloze("job", "stop", job, "--wait"), 0)
    assert err == f"{job} has been stopped; the same command continues from the finished parts\n"
    out, err = ended(follower, 130)
    assert "\nstarted\n" in out
    assert err == f"cloze: {job} was stopped; the same command continues from the finished parts\n"
    ended(cloze("job", "wait", job), 130)

    again = f"{job[:-1]}2"
    out, err = ended(cloze(*submit), 0)
    assert err == f"submitted as {again}\n"
    assert "continued" in out.splitlines()  # Ray may print its line about the job after that
    assert ended(cloze("job", "stop", again), 0)[1] == f"{again} has succeeded; there is nothing to stop\n"
    _, err = ended(cloze("job", "logs", job[:-3]), 2)
    assert err.startswith(f"cloze: {job[:-3]}: is not a job of the cluster head; did you mean ") and job in err


@pytest.mark.campaign
def test_beside_an_expired_attempt_the_running_one_is_attached(head: str) -> None:
    first_ends = '[ -e "$FOLDER/again" ] || { touch "$FOLDER/again"; exit 0; }\n'
    write_cluster(head, first_ends + SAVES, "ttl_seconds: 0")
    submit = ("submit", str(QUICKSTART), "--detach")
    first = ended(cloze(*submit), 0)[0].strip()
    ended(cloze("job", "wait", first), 0)
    second = f"{first[:-1]}2"
    assert ended(cloze(*submit), 0)[0] == f"{second}\n"
    assert [one["id"] for one in listed() if one["id"] in (first, second)] == [second]
    assert ended(cloze(*submit), 0) == (f"{second}\n", f"{second} is running already; attached\n")
    ended(cloze("job", "stop", second, "--wait"), 0)


@pytest.mark.campaign
def test_a_job_starts_again_after_a_bug_and_ends_at_its_deadline(head: str) -> None:
    bug = '[ -e "$FOLDER/again" ] || { touch "$FOLDER/again"; exit 1; }\n'
    notes_time = 'echo "$CLOZE_JOB_SUBMITTED" >> "$FOLDER/submitted"\n'
    write_cluster(head, notes_time + bug + SAVES, "deadline_seconds: 10", "retries: 1")
    out, err = ended(cloze("submit", str(QUICKSTART)), 143)
    assert out.splitlines()[-4:] == [
        "cloze: the run ended with exit status 1; attempt 2 of 2 starts",
        "started",
        "cloze: the job's deadline of 10 seconds is reached; the run saves and ends",
        "cloze: the job's deadline of 10 seconds is over; the same command continues",
    ]
    first, second = Path("submitted").read_text().splitlines()
    assert first == second != ""
    job = err.split()[-1]
    [info] = [one for one in listed() if one["id"] == job]
    assert (info["state"], info["exit_status"]) == ("failed", 143)
    assert info["reason"] == "the job's deadline of 10 seconds is over; the same command continues"


@pytest.mark.campaign
def test_a_job_runs_with_files_of_another_folder_that_the_cluster_does_not_see(head: str, s3_bucket: str) -> None:
    books = Path("elsewhere/books")
    books.mkdir(parents=True)
    for number in range(3):
        (books / f"{number}.txt").write_text(f"Chapter {number}. The lamp was lit. Nobody came to see it. " * 40)
    names = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    variables = json.dumps({name: os.environ[name] for name in names})
    Path("elsewhere/cluster.yaml").write_text(
        f"name: head\naddress: {head}\npython: {sys.executable}\nenv_vars: {variables}\n"
        "runtime_env: {env_vars: {CLOZE_TEST: passed through}}\n"
    )
    root = f"{s3_bucket}/another-folder"
    os.chdir("elsewhere")
    sources = "extract.sources=[{name: books, kind: books, files: [books/*.txt]}]"
    _, err = ended(cloze("submit", str(QUICKSTART), sources, f"root={root}", "--until", "extract"), 0)
    assert err.startswith("submitted as quickstart-")
    stored = named_runs.read("quickstart", root=root)
    assert stored.extract and stored.extract.sources[0].files == [f"{Path.cwd()}/books/*.txt"]


@pytest.mark.campaign
def test_when_the_cluster_dies_the_error_is_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    with started_head(sys.executable, tmp_path_factory.mktemp("ray")) as address:
        write_cluster(address, SAVES)
        follower = cloze("submit", str(QUICKSTART))
        assert follower.stdout and "started\n" in follower.stdout
    _, err = ended(follower, 2)
    _, line = err.splitlines()
    assert line.startswith(f"cloze: cluster.yaml: lost the cluster at {address} (")
    assert line.endswith("); the same command continues when it is back")
    _, err = ended(cloze("job", "list"), 2)
    assert err.startswith(f"cloze: cluster.yaml: no Ray cluster answers at {address}; ")
