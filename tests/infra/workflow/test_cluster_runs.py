"""Runs in Dagster that are a job: a real one of this machine, which runs the toy run in a home of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster
import pytest

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import JobState
from cloze.infra.launch.local_jobs import LocalJobs
from cloze.infra.planner import Run
from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.workflow.cluster import JOB
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import home
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.processes import this_process
from tests.infra.toy_job import interpreter
from tests.infra.toy_run import toy_run
from tests.paths import REPOSITORY


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The toy run, whose schedule runs it on the cluster here.yaml: this machine, with another DAGSTER_HOME."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOZE_HOME", str(tmp_path / "cloze"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    (tmp_path / "source.txt").write_text("what letters reads")
    python = interpreter(tmp_path / "python", tmp_path / "root", tmp_path / "source.txt")
    (tmp_path / "here.yaml").write_text(
        f"name: here\npython: {python}\nenv_vars: {{DAGSTER_HOME: {tmp_path}/of-job}}\n"
    )
    run = toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt")
    return Run(run.config.model_copy(update={"schedule": ScheduleConfig(cluster="here.yaml")}))


def materializations() -> dict[str, list[dict[str, Any]]]:
    """Stage -> the metadata of its materializations, the newest first."""
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        return {
            name: [
                {key: entry.value for key, entry in record.asset_materialization.metadata.items()}
                for record in instance.fetch_materializations(dagster.AssetKey(["toy", name]), limit=10).records
                if record.asset_materialization
            ]
            for name in ("letters", "words", "pages")
        }


def look(run: Run, cursor: str | None = None) -> tuple[str | None, str | None]:
    """What the sensor for outputs says, and its cursor."""
    sensor = definitions(ConfiguredRun(run.config)).resolve_sensor_def("toy_outputs")
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        tick = sensor.evaluate_tick(dagster.build_sensor_context(instance, cursor=cursor))
    return tick.skip_message, tick.cursor


def test_a_jobs_stages_are_in_the_history_that_submitted_it_and_in_any_that_looks(
    toy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        done = definitions(ConfiguredRun(toy.config)).resolve_job_def("toy").execute_in_process(instance=instance)
        tags = instance.get_runs()[0].tags
    assert done.success
    [job] = LocalJobs(ClusterConfig(name="here")).jobs()
    assert (tags["cloze/job"], tags["cloze/cluster"]) == (job.id, "here")
    assert job.state is JobState.SUCCEEDED and not (tmp_path / "of-job").exists()
    found = materializations()
    assert {name: [one["action"] for one in of_stage] for name, of_stage in found.items()} == {
        "letters": ["run"],
        "words": ["run"],
        "pages": ["run"],
    }
    assert found["words"][0]["reason"] == f"no output yet; job {job.id}" and found["words"][0]["letters"] == 2
    assert look(toy)[0] == "All outputs are known."

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "another"))
    said, cursor = look(toy)
    assert said == "Reported: letters, words, pages."
    assert materializations()["words"][0]["reason"] == "finished by a run that this history does not have"
    assert look(toy, cursor)[0] == "Nothing has been finished since the last look."
    assert look(toy)[0] == "All outputs are known."
    assert {len(of_stage) for of_stage in materializations().values()} == {1}


# Executes the toy run's job in Dagster, until it is killed.
_FOLLOWER = """
import sys, dagster, pytest
from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import home
from cloze.infra.workflow.partitions import ConfiguredRun
from tests.infra.toy_run import toy_run
with pytest.MonkeyPatch.context() as patch, dagster.DagsterInstance.local_temp(str(home())) as instance:
    config = toy_run(patch, "root", "source.txt").config
    config = config.model_copy(update={"schedule": ScheduleConfig(cluster="here.yaml")})
    definitions(ConfiguredRun(config)).resolve_job_def("toy").execute_in_process(instance=instance)
