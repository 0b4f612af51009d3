import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster
import pytest
import yaml
from dagster._core.launcher.base import WorkerStatus
from dagster._daemon.monitoring.run_monitoring import monitor_canceling_run

from cloze.infra.planner import Run
from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.workflow.dagster_yaml import lacking
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import home, open_history
from cloze.infra.workflow.names import op_name
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.queue import root_tag
from cloze.infra.workflow.run_process import end_orphans, has_ended, process_of, process_tag
from cloze.pipeline.core.processes import this_process
from tests.infra import toy_run as toy
from tests.infra.toy_run import ToyConfig
from tests.paths import REPOSITORY

Make = Callable[..., Run]
STATUS = dagster.DagsterRunStatus


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dagster home without a run: creating its databases takes a second, copying them no time."""
    folder = tmp_path_factory.mktemp("empty") / "dagster"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))
        with open_history() as instance:
            assert instance.get_runs() == []
    return folder


@pytest.fixture
def instance(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dagster.DagsterInstance]:
    """An empty history, with the settings that Cloze writes."""
    monkeypatch.setenv("DAGSTER_HOME", str(shutil.copytree(empty_home, tmp_path / "dagster")))
    with open_history() as opened:
        yield opened


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Creates the toy run."""
    (tmp_path / "source.txt").write_text("what letters reads")
    os.utime(tmp_path / "source.txt", (1e9, 1e9))  # long ago: a tick takes it
    return lambda **configs: toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt", **configs)


def launch(run: Run, instance: dagster.DagsterInstance, *, tags: dict[str, str] | None = None, **settings: Any) -> str:
    """Execute the run's job as Dagster does when its page starts it. Returns its last error; empty for success."""
    config = {"ops": {op_name("toy"): {"config": settings}}}
    job = definitions(ConfiguredRun(run.config)).resolve_job_def("toy")
    result = job.execute_in_process(config, instance, raise_on_error=False, tags=tags)
    failures = [event for event in result.all_events if event.is_step_failure]
    if result.success:
        return ""
    error = failures[-1].step_failure_data.error
    return error.message if error else "no error"


def added(instance: dagster.DagsterInstance, status: dagster.DagsterRunStatus, **tags: str) -> dagster.DagsterRun:
    """A run in the history that has the tag of a process."""
    number = instance.get_runs_count()
    return instance.add_run(dagster.DagsterRun("toy", str(number) * 32, status=status, tags=tags))


