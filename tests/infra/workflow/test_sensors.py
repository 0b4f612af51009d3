"""Runs that start when the files they read have changed, and reports of those that fail."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster
import pytest

from cloze.infra.planner import Run
from cloze.infra.webhook import post, webhook_url
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from tests.infra import toy_run as toy

Make = Callable[..., Run]


class Looks:
    """The sensor of the toy run's files, look after look, with its cursor."""

    def __init__(self, run: Run):
        self._sensor = definitions(ConfiguredRun(run.config)).resolve_sensor_def("toy_new_files")
        self._cursor: str | None = None

    def look(self) -> str | int:
        """The number of runs that it requests, or why it requests none."""
        with open_history() as instance, dagster.build_sensor_context(instance, cursor=self._cursor) as context:
            found = self._sensor.evaluate_tick(context)
        self._cursor = found.cursor or self._cursor
        return len(found.run_requests) if found.run_requests else str(found.skip_message)


@pytest.fixture
def looks(folder: str, own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Of a run that reads *.txt of the folder `in`, which has one file."""
    (Location(folder) / "in/a.txt").write_text("a")
    return Looks(toy.toy_run(monkeypatch, tmp_path / "root", f"{folder}/in/*.txt"))


def test_files_that_stand_still_are_requested_once(looks: Looks, folder: str) -> None:
    assert looks.look() == "1 files, which have changed; waits until they stand still"
    assert looks.look() == 1
    assert looks.look() == "1 files, as in the last run that was requested"
    (Location(folder) / "in/b.txt").write_text("half of")
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    (Location(folder) / "in/b.txt").write_text("half of a document")  # it grows between two looks
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    assert looks.look() == 1


def test_files_that_are_being_fetched_or_copied_are_not_taken(looks: Looks, folder: str) -> None:
    place = Location(folder) / "in"
    (place / ".partial/b.txt").write_text("half of a")
    assert [looks.look(), looks.look()] == [f"{place}: is not whole yet"] * 2
    (place / ".partial").delete()
    (place / "dump.json").write_text(json.dumps({"files": [{"name": "b.txt", "bytes": 9, "sha1": "0"}]}))
    assert looks.look() == f"{place}: is not whole yet"
    (place / "b.txt").write_text("b" * 9)
    assert looks.look() == "2 files, which have changed; waits until they stand still"
    assert looks.look() == 1


def test_without_files_there_is_no_run(make: Make, tmp_path: Path) -> None:
    looks = Looks(make())
    (tmp_path / "source.txt").unlink()
    assert "source.txt: no such file" in str(looks.look())


@pytest.mark.usefixtures("own_dagster")
def test_a_tick_does_not_take_files_that_are_being_fetched_or_copied(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick(watch_seconds: int) -> str | int:
        """The number of runs that it requests, or why it requests none."""
        watched = [f"schedule={{watch_seconds: {watch_seconds}}}"]
        run = toy.toy_run(monkeypatch, tmp_path / "root", f"{folder}/in/*.txt", overrides=watched)
        schedule = definitions(ConfiguredRun(run.config)).resolve_schedule_def("toy_schedule")
        with open_history() as instance, dagster.build_schedule_context(instance) as context:
            found = schedule.evaluate_tick(context)
        return len(found.run_requests) if found.run_requests else str(found.skip_message)

    place = Location(folder) / "in"
    assert tick(60) == 1  # its run ends with the line that there is no file
    (place / "a.txt").write_text("half of a document")
    assert tick(60) == f"{place}/a.txt: was changed less than 60 s ago (schedule.watch_seconds)"
    time.sleep(1.1)
    assert tick(1) == 1
    (place / ".partial/b.txt").write_text("half of b")
    assert tick(1) == f"{place}: is not whole yet"
    (place / ".partial").delete()
    (place / "dump.json").write_text(json.dumps({"files": [{"name": "b.txt", "bytes": 9, "sha1": "0"}]}))
    assert tick(1) == f"{place}: is not whole yet"


class Receiver:
    """A local server that answers its next requests with `statuses`, then with 200, and keeps what it received."""

    def __init__(self, url: str):
        self.url, self.statuses, self.bodies = url, list[int](), list[dict[str, Any]]()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook?token=secret")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


def test_a_report_is_sent_again_while_the_receiver_fails(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    post(receiver.url, {"run": "toy"}, waits=(0, 0, 0))
    assert receiver.bodies == [{"run": "toy"}] * 3


def test_a_report_that_cannot_be_sent_is_an_error_without_the_secret(receiver: Receiver) -> None:
    receiver.statuses = [404]
    with pytest.raises(UserError, match=r"^schedule\.webhook: 127\.0\.0\.1 answered 404; check its URL$"):
        post(receiver.url, {}, waits=(0,))
    with pytest.raises(
        UserError, match=r"^schedule\.webhook: 127\.0\.0\.1 cannot be reached \([^/]*\); check its URL$"
    ):
        post("http://127.0.0.1:1/token", {}, waits=(0,))


def test_a_webhook_may_be_named_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_URL", "https://chat.example/hook/secret")
    assert webhook_url("CHAT_URL") == "https://chat.example/hook/secret"
    for wrong in ("NO_SUCH_VARIABLE", "ftp://chat.example"):
        with pytest.raises(UserError, match=r"^schedule\.webhook: .* is not an http:// or https:// URL"):
            webhook_url(wrong)


def test_a_failed_run_is_reported_with_its_stage_its_cause_and_a_link(
    make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: str, _: str) -> None:
        if stage == "words":
            raise UserError("toy.txt: is broken; fix it\nand more")

    monkeypatch.setattr(toy, "before_part", fail)
    run = make()
    with pytest.raises(UserError):
        materialize(run, "cloze run")
    schedule = run.config.schedule.model_copy(update={"webhook": receiver.url, "pages": "https://pages.example/"})
    configured = ConfiguredRun(run.config.model_copy(update={"schedule": schedule}))
    sensor = definitions(configured).resolve_sensor_def("toy_failures")
    assert sensor.default_status == dagster.DefaultSensorStatus.RUNNING
    with open_history() as instance:
        [failed] = instance.get_runs()
        [event] = [
            entry.dagster_event
            for entry in instance.all_logs(failed.run_id, of_type=dagster.DagsterEventType.RUN_FAILURE)
        ]
        assert event
        context = dagster.build_run_status_sensor_context("toy_failures", event, instance, failed).for_run_failure()
        sensor(context)
    link = f"https://pages.example/runs/{failed.run_id}"
    cause = "toy.txt: is broken; fix it"
    assert receiver.bodies == [
        {
            "text": f"toy failed in words: {cause} {link}",
            "run": "toy",
            "partition": None,
            "stage": "words",
            "cause": cause,
            "dagster_run": failed.run_id,
            "link": link,
        }
    ]


def test_there_is_no_report_without_a_webhook(make: Make) -> None:
    names = {sensor.name for sensor in definitions(ConfiguredRun(make().config)).sensors or ()}
    assert names == {"toy_new_files", "toy_outputs"}
