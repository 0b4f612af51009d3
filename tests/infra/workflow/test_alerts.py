"""Reports to a webhook: of runs that fail, and of those whose model is held back."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster
import pytest

from cloze.infra.cli import main
from cloze.infra.planner import Run
from cloze.infra.webhook import post, webhook_url
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.errors import UserError
from tests.infra import toy_run as toy
from tests.infra.promotion.toy_pretraining import Weekly

Make = Callable[..., Run]


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


def test_a_run_of_stages_that_were_selected_in_the_asset_graph_is_reported_by_its_own_sensor(
    make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise UserError("toy.txt: is broken; fix it")

    monkeypatch.setattr(toy, "before_part", fail)
    config = make().config
    schedule = config.schedule.model_copy(update={"webhook": receiver.url})
    toys, others = (
        definitions(ConfiguredRun(config.model_copy(update={"schedule": schedule, "name": name})))
        for name in ("toy", "other")
    )
    graph = toys.resolve_implicit_global_asset_job_def()  # __ASSET_JOB, whose name is not the run's
    with open_history() as instance:

        def look(found: dagster.Definitions, name: str, cursor: str | None) -> str | None:
            with dagster.build_sensor_context(instance, cursor) as context:
                return found.resolve_sensor_def(f"{name}_failures").evaluate_tick(context).cursor

        first = look(toys, "toy", None)
        selected = [dagster.AssetKey(["toy", "letters"])]
        assert not graph.execute_in_process(instance=instance, asset_selection=selected, raise_on_error=False).success
        look(others, "other", first)
        assert receiver.bodies == []
        look(toys, "toy", first)
    assert [(body["run"], body["stage"], body["cause"]) for body in receiver.bodies] == [
        ("toy", "letters", "toy.txt: is broken; fix it")
    ]


@pytest.mark.usefixtures("own_dagster")
def test_a_model_that_is_held_back_is_reported_although_its_run_is_a_success(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    weekly = Weekly(str(tmp_path / "root"), tmp_path, monkeypatch)
    schedule = f"schedule={json.dumps({'promote': True, 'webhook': receiver.url})}"

    def start(**week: float) -> dagster.DagsterRun:
        job = definitions(ConfiguredRun(weekly.run(schedule, **week).config)).resolve_job_def("weekly")
        with open_history() as instance:
            done = job.execute_in_process(instance=instance, tags={"dagster/schedule_name": "weekly_schedule"})
            assert done.success
            return done.dagster_run

    start(loss=3.0)
    start(loss=2.9)
    assert receiver.bodies == []  # both were promoted
    assert main(["promote", "weekly", "--root", weekly.root, "--rollback"]) == 0
    run = start()
    [body] = receiver.bodies
    assert body["cause"].startswith("weekly: what event 2 promoted from the same files was rolled back; promote it by")
    link = f"http://127.0.0.1:3000/runs/{run.run_id}"
    assert body["text"] == f"weekly was not promoted: {body['cause']} {link}"
    with open_history() as instance:
        key = dagster.AssetKey(["weekly", "promoted"])
        [observed] = instance.fetch_observations(key, limit=9).records
    assert observed.asset_observation and "held back" in observed.asset_observation.metadata
