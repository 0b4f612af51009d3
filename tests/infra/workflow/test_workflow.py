import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster
import pytest

from cloze.infra import named_runs
from cloze.infra.cli import main
from cloze.infra.planner import Run
from cloze.infra.schedule_config import ScheduleConfig
from cloze.infra.workflow import defs
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import home, open_history
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.run_process import process_tag
from cloze.pipeline.core.errors import UserError
from tests.conftest import free_port, wait_for_port
from tests.infra import toy_run as toy
from tests.infra.toy_run import ToyConfig
from tests.paths import QUICKSTART, REPOSITORY

Make = Callable[..., Run]


def history() -> list[dagster.DagsterRun]:
    """Dagster's runs, the newest first, as `dagster dev` would read them."""
    with dagster.DagsterInstance.get() as instance:
        return list(instance.get_runs())


def materializations() -> dict[str, dict[str, Any]]:
    """Asset -> the metadata of its newest materialization."""
    found = {}
    with dagster.DagsterInstance.get() as instance:
        for name in ("letters", "words", "pages"):
            if event := instance.get_latest_materialization_event(dagster.AssetKey(["toy", name])):
                assert event.asset_materialization
                found[name] = {key: entry.value for key, entry in event.asset_materialization.metadata.items()}
    return found


def actions() -> dict[str, Any]:
    """Asset -> what the last run did with it: a stage that it skipped is an observation."""
    found = {}
    with dagster.DagsterInstance.get() as instance:
        for name in ("letters", "words", "pages"):
            key = dagster.AssetKey(["toy", name])
            materialized, observed = (
                fetch(dagster.AssetRecordsFilter(key), limit=1).records
                for fetch in (instance.fetch_materializations, instance.fetch_observations)
            )
            last = max([*materialized, *observed], key=lambda record: record.storage_id)
            event = last.asset_materialization or last.asset_observation
            assert event
            found[name] = event.metadata["action"].value
    return found


def test_every_stage_is_an_asset_that_depends_on_its_inputs(make: Make) -> None:
    graph = definitions(ConfiguredRun(make().config)).resolve_asset_graph()
    below = {
        key.path[-1]: {parent.path[-1] for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert below == {"data": set(), "letters": {"data"}, "words": {"letters"}, "pages": {"words", "letters"}}
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"toy"}


def test_the_schedule_is_weekly_and_off_until_switched_on(make: Make) -> None:
    found = definitions(ConfiguredRun(make().config))
    schedule = found.resolve_schedule_def("toy_schedule")
    assert schedule.cron_schedule == "0 3 * * 0"
    assert schedule.default_status == dagster.DefaultScheduleStatus.STOPPED
    assert schedule.job_name == "toy"
    with dagster.instance_for_test() as instance:
        tick = schedule.evaluate_tick(dagster.build_schedule_context(instance))
    assert len(tick.run_requests or []) == 1


def test_an_impossible_schedule_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="schedule: weekly is not a cron expression; write five fields"):
        definitions(ConfiguredRun(make().config.model_copy(update={"schedule": ScheduleConfig(cron="weekly")})))


def test_a_run_executes_every_stage_in_order_and_a_second_skips_them(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    assert materialize(make(), "cloze run toy.yaml") == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("]")[0] for line in lines] == ["[  1/3", "[  1/3", "[  2/3", "[  2/3", "[  3/3", "[  3/3"]
    assert lines[0].endswith("letters  run: no output yet")
    assert lines[1].endswith("letters  done in 0 s: 2 letters; dropped 1 vowels")
    assert materialize(make(), "cloze run toy.yaml") == 0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and all("  skip: done " in line and line.endswith("nothing changed") for line in lines)


