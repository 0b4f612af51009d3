"""What Dagster's history has of a run: it is what its pages show."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster
import pytest

from cloze.infra.checks import figures
from cloze.infra.checks.results import ChecksFailed
from cloze.infra.planner import Run
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.names import FAILED_STAGE
from cloze.infra.workflow.partitions import ConfiguredRun
from tests.infra import toy_run as toy
from tests.infra.promotion.toy_pretraining import Weekly

Make = Callable[..., Run]
_SOURCE = dagster.AssetKey(["toy", "files", "letters", "data"])


@pytest.fixture
def weekly(own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weekly:
    return Weekly(str(tmp_path / "root"), tmp_path, monkeypatch)


def events(fetch: str, *key: str) -> list[Any]:
    """The materializations or observations of an asset, the newest first."""
    with open_history() as instance:
        records = getattr(instance, fetch)(dagster.AssetRecordsFilter(dagster.AssetKey(key)), limit=99).records
    return [record.asset_materialization or record.event_log_entry.asset_observation for record in records]


def materializations(*key: str) -> list[dagster.AssetMaterialization]:
    return events("fetch_materializations", *key)


def observations(*key: str) -> list[dagster.AssetObservation]:
    return events("fetch_observations", *key)


def test_a_page_shows_numbers_that_dagster_plots_and_where_output_and_report_are(make: Make) -> None:
    toy_run = make()
    materialize(toy_run, "cloze run")
    [event] = materializations("toy", "letters")
    numbers = {name: value.value for name, value in event.metadata.items() if isinstance(value.value, int | float)}
    assert (numbers["letters"], numbers["dropped: vowels"]) == (2, 1)
    assert {"seconds", "seconds of the output"} <= numbers.keys()
    artifact = toy_run.artifact("letters")
    assert artifact and event.metadata["digest"].value == artifact.fingerprint
    assert event.metadata["location"].value == artifact.location.uri
    assert event.metadata["report"].value == toy_run.page.uri
    assert (event.tags or {})["dagster/data_version"] == artifact.fingerprint


def test_a_skipped_stage_is_observed_and_leaves_its_materialization(make: Make) -> None:
    materialize(make(), "cloze run")
    materialize(make(), "cloze run")
    [event], [observation] = materializations("toy", "words"), observations("toy", "words")
    assert event.metadata["action"].value == "run"
    assert observation.metadata["action"].value == "skip"
    assert str(observation.metadata["reason"].value).endswith("nothing changed")
    assert observation.metadata["letters"] == event.metadata["letters"]


def test_an_output_that_the_history_does_not_know_is_materialized_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(make(), "cloze run")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "another"))
    for _ in range(2):
        materialize(make(), "cloze run")
    [event], [observation] = materializations("toy", "letters"), observations("toy", "letters")
    assert (event.metadata["action"].value, observation.metadata["action"].value) == ("skip", "skip")


def test_the_files_of_the_user_are_source_assets_whose_version_is_their_content(make: Make, tmp_path: Path) -> None:
    def observed() -> dict[str, Any]:
        newest = observations(*_SOURCE.path)[0]
        version = (newest.tags or {})["dagster/data_version"]
        return {"version": version, **{name: value.value for name, value in newest.metadata.items()}}

    run = make()
    materialize(run, "cloze run")
    first = observed()
    assert (first["files"], first["bytes"], first["names"]) == (1, 18, str(tmp_path / "source.txt"))
    assert first["newest"] == pytest.approx((tmp_path / "source.txt").stat().st_mtime)
    [made] = materializations("toy", "letters")
    assert (made.tags or {})["dagster/input_data_version/toy/files/letters/data"] == first["version"]
    (tmp_path / "source.txt").write_text("other text")
    graph = definitions(ConfiguredRun(make().config)).resolve_asset_graph()
    assert graph.get(dagster.AssetKey(["toy", "letters"])).parent_keys == {_SOURCE}
    pages = definitions(ConfiguredRun(make().config)).resolve_implicit_global_asset_job_def()
    with open_history() as instance:
        pages.execute_in_process(instance=instance, asset_selection=[_SOURCE])  # what the button "Observe" starts
    assert observed()["version"] != first["version"] and observed()["bytes"] == 10


def test_checks_are_shown_with_their_numbers_and_a_failed_one_ends_the_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(text: str) -> None:
        (tmp_path / "source.txt").write_text(text)
        materialize(make(checks={"letters": (figures.counts_check("letters"),)}), "cloze run")

    monkeypatch.setattr(toy, "letters_of", lambda config, inputs: (tmp_path / "source.txt").read_text())
    run("bcdfghjklm")
    with pytest.raises(ChecksFailed, match="letters: 4 letters, 60 % fewer"):
        run("bcdf")
    check = dagster.AssetCheckKey(dagster.AssetKey(["toy", "letters"]), "counts")
    with open_history() as instance:
        failed_run, passed_run = instance.get_runs()
        history = instance.event_log_storage.get_asset_check_execution_history(check, limit=9)
    assert [record.status.value for record in history] == ["FAILED", "SUCCEEDED"]
    assert (failed_run.status, passed_run.status) == (
        dagster.DagsterRunStatus.FAILURE,
        dagster.DagsterRunStatus.SUCCESS,
    )
    assert failed_run.tags[FAILED_STAGE] == "letters"
    assert history[0].event and history[0].event.dagster_event
    result = history[0].event.dagster_event.asset_check_evaluation_data
    assert {name: value.value for name, value in result.metadata.items()} == {"value": 4, "reference": 10, "limit": 9}
    assert result.description and result.description.startswith("4 letters, 60 % fewer")
    assert len(materializations("toy", "letters")) == 2  # its page shows what has failed
    assert len(materializations("toy", "words")) == 1


@pytest.mark.parametrize("tags", [{"dagster/schedule_name": "weekly_schedule"}, {}])
def test_a_whole_run_of_the_schedule_promotes_its_model(weekly: Weekly, tags: dict[str, str]) -> None:
    run = weekly.run("schedule={promote: true}", loss=2.0)
    job = definitions(ConfiguredRun(run.config)).resolve_job_def("weekly")
    with open_history() as instance:
        assert job.execute_in_process(instance=instance, tags=tags).success
    promoted = materializations("weekly", "promoted")
    if not tags:  # someone has started it: who wants to promote it calls `cloze promote`
        assert promoted == []
        return
    artifact = run.artifact("pretrain")
    assert artifact and promoted[0].metadata["digest"].value == artifact.manifest.facts["checkpoint"]["digest"]
    assert [stage.action for stage in weekly.run("schedule={promote: true}").plan()] == ["skip"] * 3
