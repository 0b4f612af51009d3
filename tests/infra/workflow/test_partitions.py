"""A language times the date of a dump is a partition of a run."""

import json
from pathlib import Path

import dagster
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from cloze.infra import named_runs
from cloze.infra.fetch.download import MARKER
from cloze.infra.planner import Run
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import open_history
from cloze.infra.workflow.partitions import ConfiguredRun, key_of, read_run
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from tests.infra import toy_run as toy
from tests.paths import QUICKSTART

_LATIN = ["partition.language=la", "partition.date=20261101"]


@pytest.fixture
def file(folder: str, tmp_path: Path) -> str:
    """The quickstart for Latin and Scots, whose dumps are in `folder`."""
    config = tmp_path / "wiki.yaml"
    text = QUICKSTART.read_text().replace("name: quickstart", "name: wiki-{language}", 1)
    text = text.replace("[configs/quickstart/enwiki-excerpt.xml.bz2]", f'["{folder}/{{wiki}}/{{date}}/*.bz2"]')
    text = text.replace("root: runs ", f"root: {tmp_path}/root ").replace("language: en", 'language: "{language}"', 1)
    config.write_text(f"{text}\nschedule:\n  partitions: {{languages: [la, sco], dumps: '{folder}'}}\n")
    return str(config)


@pytest.fixture
def run(file: str, own_dagster: Path) -> ConfiguredRun:
    return read_run(file)


def write_dump(folder: str, wiki: str, date: str, files: dict[str, bytes], *, missing: int = 0) -> None:
    """The marker of a dump, and its files without the last `missing` bytes."""
    place = Location(folder) / wiki / date
    for name, content in files.items():
        (place / name).write_bytes(content[: len(content) - missing])
    listed = [{"name": name, "bytes": len(content), "sha1": "0"} for name, content in files.items()]
    (place / MARKER).write_text(json.dumps({"wiki": wiki, "date": date, "files": listed}))


def tick(run: ConfiguredRun, cursor: str | None = None) -> tuple[list[str | None], str | None, str | None]:
    """What the sensor of new dumps requests, why it requests nothing, and its next cursor."""
    with open_history() as instance:
        repository = definitions(run).get_repository_def()
        with (
            dagster.build_sensor_context(instance, cursor, repository_def=repository) as context,
            partition_loading_context(dynamic_partitions_store=instance),  # as the daemon's context has it
        ):
            found = repository.get_sensor_def("wiki_new_dump").evaluate_tick(context)
    return [request.partition_key for request in found.run_requests or ()], found.skip_message, found.cursor