"""


@contextmanager
def follower(instance: dagster.DagsterInstance, run: Run) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that executes the run, once its job has finished the stage letters and the history names the job."""
    environment, runs = {**os.environ, "PYTHONPATH": str(REPOSITORY)}, instance.get_runs_count()
    with subprocess.Popen([sys.executable, "-c", _FOLLOWER], env=environment) as process:
        try:
            wait_until(lambda: instance.get_runs_count() > runs and JOB in instance.get_runs(limit=1)[0].tags)
            wait_until(lambda: run.artifact("letters") is not None)
            yield process
        finally:
            process.kill()


@pytest.mark.campaign
def test_a_killed_follower_leaves_the_job_at_work_and_a_canceled_one_stops_it(toy: Run, tmp_path: Path) -> None:
    jobs = LocalJobs(ClusterConfig(name="here"))
    (tmp_path / "source.wait-words").touch()
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        with follower(instance, toy) as first:
            first.kill()
        with follower(instance, toy) as second:
            second.terminate()  # as at the end of the machine
            second.wait(60)
        [job] = jobs.jobs()
        assert job.state is JobState.RUNNING
        with follower(instance, toy) as third:
            instance.report_run_canceling(instance.get_runs(limit=1)[0])
            third.send_signal(signal.SIGINT)
            started = time.monotonic()
            wait_until(lambda: jobs.info(job.id).state is JobState.STOPPED)
            assert time.monotonic() - started < 30
    assert [info.id for info in jobs.jobs()] == [job.id]


@pytest.mark.campaign
def test_a_run_that_is_canceled_stops_its_job_although_its_process_has_ended_or_is_of_another_machine(
    toy: Run, tmp_path: Path
) -> None:
    jobs = LocalJobs(ClusterConfig(name="here"))
    (tmp_path / "source.wait-words").touch()
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        for is_killed in (True, False):
            with follower(instance, toy) as process:
                [run] = instance.get_runs(limit=1)
                if is_killed:
                    process.kill()
                    process.wait()
                else:
                    record = run.tags["cloze/process"].replace(this_process().machine, "elsewhere 1 pid:[1]")
                    elsewhere = record.replace(f'"host":"{this_process().host}"', '"host":"elsewhere"')
                    instance.add_run_tags(run.run_id, {"cloze/process": elsewhere})
                assert instance.run_launcher.terminate(run.run_id)
                wait_until(lambda: jobs.jobs()[0].state is JobState.STOPPED)
                process.wait(60)
            ended = instance.get_run_by_id(run.run_id)
            assert ended and ended.is_finished
    assert len(jobs.jobs()) == 2


# Sends itself a signal when it has told Dagster of the first stage: the signal comes in Dagster's code.
_SIGNAL_BETWEEN_STAGES = """
import os, sys, dagster
handle = dagster.DagsterInstance.handle_new_event
def handle_and_end(instance, event, **more):
    handle(instance, event, **more)
    if event.dagster_event and event.dagster_event.is_step_materialization:
        dagster.DagsterInstance.handle_new_event = handle
        if sys.argv[2] == "cancel":
            instance.report_run_canceling(instance.get_run_by_id(event.run_id))
        os.kill(os.getpid(), int(sys.argv[1]))
dagster.DagsterInstance.handle_new_event = handle_and_end
"""


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "cancel"), (signal.SIGTERM, "reboot")])
def test_a_signal_between_two_stages_stops_the_job_of_a_canceled_run_only(
    toy: Run, tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    (tmp_path / "source.wait-words").touch()
    command = [sys.executable, "-c", _SIGNAL_BETWEEN_STAGES + _FOLLOWER, str(int(number)), reason]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False)
    assert b"DagsterExecutionInterruptedError" in done.stderr
    [job] = (jobs := LocalJobs(ClusterConfig(name="here"))).jobs()
    if reason == "reboot":
        assert job.state is JobState.RUNNING
        jobs.stop(job.id)
    wait_until(lambda: jobs.info(job.id).state is JobState.STOPPED)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