def test_a_warning_is_printed_when_its_stage_ends_and_again_when_the_run_does(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    toy_run = make(words=ToyConfig(warning="words.size: 9 cannot be reached"))
    materialize(toy_run, "cloze run toy.yaml")
    out, err = capfd.readouterr()
    assert err.splitlines()[4].endswith("words    warning: words.size: 9 cannot be reached")
    assert out == "warning: words.size: 9 cannot be reached\n"
    assert materializations()["words"]["warning 1"] == "words.size: 9 cannot be reached"
    materialize(toy_run, "cloze run toy.yaml")  # skips all
    out, err = capfd.readouterr()
    assert "warning" not in err and out == "warning: words.size: 9 cannot be reached\n"


def test_a_run_that_was_started_can_be_given_by_its_name(
    make: Make, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def cloze(*arguments: str) -> str:
        assert main(arguments) == 0
        return capfd.readouterr().out

    make()  # from here on its stages are those of every run
    handler = signal.getsignal(signal.SIGTERM)
    root = ("--root", f"{folder}/root")
    monkeypatch.chdir(REPOSITORY)
    cloze("run", "configs/quickstart.yaml", "name=toy", "vocab.size=777", *root, "--until", "words")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    planned = json.loads(cloze("plan", "toy", *root, "--json"))
    assert [stage["action"] for stage in planned] == ["skip", "skip", "run"]
    assert cloze("run", "toy", *root, "--dry-run") == cloze("plan", "toy", *root)
    states = [stage["state"] for stage in json.loads(cloze("status", "toy", *root, "--json"))]
    assert states == ["done", "done", "not started"]
    cloze("run", "toy", *root, "schedule=0 4 * * *")
    assert "pages    done " in cloze("status", "toy", *root)
    stored = named_runs.read("toy", root=root[1])
    assert stored.vocab and (stored.name, stored.vocab.size, stored.schedule.cron) == ("toy", 777, "0 4 * * *")
    assert main(["status", "tory", *root]) == 2
    assert ", whose runs are toy; give another name" in capfd.readouterr().err
    signal.signal(signal.SIGTERM, handler)


def test_a_run_that_cannot_start_is_not_stored(make: Make, tmp_path: Path) -> None:
    (tmp_path / "source.txt").unlink()
    with pytest.raises(UserError):
        materialize(make(), "cloze run")
    assert not (tmp_path / "root/runs/toy.yaml").exists()


def test_dagster_prints_nothing(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    materialize(make(), "cloze run toy.yaml")
    out, err = capfd.readouterr()
    assert out == "" and "dagster" not in err and len(err.splitlines()) == 6


def test_dagsters_history_contains_runs_and_the_metadata_of_each_asset(make: Make) -> None:
    materialize(make(), "cloze run toy.yaml")
    materialize(make(words=ToyConfig(size=2)), "cloze run toy.yaml words.size=2")
    assert [(run.job_name, run.status, run.tags["cloze/command"]) for run in history()] == [
        ("toy", dagster.DagsterRunStatus.SUCCESS, "cloze run toy.yaml words.size=2"),
        ("toy", dagster.DagsterRunStatus.SUCCESS, "cloze run toy.yaml"),
    ]
    assert actions() == {"letters": "skip", "words": "run", "pages": "skip"}
    found = materializations()
    assert {name: found[name]["action"] for name in found} == {"letters": "run", "words": "run", "pages": "run"}
    assert found["words"]["reason"] == "words.size: 1 -> 2"
    assert (found["words"]["letters"], found["words"]["dropped: vowels"]) == (2, 1)
    assert found["words"]["location"] == str(make(words=ToyConfig(size=2)).plan()[1].output.location)  # pyright: ignore
    assert found["words"]["seconds"] >= 0


def test_until_stops_after_a_stage(make: Make) -> None:
    materialize(make(), "cloze run", until="words")
    assert materializations().keys() == {"letters", "words"}


def test_force_runs_a_stage_again_and_no_other(make: Make) -> None:
    materialize(make(), "cloze run")
    materialize(make(), "cloze run", force=["words"])
    assert actions() == {"letters": "skip", "words": "run", "pages": "skip"}


def test_the_exception_of_a_stage_is_raised_unchanged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    error = UserError("toy.txt: is broken; fix it")

    def fail(_: str, letter: str) -> None:
        if letter == "b":
            raise error

    monkeypatch.setattr(toy, "before_part", fail)
    with pytest.raises(UserError) as caught:
        materialize(make(), "cloze run")
    assert caught.value is error
    assert [run.status for run in history()] == [dagster.DagsterRunStatus.FAILURE]
    monkeypatch.setattr(toy, "before_part", None)
    materialize(make(), "cloze run")
    assert materializations()["letters"]["action"] == "continue"


def test_a_missing_source_is_an_error_before_dagster_starts(make: Make, tmp_path: Path) -> None:
    (tmp_path / "source.txt").unlink()
    with pytest.raises(UserError, match=r"source\.txt: no such file"):
        materialize(make(), "cloze run")
    assert history() == []


def test_ctrl_c_reaches_the_stage_as_keyboard_interrupt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseException] = []

    def interrupt(*_: str) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:
            seen.append(error)
            raise

    monkeypatch.setattr(toy, "before_part", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        materialize(make(), "cloze run")
    assert len(seen) == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert history()[0].status in (dagster.DagsterRunStatus.CANCELED, dagster.DagsterRunStatus.FAILURE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_stages_ends_the_command_with_its_line_and_status(
    make: Make, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted_check(*_: object) -> None:
        os.kill(os.getpid(), number)  # to Dagster's handler, which has the signals outside stages
        time.sleep(5)

    root = make().config.root
    monkeypatch.setattr("cloze.infra.workflow.assets.require_passed_checks", interrupted_check)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["run", str(QUICKSTART), "name=toy", f"root={root}"]) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == (
        "cloze: stopped; the same command continues from the finished parts"
    )
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert make().plan()[0].action == "skip"


_KILLED = """
import os, signal, sys, pytest
from tests.infra import toy_run
from cloze.infra.workflow.command import materialize
toy_run.before_part = lambda stage, letter: os.kill(os.getpid(), signal.SIGKILL) if stage == "words" else None
with pytest.MonkeyPatch.context() as patch:
    materialize(toy_run.toy_run(patch, sys.argv[1], sys.argv[2]), "cloze run")
"""


def test_a_killed_run_is_ended_in_the_history_by_the_next_one(make: Make, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", _KILLED, tmp_path / "root", tmp_path / "source.txt"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [run.status for run in history()] == [dagster.DagsterRunStatus.STARTED]
    materialize(make(), "cloze run")
    assert [run.status for run in history()] == [dagster.DagsterRunStatus.SUCCESS, dagster.DagsterRunStatus.FAILURE]
    assert actions() == {"letters": "skip", "words": "run", "pages": "run"}


def test_a_run_that_is_still_running_is_not_changed(make: Make) -> None:
    with dagster.DagsterInstance.local_temp(str(home())) as instance:
        tags = process_tag("1" * 32)
        status = dagster.DagsterRunStatus.STARTED
        instance.add_run(dagster.DagsterRun(job_name="toy", run_id="1" * 32, status=status, tags=tags))
        instance.add_run(dagster.DagsterRun(job_name="toy", run_id="2" * 32, status=status))  # launched in the UI
    materialize(make(), "cloze run")
    assert [run.status for run in history()][1:] == [status, status]


def test_runs_that_open_a_new_history_at_the_same_time_do_not_damage_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "new"))
    home()
    start, opened = threading.Barrier(3), list[int]()

    def open_one() -> None:
        start.wait()
        with open_history() as instance:
            opened.append(instance.get_runs_count())

    threads = [threading.Thread(target=open_one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_history() as instance:
        assert [*opened, instance.get_runs_count()] == [0] * 4


def test_dagster_sends_no_telemetry(make: Make) -> None:
    with dagster.DagsterInstance.get() as instance:
        assert not instance.telemetry_enabled and not instance.nux_enabled


def test_a_home_that_cannot_be_created_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "file/home"))
    with pytest.raises(UserError, match=r"file/home: Not a directory; set DAGSTER_HOME to a folder"):
        home()


def test_the_ui_shows_every_run_of_cloze_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("CLOZE_CONFIG", "configs/quickstart.yaml configs/bert-base.yaml")
    assert {job.name for job in defs().jobs or []} >= {"quickstart", "bert_base"}
    monkeypatch.setenv("CLOZE_CONFIG", "configs/quickstart.yaml configs/quickstart.yaml")
    with pytest.raises(UserError, match="CLOZE_CONFIG has two runs named quickstart"):
        defs()


def test_the_ui_shows_a_run_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = QUICKSTART
    monkeypatch.chdir(tmp_path)
    named_runs.store(named_runs.read(str(config), ["name=mine"]))
    monkeypatch.setenv("CLOZE_CONFIG", f"mine {config}")
    assert {job.name for job in defs().jobs or []} >= {"quickstart", "mine"}


def test_a_root_where_no_configuration_can_be_stored_is_an_error_of_one_line(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/runs").write_text("")
    handler = signal.getsignal(signal.SIGTERM)
    config = str(QUICKSTART)
    assert main(["run", config, "--root", str(tmp_path / "root")]) == 2
    assert capfd.readouterr().err.startswith(
        f"cloze: {tmp_path}/root/runs: cannot be created (File exists); name a writable "
    )
    signal.signal(signal.SIGTERM, handler)


_ASSETS = "{ assetNodes { assetKey { path } } }"
_SCHEDULES = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { schedules { cronSchedule scheduleState { status } }}}}}
"""
_LAUNCH = """
mutation($p: ExecutionParams!) {
  launchPipelineExecution(executionParams: $p) { ... on LaunchRunSuccess { run { runId } } }
}
"""
_STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

Ask = Callable[..., Any]


@pytest.fixture
def ui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Ask]:
    """The server of `make ui` with the quickstart and tmp_path as its root: a function that queries it with GraphQL."""
    repository, port = REPOSITORY, free_port()
    config = tmp_path / "quickstart.yaml"
    config.write_text((repository / "configs/quickstart.yaml").read_text().replace("root: runs ", f"root: {tmp_path} "))
    monkeypatch.setenv("CLOZE_CONFIG", str(config))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))

    def ask(query: str, **variables: object) -> Any:
        """The value of the query's one field."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            (value,) = json.load(answer)["data"].values()
        return value

    command = [sys.executable, "-m", "cloze.infra.workflow", "-p", str(port)]
    with subprocess.Popen(command, cwd=repository, start_new_session=True) as server:
        try:
            wait_for_port(port, seconds=120)
            yield ask
        finally:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.campaign
def test_a_stage_can_be_launched_in_the_ui(ui: Ask, tmp_path: Path) -> None:
    names = {tuple(node["assetKey"]["path"]) for node in ui(_ASSETS)}
    assert {("quickstart", "extract"), ("quickstart", "pretrain"), ("quickstart", "finetune-authors")} <= names
    schedules = ui(_SCHEDULES)["nodes"][0]["schedules"]
    assert schedules == [{"cronSchedule": "0 3 * * 0", "scheduleState": {"status": "STOPPED"}}]

    selector = {
        "repositoryLocationName": "cloze.infra.workflow",
        "repositoryName": "__repository__",
        "pipelineName": "quickstart",
        "assetSelection": [{"path": ["quickstart", "extract"]}],
    }
    launched = ui(_LAUNCH, p={"selector": selector, "runConfigData": {}, "mode": "default"})["run"]["runId"]
    deadline = time.monotonic() + 120
    while (status := ui(_STATUS, id=launched)["status"]) not in ("SUCCESS", "FAILURE"):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert status == "SUCCESS"
    assert list(tmp_path.glob("extract/*/manifest.json"))
    assert named_runs.read("quickstart", root=str(tmp_path)).root == str(tmp_path)
