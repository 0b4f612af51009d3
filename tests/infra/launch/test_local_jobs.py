"""Jobs of this machine. The supervisor is the real one; in most tests a script runs in place of `cloze run`."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloze.infra.cli import main
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import JobInfo, JobRequest, JobState
from cloze.infra.launch.local_jobs import LocalJobs, jobs_folder
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.processes import Process
from tests.paths import QUICKSTART, REPOSITORY

Jobs = Callable[..., LocalJobs]
SAVES = "trap 'echo saved; exit 143' TERM; echo started; n=0; while [ $((n += 1)) -lt 3000 ]; do sleep 0.05; done"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOZE_HOME", str(tmp_path / "home"))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


@pytest.fixture
def jobs_of(tmp_path: Path) -> Jobs:
    """The jobs of this machine, where the shell script runs in place of `cloze run`."""

    def create(script: str, **keys: Any) -> LocalJobs:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$2" = cloze.infra.cli ] || exec {sys.executable} "$@"\n{script}\n')
        python.chmod(0o755)
        return LocalJobs(ClusterConfig(name="here", python=str(python), **keys))

    return create


def request(*overrides: str) -> JobRequest:
    return JobRequest(load(RunConfig, QUICKSTART, overrides), "vocab")


def ended(jobs: LocalJobs, job: str, seconds: float = 30) -> JobInfo:
    return waited(jobs, job, lambda info: info.state.is_terminal, seconds)


def waited(jobs: LocalJobs, job: str, condition: Callable[[JobInfo], bool], seconds: float = 30) -> JobInfo:
    deadline = time.monotonic() + seconds
    while not condition(info := jobs.info(job)):
        assert time.monotonic() < deadline, f"{info}\n{log(jobs, job)}"
        time.sleep(0.05)
    return info


def log(jobs: LocalJobs, job: str) -> str:
    return "".join(jobs.logs(job, follow=False))


def wait_for_log(jobs: LocalJobs, job: str, text: str) -> None:
    waited(jobs, job, lambda _: text in log(jobs, job))


def process_of(job: str) -> Process:
    return Process.model_validate_json((jobs_folder() / job / "process.json").read_bytes())


def test_a_job_runs_with_its_configuration_and_knows_its_id(jobs_of: Jobs) -> None:
    jobs = jobs_of('echo "$CLOZE_JOB on $CLOZE_JOB_CLUSTER: $*"; pwd')
    job, is_new = jobs.submit(request("pretrain.seed=7"))
    assert is_new and job.startswith("quickstart-") and job.endswith("-1")
    info = ended(jobs, job)
    assert (info.state, info.exit_status, info.reason) == (JobState.SUCCEEDED, 0, "")
    assert (info.run, info.root) == ("quickstart", f"{Path.cwd()}/runs")
    assert info.submitted and info.started and info.ended and info.submitted <= info.ended
    config = jobs_folder() / job / "run.yaml"
    called, folder = log(jobs, job).splitlines()
    assert called == f"{job} on here: -m cloze.infra.cli run {config} --until vocab"
    assert folder == str(Path.cwd())
    assert load(RunConfig, config).pretrain == request("pretrain.seed=7").config.pretrain


def test_all_attempts_of_a_job_know_when_it_was_submitted_and_another_job_was_at_another_time(jobs_of: Jobs) -> None:
    jobs, times = jobs_of("echo $CLOZE_JOB_SUBMITTED >> times; exit 1", retries=1), []
    for _ in range(2):
        job, _ = jobs.submit(request())
        ended(jobs, job)
        times.append(Path("times").read_text().split())
        Path("times").unlink()
    assert [len(set(one)) for one in times] == [1, 1] and [len(one) for one in times] == [2, 2]
    assert times[0] != times[1]


def test_of_two_submissions_at_once_one_attaches(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: jobs.submit(request()), range(2))
    assert first[0] == second[0]
    assert {first[1], second[1]} == {True, False}
    other, _ = jobs.submit(request("vocab.size=500"))
    assert [info.state for info in jobs.jobs()] == [JobState.RUNNING] * 2
    for job in (first[0], other):
        jobs.stop(job)
        ended(jobs, job)


def test_submitted_again_a_running_job_is_attached_and_one_that_has_ended_gets_the_next_number(jobs_of: Jobs) -> None:
    jobs = jobs_of("exit 0")
    job, _ = jobs.submit(request())
    ended(jobs, job)
    again, is_new = jobs.submit(request())
    assert (again, is_new) == (f"{job[:-1]}2", True)
    ended(jobs, again)
    assert [info.id for info in jobs.jobs()] == [again, job]


def test_a_submission_that_was_killed_before_the_job_was_recorded_does_not_block_the_next(jobs_of: Jobs) -> None:
    jobs = jobs_of("exit 0")
    job, _ = jobs.submit(request())
    ended(jobs, job)
    (jobs_folder() / f"{job[:-1]}2").mkdir()
    assert jobs.submit(request()) == (f"{job[:-1]}2", True)
    ended(jobs, f"{job[:-1]}2")


def test_a_file_that_describes_machines_but_not_where_they_are_starts_no_job(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("c.yaml").write_text("name: aws\nmax_gpus: 8\n")
    assert main(["submit", str(QUICKSTART), "--cluster", "c.yaml"]) == 2
    assert "c.yaml: max_gpus describes another cluster's machines" in capsys.readouterr().err
    assert not jobs_folder().exists()


def test_a_job_survives_its_terminal(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    pid, terminal = pty.fork()
    if pid == 0:
        os.write(1, jobs.submit(request())[0].encode())
        time.sleep(600)
        os._exit(0)
    job = os.read(terminal, 1000).decode().strip()
    wait_for_log(jobs, job, "started")
    os.close(terminal)  # the kernel sends SIGHUP to the terminal's session
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGHUP
    time.sleep(0.5)
    assert jobs.info(job).state is JobState.RUNNING
    jobs.stop(job)
    assert ended(jobs, job).state is JobState.STOPPED


def test_a_stopped_job_saves(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    job, _ = jobs.submit(request())
    wait_for_log(jobs, job, "started")
    jobs.stop(job)
    info = ended(jobs, job)
    assert (info.state, info.exit_status) == (JobState.STOPPED, 143)
    assert log(jobs, job) == "started\nsaved\n"
    jobs.stop(job)  # does nothing
    assert jobs.info(job) == info


def test_at_its_deadline_a_job_saves_and_has_failed(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES, deadline_seconds=1, retries=3)
    job, _ = jobs.submit(request())
    info = ended(jobs, job)
    assert (info.state, info.exit_status) == (JobState.FAILED, 143)
    assert info.reason == "the job's deadline of 1 seconds is over; the same command continues"
    assert "\nsaved\n" in log(jobs, job)


def test_a_run_that_does_not_end_is_killed() -> None:
    deaf = "trap '' TERM; echo started; while :; do sleep 0.05; done"
    program = "from cloze.infra.launch import supervisor; supervisor.STOP_SECONDS = 0.5; exit(supervisor.main())"
    command = [sys.executable, "-c", program, "--deadline-seconds", "2", "--"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, "sh", "-c", deaf], env=environment, capture_output=True, text=True, timeout=60)
    assert "the run did not end within 0.5 seconds of SIGTERM; killed" in done.stderr
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("ends", ["exit 1", "kill -9 $$"])
def test_after_a_bug_or_a_kill_a_job_starts_again(jobs_of: Jobs, ends: str) -> None:
    jobs = jobs_of(f"[ -e again ] || {{ touch again; {ends}; }}; echo works", retries=1)
    job, _ = jobs.submit(request())
    assert ended(jobs, job).state is JobState.SUCCEEDED
    assert "; attempt 2 of 2 starts\nworks\n" in log(jobs, job)
    attempts = json.loads((jobs_folder() / job / "end.json").read_text())["attempts"]
    assert [attempt["exit_status"] for attempt in attempts] == [1 if ends == "exit 1" else 137, 0]


@pytest.mark.parametrize("status", [2, 130, 143])
def test_after_a_users_error_or_an_interruption_a_job_does_not_start_again(jobs_of: Jobs, status: int) -> None:
    jobs = jobs_of(f"echo 'cloze: a.xml: is no dump' >&2; exit {status}", retries=3)
    job, _ = jobs.submit(request())
    info = ended(jobs, job)
    assert (info.state, info.exit_status, info.reason) == (JobState.FAILED, status, "a.xml: is no dump")
    assert log(jobs, job).count("is no dump") == 1


def test_a_job_whose_supervisor_is_killed_has_failed_and_its_run_saves(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    job, _ = jobs.submit(request())
    wait_for_log(jobs, job, "started")
    os.kill(process_of(job).pid, signal.SIGKILL)
    info = ended(jobs, job)
    assert (info.state, info.exit_status) == (JobState.FAILED, None)
    assert info.reason == "its process no longer exists; the same command continues"
    wait_for_log(jobs, job, "saved")


def test_a_job_of_before_a_reboot_has_failed(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    job, _ = jobs.submit(request())
    running = process_of(job)
    host, boot, numbers = running.machine.split()
    for machine, state in (
        (f"{host} 00000000-{boot[9:]} {numbers}", JobState.FAILED),
        (running.machine, JobState.RUNNING),
    ):
        before = running.model_copy(update={"machine": machine})
        (jobs_folder() / job / "process.json").write_text(before.model_dump_json())
        assert jobs.info(job).state is state
    jobs.stop(job)
    ended(jobs, job)


def test_a_job_of_another_machine_is_stopped_there(jobs_of: Jobs) -> None:
    jobs = jobs_of(SAVES)
    job, _ = jobs.submit(request())
    running = process_of(job)
    elsewhere = running.model_copy(update={"host": "node-1", "machine": "node-1 1 pid:[1]"})
    (jobs_folder() / job / "process.json").write_text(elsewhere.model_dump_json())
    with pytest.raises(UserError, match=r"process \d+ on node-1; stop it there, with the same command"):
        jobs.stop(job)
    (jobs_folder() / job / "process.json").write_text(running.model_dump_json())
    jobs.stop(job)
    ended(jobs, job)


def expire(job: str) -> None:
    file = jobs_folder() / job / "end.json"
    end = json.loads(file.read_text())
    end["attempts"][0]["ended"] = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    file.write_text(json.dumps(end))


def test_beside_an_expired_attempt_the_running_one_is_attached_and_numbers_are_not_used_again(jobs_of: Jobs) -> None:
    jobs = jobs_of(f"[ -e again ] || {{ touch again; exit 0; }}; {SAVES}", ttl_seconds=3600)
    first, _ = jobs.submit(request())
    ended(jobs, first)
    second, _ = jobs.submit(request())
    wait_for_log(jobs, second, "started")
    expire(first)
    assert jobs.submit(request()) == (second, False)
    assert [info.id for info in jobs.jobs()] == [second]
    jobs.stop(second)
    ended(jobs, second)
    third, is_new = jobs.submit(request())
    assert (third, is_new) == (f"{first[:-1]}3", True)
    jobs.stop(third)
    ended(jobs, third)


def test_jobs_that_ended_long_ago_are_removed_from_the_list(jobs_of: Jobs) -> None:
    jobs = jobs_of("exit 0", ttl_seconds=3600)
    old, new = (jobs.submit(request(f"vocab.size={size}"))[0] for size in (500, 600))
    for job in (old, new):
        ended(jobs, job)
    assert len(jobs.jobs()) == 2
    expire(old)
    assert [info.id for info in jobs.jobs()] == [new]


def test_a_missing_file_is_an_error_before_the_job_is_submitted(jobs_of: Jobs) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        jobs = jobs_of("exit 0")
        jobs.submit(JobRequest(request("finetune.authors.file=gone.jsonl").config))
    assert jobs.jobs() == []


def test_an_interpreter_that_cannot_run_cloze_is_an_error_of_one_line(tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    lacking.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    lacking.chmod(0o755)
    without_packages = tmp_path / "without-packages"
    without_packages.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    without_packages.chmod(0o755)
    for python, words in (
        (lacking, "cannot run Cloze"),
        (without_packages, r"cannot run Cloze \(ModuleNotFoundError: No module named 'pydantic'\)"),
        ("/gone/python", "No such file or directory"),
    ):
        jobs = LocalJobs(ClusterConfig(name="here", python=str(python)))
        with pytest.raises(UserError, match=words):
            jobs.submit(request())
        assert jobs.jobs() == []


def test_the_command_line_lists_shows_follows_and_stops_jobs(jobs_of: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = jobs_of(SAVES)
    job, _ = jobs.submit(request())
    wait_for_log(jobs, job, "started")
    assert main(["job", "list"]) == 0
    assert f"{job}  running " in capsys.readouterr().out
    assert main(["job", "list", "--json"]) == main(["job", "status", job, "--json"]) == 0
    listed, end = json.JSONDecoder().raw_decode(out := capsys.readouterr().out)
    assert listed == [json.loads(out[end:])]
    assert (listed[0]["id"], listed[0]["state"], listed[0]["exit_status"]) == (job, "running", None)
    assert main(["job", "logs", job]) == 0
    assert capsys.readouterr().out == "started\n"
    assert main(["job", "stop", job, "--wait"]) == 0
    assert capsys.readouterr().err == (f"{job} has been stopped; the same command continues from the finished parts\n")
    assert main(["job", "stop", job]) == 0
    assert capsys.readouterr().err.endswith("; there is nothing to stop\n")
    assert main(["job", "wait", job]) == 130
    assert main(["job", "logs", job, "--follow"]) == 0
    assert capsys.readouterr().out == "started\nsaved\n"


def test_an_unknown_job_is_an_error_that_names_the_closest(jobs_of: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["job", "logs", "quickstart-1"]) == 2
    assert capsys.readouterr().err == (
        "cloze: quickstart-1: is not a job of this machine; `cloze job list` shows its jobs\n"
    )
    jobs = jobs_of("exit 0")
    job, _ = jobs.submit(request())
    ended(jobs, job)
    for action in ("status", "logs", "stop", "wait"):
        assert main(["job", action, job[:-3]]) == 2
        assert capsys.readouterr().err == (f"cloze: {job[:-3]}: is not a job of this machine; did you mean {job}?\n")


def test_submit_follows_the_log_and_returns_the_exit_status(jobs_of: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs_of("echo reads; echo 'cloze: a.xml: is no dump' >&2; exit 2")
    Path("here.yaml").write_text(f"name: here\npython: {Path.cwd()}/python\noverrides: [vocab.size=500]\n")
    assert main(["submit", str(QUICKSTART), "--cluster", "here.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "reads\ncloze: a.xml: is no dump\n"
    job = err.removeprefix("submitted as ").strip()
    assert load(RunConfig, jobs_folder() / job / "run.yaml").vocab.size == 500  # pyright: ignore
    assert main(["submit", str(QUICKSTART), "--cluster", "here.yaml", "--detach"]) == 0
    assert capsys.readouterr().out == f"{job[:-1]}2\n"
    assert main(["job", "wait", f"{job[:-1]}2"]) == 2


@pytest.mark.campaign
def test_a_real_run_is_detached_stopped_and_continues(capsys: pytest.CaptureFixture[str]) -> None:
    def cloze(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cloze.infra.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DAGSTER_HOME": f"{Path.cwd()}/dagster"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    submit = ("submit", "configs/quickstart.yaml", "--until", "vocab", "vocab.size=500")
    with cloze(*submit) as first:
        assert first.stderr
        job = first.stderr.readline().split()[-1]
        while "extract" not in (jobs_folder() / job / "log").read_text():
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        assert f"detached; {job} continues to run. The same" in (left := first.stderr.read())
        assert left.endswith(f"  cloze job stop {job}\n")
        assert first.wait(60) == 130
    assert main(["job", "stop", job, "--wait"]) == 0
    assert main(["job", "wait", job]) == 130
    assert "the same command continues from the finished parts" in (jobs_folder() / job / "log").read_text()
    capsys.readouterr()
    with cloze(*submit) as second:
        out, err = second.communicate(timeout=300)
    assert second.returncode == 0, out + err
    assert err == f"submitted as {job[:-1]}2\n"
    assert "vocab             done in" in out
    assert main(["status", "quickstart"]) == 0
    assert f"job: {job[:-1]}2 on this machine, ended 20" in capsys.readouterr().out
    assert main(["status", "quickstart", "--json"]) == 0
    of_run = json.loads(capsys.readouterr().out)[0]["job"]
    assert (of_run["id"], of_run["cluster"], of_run["exit_status"]) == (f"{job[:-1]}2", "this machine", 0)