def test_a_partition_is_filled_in_and_is_part_of_the_stored_configuration(file: str, folder: str) -> None:
    config = named_runs.read(file, _LATIN)
    assert config.extract and (config.name, config.base_name) == ("wiki-la", "wiki")
    assert config.extract.sources[0].files == [f"{folder}/lawiki/20261101/*.bz2"]
    assert config.extract.sources[0].language == "la"
    named_runs.store(config)
    stored = named_runs.read("wiki-la", root=config.root)
    assert stored.extract and stored.extract.sources[0] == config.extract.sources[0]
    assert (stored.name, stored.partition) == (config.name, config.partition)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "has schedule.partitions: add a language and the date of a dump, such as partition.language=la partition"),
        (["partition.language=en", "partition.date=20261101"], "partition.language is en; give one of la, sco"),
        (["partition.language=la", "partition.date=2026"], "partition.date is 2026: String should match pattern"),
        ([*_LATIN, "name=wiki"], "name is wiki for all languages; write wiki-{language}"),
        (
            [*_LATIN, 'name="{language}-wiki"'],
            "name is {language}-wiki for all languages; write it with -{language} at",
        ),
        ([*_LATIN, "name=wiki-{date}-{language}"], "name contains {date}; leave it out"),
    ],
)
def test_a_wrong_partition_is_an_error_of_one_line(file: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        named_runs.read(file, overrides)
    assert message in str(caught.value)


def test_every_asset_has_a_partition_for_each_language_and_date(run: ConfiguredRun) -> None:
    found = definitions(run)
    assert found.resolve_job_def("wiki").partitions_def == run.partitions
    graph = found.resolve_asset_graph()
    assert {graph.get(key).partitions_def for key in graph.get_all_asset_keys()} == {run.partitions}
    of_scots = run.of(key_of("sco", "20261201"))
    assert of_scots.extract and of_scots.name == "wiki-sco"
    assert of_scots.extract.sources[0].files[0].endswith("/scowiki/20261201/*.bz2")


def test_a_new_dump_is_a_partition_and_a_run_once_it_is_whole(run: ConfiguredRun, folder: str) -> None:
    files = {"lawiki-1.xml.bz2": b"pages", "lawiki-2.xml.bz2": b"more pages"}
    assert tick(run)[:2] == ([], "no new dump: none is finished")
    (Location(folder) / "lawiki/20261101/lawiki-1.xml.bz2").write_bytes(b"pages")  # the fetch is at work
    assert tick(run)[0] == []
    write_dump(folder, "lawiki", "20261101", files, missing=1)  # a copy that has brought the marker first
    assert tick(run)[0] == []
    write_dump(folder, "lawiki", "20261001", files)  # an older one, as well
    write_dump(folder, "lawiki", "20261101", files)
    requested, _, cursor = tick(run)
    assert requested == ["20261101|la"]
    assert tick(run, cursor)[:2] == ([], "no new dump: the newest of la is 20261101")
    write_dump(folder, "scowiki", "20261101", {"scowiki.xml.bz2": b"pages"})
    assert tick(run, cursor)[0] == ["20261101|sco"]
    with open_history() as instance:
        assert instance.get_dynamic_partitions("wiki_dates") == ["20261001", "20261101"]  # old ones for a backfill


def test_a_tick_of_the_schedule_requests_the_newest_dump_of_each_language(run: ConfiguredRun, folder: str) -> None:
    def requested() -> tuple[list[str | None], str | None]:
        with open_history() as instance:
            repository = definitions(run).get_repository_def()
            with dagster.build_schedule_context(instance, repository_def=repository) as context:
                found = repository.get_schedule_def("wiki_schedule").evaluate_tick(context)
        return [request.partition_key for request in found.run_requests or ()], found.skip_message

    assert requested() == ([], "no dump is finished")
    for date in ("20261001", "20261101"):
        write_dump(folder, "lawiki", date, {"a.xml.bz2": b"pages"})
    assert requested() == (["20261101|la"], None)


def test_the_command_line_tells_the_same_history_of_its_partition(
    own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source.txt").write_text("text")
    partitions = "schedule.partitions={languages: [la, sco], dumps: dumps}"
    toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt")
    for language in ("la", "sco"):
        overrides = [f"partition.language={language}", "partition.date=20261101"]
        config = named_runs.read(
            str(QUICKSTART), [partitions, "name=toy-{language}", f"root={tmp_path}/root", *overrides]
        )
        materialize(Run(config), "cloze run")
    key = dagster.AssetKey(["toy", "words"])
    with open_history() as instance:
        assert instance.get_materialized_partitions(key) == {"20261101|la", "20261101|sco"}
        [tags, _] = [run.tags for run in instance.get_runs()]
    assert tags["dagster/partition/language"] == "sco"


def test_what_other_machines_have_finished_of_each_language_is_reported_with_its_date(
    own_dagster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source.txt").write_text("text")
    toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt")
    file, text = tmp_path / "toy.yaml", QUICKSTART.read_text().replace("name: quickstart", "name: toy-{language}", 1)
    text = text.replace("root: runs ", f"root: {tmp_path}/root ")
    file.write_text(f"{text}\nschedule:\n  partitions: {{languages: [la, sco], dumps: dumps}}\n")

    def finish(language: str, date: str) -> None:
        """As `cloze submit` does: without Dagster."""
        run = Run(named_runs.read(str(file), [f"partition.language={language}", f"partition.date={date}"]))
        for stage in run.stages:
            run.execute(stage)

    def look() -> str | None:
        with open_history() as instance, dagster.build_sensor_context(instance) as context:
            return (
                definitions(read_run(str(file))).resolve_sensor_def("toy_outputs").evaluate_tick(context).skip_message
            )

    def known() -> set[str]:
        with open_history() as instance:
            assert set(instance.get_dynamic_partitions("toy_dates")) == {"20261101", "20261201"} - missing
            return instance.get_materialized_partitions(dagster.AssetKey(["toy", "words"]))

    missing = {"20261201"}
    finish("la", "20261101")
    finish("sco", "20261101")
    assert look() == "Reported: letters, words, pages, letters, words, pages."
    assert known() == {"20261101|la", "20261101|sco"}
    assert look() == "All outputs are known."
    missing = set()
    finish("la", "20261201")  # the same output, as the toy run reads no dump
    assert look() == "Reported: letters, words, pages."
    assert known() == {"20261101|la", "20261101|sco", "20261201|la"}