def test_the_settings_let_one_run_of_a_root_work_at_a_time_and_retry_crashes(instance: dagster.DagsterInstance) -> None:
    queue = instance.get_concurrency_config().run_queue_config
    assert queue
    assert queue.tag_concurrency_limits == [
        {"key": "cloze/root", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
    ]
    assert instance.run_monitoring_enabled and instance.run_retries_enabled
    assert instance.run_launcher.supports_check_run_worker_health
    assert lacking(home() / "dagster.yaml") == []


def test_settings_of_an_earlier_version_are_replaced_and_a_users_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    file = tmp_path / "dagster.yaml"
    file.write_text("telemetry:\n  enabled: false\nnux:\n  enabled: false\n")
    home()
    assert lacking(file) == []
    own = "run_monitoring: {enabled: true, poll_interval_seconds: 60}\nrun_retries: {enabled: false}\n"
    file.write_text(own)
    home()
    assert file.read_text() == own
    assert lacking(file) == ["concurrency", "run_coordinator", "run_launcher", "run_retries"]


def test_a_tick_is_skipped_while_a_run_of_its_root_is_not_finished(
    make: Make, instance: dagster.DagsterInstance
) -> None:
    config = make().config
    schedule = definitions(ConfiguredRun(config)).resolve_schedule_def("toy_schedule")

    def tick() -> Any:
        return schedule.evaluate_tick(dagster.build_schedule_context(instance))

    added(instance, STATUS.STARTED, **{"cloze/root": "/another"})
    added(instance, STATUS.SUCCESS, **root_tag(config))
    assert len(tick().run_requests) == 1
    for status in (STATUS.STARTING, STATUS.STARTED, STATUS.CANCELING):
        run = added(instance, status, **root_tag(config))
        assert tick().run_requests == [] and f"Run {run.run_id} of {config.root} is not finished" in tick().skip_message
        instance.delete_run(run.run_id)


def test_a_run_of_a_machine_that_no_longer_exists_is_named_at_a_tick_and_can_be_terminated(
    make: Make, instance: dagster.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make().config
    schedule = definitions(ConfiguredRun(config)).resolve_schedule_def("toy_schedule")
    here = this_process()
    there = {name: value.replace(here.host, "another") for name, value in process_tag("0" * 32).items()}
    run = added(instance, STATUS.STARTED, **root_tag(config), **there)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING  # for all that is known
    skipped = schedule.evaluate_tick(dagster.build_schedule_context(instance))
    assert skipped.skip_message == (
        f"Run {run.run_id} of {config.root} is not finished: process {here.pid} on another."
    )
    assert not instance.run_coordinator.cancel_run(run.run_id)  # its process cannot be told
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)  # what the daemon does a minute later
    [record] = instance.get_run_records()
    monitor_canceling_run(instance, record, logging.getLogger())
    ended = instance.get_run_by_id(run.run_id)
    assert ended and ended.status == STATUS.CANCELED
    assert len(schedule.evaluate_tick(dagster.build_schedule_context(instance)).run_requests or ()) == 1


def test_a_process_is_known_by_its_run_boot_and_start(instance: dagster.DagsterInstance) -> None:
    own = process_tag("0" * 32)
    run = added(instance, STATUS.STARTED, **own)
    assert process_of(run) == this_process() and not has_ended(run)
    assert process_of(added(instance, STATUS.STARTED, **own)) is None  # a retry, which has not told its own yet
    machine = this_process().machine
    boot = machine.split()[1]
    for before, after in ((boot, "another-boot"), (this_process().started, "1")):
        changed = {name: value.replace(before, after) for name, value in process_tag("2" * 32).items()}
        assert has_ended(dagster.DagsterRun("toy", "2" * 32, tags=changed))
    host, pid = this_process().host, os.getpid()
    for tag, ended in (
        (f"{host} {pid} 1", True),
        (f"{host} {pid} {this_process().started}", False),
        ("other 1 1", False),
    ):
        assert has_ended(dagster.DagsterRun("toy", "3" * 32, tags={"cloze/process": tag})) is ended  # of version 0.1


def test_a_run_whose_process_has_ended_fails_and_one_that_was_canceled_is_canceled(
    instance: dagster.DagsterInstance,
) -> None:
    ended = {name: value.replace('"started":"', '"started":"1') for name, value in process_tag("0" * 32).items()}
    runs = [
        added(instance, status, **{name: value.replace("0" * 32, str(number) * 32) for name, value in ended.items()})
        for number, status in enumerate((STATUS.NOT_STARTED, STATUS.STARTED, STATUS.CANCELING))
    ]
    alive = added(instance, STATUS.STARTED, **process_tag("3" * 32))
    unknown = added(instance, STATUS.STARTED)
    launcher = instance.run_launcher
    health = {run.run_id: launcher.check_run_worker_health(run).status.value for run in (runs[1], alive, unknown)}
    assert list(health.values()) == ["FAILED", "RUNNING", "RUNNING"]
    end_orphans(instance)
    found = [instance.get_run_by_id(run.run_id) for run in (*runs, alive, unknown)]
    assert [run and run.status for run in found] == [
        STATUS.FAILURE,
        STATUS.FAILURE,
        STATUS.CANCELED,
        STATUS.STARTED,
        STATUS.STARTED,
    ]


def test_a_pod_ends_the_runs_of_the_pod_before_it_on_the_same_node(instance: dagster.DagsterInstance) -> None:
    manifest = next(yaml.safe_load_all((REPOSITORY / "infra/kubernetes/base/dagster/statefulset.yaml").read_text()))
    command = manifest["spec"]["template"]["spec"]["initContainers"][0]["command"]
    assert command[0] == "python"
    host, _, numbers = this_process().machine.split()
    runs = [
        added(instance, status, **{name: value.replace(old, new) for name, value in process_tag(str(n) * 32).items()})
        for n, (status, old, new) in enumerate(
            ((STATUS.STARTED, numbers, "pid:[1]"), (STATUS.CANCELING, numbers, "pid:[1]"), (STATUS.STARTED, host, "b"))
        )
    ]
    assert not any(has_ended(run) for run in runs)
    subprocess.run(
        [sys.executable, *command[1:]], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True, timeout=60
    )
    found = [instance.get_run_by_id(run.run_id) for run in runs]
    assert [run and run.status for run in found] == [STATUS.FAILURE, STATUS.CANCELED, STATUS.STARTED]


def test_the_launchpad_sets_the_last_stage_and_keys_of_the_configuration(
    make: Make, instance: dagster.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()
    assert launch(run, instance, until="words", overrides=["max_hours=2"]) == ""
    assert [planned.action for planned in run.plan()] == ["skip", "skip", "run"]
    stored = (Path(run.config.root) / "runs/toy.yaml").read_text()
    assert "max_hours: 2" in stored
    assert "vocab.sise: unknown key" in launch(run, instance, overrides=["vocab.sise=3"])
    assert "root: cannot be overridden in Dagster" in launch(run, instance, overrides=["root=/elsewhere"])
    assert "wrods: is not a stage of this run" in launch(run, instance, until="wrods")


def test_errors_that_a_user_can_fix_are_one_line_and_not_retried(
    make: Make, instance: dagster.DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "source.txt").rename(tmp_path / "hidden.txt")
    error = launch(make(), instance)
    assert error.startswith("dagster._core.definitions.events.Failure: ")
    assert "source.txt: no such file" in error and len(error.splitlines()) == 1
    (run,) = instance.get_runs()
    assert run.tags["dagster/retry_on_asset_or_op_failure"] == "false"
    assert not (tmp_path / "root/letters").exists()


def test_a_limit_of_the_run_holds_and_is_not_retried(make: Make, instance: dagster.DagsterInstance) -> None:
    run = make()
    spent = Path(run.config.root) / "runs/toy.spent"
    spent.mkdir(parents=True)
    for attempt in ("a", "b"):
        (spent / f"{attempt}.json").write_text('{"hours": 1.5, "dollars": 0}')
    limited = Run(run.config.model_copy(update={"max_hours": 2.0}))
    assert "max_hours: 2 hours are spent (3 attempts)" in launch(limited, instance)
    assert instance.get_runs()[0].tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_a_retry_does_not_force_again_what_an_earlier_attempt_has_run(
    make: Make, instance: dagster.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, parts = make(), list[str]()

    def note(stage: str, letter: str) -> None:
        parts.append(f"{stage} {letter}")
        if stage == "words" and letter == "b" and "pages a" in parts and parts.count("words b") == 2:
            raise RuntimeError("crash")

    monkeypatch.setattr(toy, "before_part", note)
    assert launch(run, instance) == ""
    time.sleep(1.1)  # manifests have whole seconds
    assert launch(run, instance, force=["words"]) != ""
    first = instance.get_runs()[0]
    retry = {"dagster/retry_number": "1", "dagster/root_run_id": first.run_id}
    parts.clear()
    assert launch(run, instance, force=["words"], tags=retry) == ""
    assert parts == ["words b", "words c"]
    parts.clear()
    assert launch(run, instance, force=["words"]) == ""
    assert parts == ["words a", "words b", "words c"]


_WAITING = """
import sys, time, pytest
from pathlib import Path
from cloze.infra.cli import main
from tests.infra import toy_run
def wait(stage, letter):
    if stage == "words":
        Path(sys.argv[3]).write_text("")
        time.sleep(300)
toy_run.before_part = wait
with pytest.MonkeyPatch.context() as patch:
    toy_run.toy_run(patch, sys.argv[1], sys.argv[2])
    sys.exit(main(["run", str(toy_run.QUICKSTART), "name=toy", f"root={sys.argv[1]}"]))
"""


def test_a_run_of_the_command_line_can_be_terminated_in_the_page(
    make: Make, instance: dagster.DagsterInstance, tmp_path: Path
) -> None:
    make()
    command = [sys.executable, "-c", _WAITING, tmp_path / "root", tmp_path / "source.txt", tmp_path / "waits"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (tmp_path / "waits").exists() and process.poll() is None:
                time.sleep(0.05)
            (run,) = instance.get_runs()
            assert instance.run_coordinator.cancel_run(run.run_id)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert run.tags["cloze/root"] == str(tmp_path / "root") and "dagster/max_runtime" not in run.tags
    assert process.returncode == 128 + signal.SIGINT and "cloze: stopped" in err
    stopped = instance.get_run_by_id(run.run_id)
    assert stopped and stopped.status == STATUS.CANCELED
    assert next(planned.action for planned in make().plan()) == "skip"


def test_the_schedule_gives_the_retries_and_the_maximum_run_time(make: Make) -> None:
    schedule = ScheduleConfig(retries=5, max_runtime_hours=2.5)
    job = definitions(
        ConfiguredRun(make(words=ToyConfig()).config.model_copy(update={"schedule": schedule}))
    ).resolve_job_def("toy")
    assert job.run_tags["dagster/max_retries"] == "5" and job.run_tags["dagster/max_runtime"] == "9000"
