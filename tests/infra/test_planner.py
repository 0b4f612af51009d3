import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloze.infra import planner
from cloze.infra.planner import Run
from cloze.pipeline.core import leases
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.lease_files import Owner
from cloze.pipeline.core.leases import Lease
from cloze.pipeline.core.storage import Location
from tests.infra import toy_run as toy
from tests.infra.toy_run import ToyConfig

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Creates the toy run, with other settings for some stages; its root is a folder."""
    (tmp_path / "source.txt").write_text("what letters reads")
    return lambda **configs: toy.toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt", **configs)


@pytest.fixture
def make_anywhere(folder: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The same with its root on the local disk, and again on S3."""
    return lambda **configs: toy.toy_run(monkeypatch, f"{folder}/root", tmp_path / "source.txt", **configs)


def actions(run: Run) -> dict[str, str]:
    return {planned.stage.name: planned.action for planned in run.plan()}


def reasons(run: Run) -> dict[str, str]:
    return {planned.stage.name: planned.reason for planned in run.plan()}


def execute_all(run: Run) -> dict[str, str]:
    return {name: run.execute(name)[0].action for name in run.stages}


def files(run: Run) -> dict[str, bytes]:
    """Every file of the stages' outputs, without the manifests and records."""
    found = [file for name in run.stages for file in (run.root / name).files() if "letters/" in file.uri]
    return {file.uri.removeprefix(run.root.uri): file.read_bytes() for file in found if file.suffix == ".txt"}


def test_a_first_run_executes_every_stage_and_a_second_none(make_anywhere: Make) -> None:
    assert actions(make_anywhere()) == {"letters": "run", "words": "run", "pages": "wait"}
    assert execute_all(make_anywhere()) == {"letters": "run", "words": "run", "pages": "run"}
    assert (
        actions(make_anywhere())
        == execute_all(make_anywhere())
        == {"letters": "skip", "words": "skip", "pages": "skip"}
    )
    assert all(reason.endswith("UTC, nothing changed") for reason in reasons(make_anywhere()).values())


def test_a_planned_stage_names_the_stages_that_it_waits_for(make: Make, tmp_path: Path) -> None:
    def waits(run: Run) -> list[tuple[str, ...]]:
        return [planned.waits_for for planned in run.plan()]

    assert waits(make()) == [(), (), ("words",)]
    make().execute("letters")
    make().execute("words")
    assert waits(make()) == [(), (), ()]
    (tmp_path / "source.txt").unlink()
    assert waits(make()) == [(), ("letters",), ("words", "letters")]


def test_planning_writes_no_output(make: Make) -> None:
    make().plan()
    assert not [file for file in make().root.files() if "/sources/" not in file.uri]


def test_a_stage_receives_its_inputs_by_name(make: Make) -> None:
    execute_all(make())
    artifacts = [make().artifact(name) for name in make().stages]
    assert [artifact and artifact.manifest.facts["inputs"] for artifact in artifacts] == [
        ["data"],
        ["letters"],
        ["checkpoint", "letters"],
    ]


def test_the_plan_names_the_key_that_changed(make: Make) -> None:
    execute_all(make())
    changed = make(words=ToyConfig(size=7))
    assert actions(changed) == {"letters": "skip", "words": "run", "pages": "wait"}
    assert reasons(changed)["words"] == "words.size: 1 -> 7"


def test_the_plan_names_the_input_that_changed(make: Make) -> None:
    execute_all(make())
    changed = make(letters=ToyConfig(parts="xyz"))
    assert reasons(changed)["letters"] == 'letters.parts: "abc" -> "xyz"'
    assert reasons(changed)["words"] == "input letters changed"


def test_the_plan_notices_another_source_file(make: Make, tmp_path: Path) -> None:
    execute_all(make())
    (tmp_path / "source.txt").write_text("something else")
    assert reasons(make())["letters"] == "input data changed"
    (tmp_path / "source.txt").write_text("what letters reads")
    assert actions(make())["letters"] == "skip"


def test_the_plan_names_a_changed_version_of_a_stage(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    execute_all(make())
    monkeypatch.setattr(toy, "VERSION", 2)
    assert reasons(make())["letters"] == "the stage's version changed: 1 -> 2"
    monkeypatch.setattr(toy, "VERSION_REASON", "letters are sorted")
    assert reasons(make())["letters"] == "the stage's version changed: 1 -> 2 (letters are sorted)"


def test_a_run_of_another_name_names_a_changed_version(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    execute_all(make_anywhere())
    monkeypatch.setattr(toy, "VERSION", 3)
    run = make_anywhere()
    (run.root / "runs/toy.json").delete()
    assert reasons(run)["letters"] == "the stage's version changed: 1 -> 3"
    for artifact in (run.root / "letters").folders():
        (artifact / "manifest.json").write_text("damaged")
    assert reasons(make_anywhere())["letters"] == "no output yet"


def test_compute_settings_change_no_output(make: Make) -> None:
    execute_all(make())
    assert actions(make(letters=ToyConfig(workers=64))) == {"letters": "skip", "words": "skip", "pages": "skip"}


def test_going_back_to_an_earlier_configuration_finds_its_output(make: Make) -> None:
    execute_all(make())
    execute_all(make(letters=ToyConfig(parts="xyz")))
    assert actions(make()) == {"letters": "skip", "words": "skip", "pages": "skip"}


def test_a_stage_that_reads_a_checkpoint_is_run_again_only_when_its_digest_changed(make: Make) -> None:
    execute_all(make())
    same = make(words=ToyConfig(size=9))  # another fingerprint, the same digest
    assert actions(same)["pages"] == "wait"
    assert same.execute("words")[0].action == "run"
    assert actions(same)["pages"] == "skip"


def test_an_interrupted_stage_continues_from_its_parts_with_the_same_result(
    make_anywhere: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def stop_at_b(_: str, letter: str) -> None:
        started.append(letter)
        if letter == "b" and started.count("b") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(toy, "before_part", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        make_anywhere().execute("letters")
    assert actions(make_anywhere())["letters"] == "continue"
    planned, manifest = make_anywhere().execute("letters")
    assert planned.action == "continue" and started == ["a", "b", "b", "c"]
    assert (manifest.counts, manifest.drops) == ({"letters": 2}, {"vowels": 1})
    continued = files(make_anywhere())
    make_anywhere().execute("letters", force=True)
    assert files(make_anywhere()) == continued != {}


def test_force_runs_a_stage_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    execute_all(make())
    started: list[tuple[str, str]] = []
    monkeypatch.setattr(toy, "before_part", lambda stage, letter: started.append((stage, letter)))
    assert [(planned.action, planned.reason) for planned in make().plan(force=["words"])][1] == ("run", "forced")
    assert make().execute("words", force=True)[0].action == "run"
    assert started == [("words", "a"), ("words", "b"), ("words", "c")]
    assert actions(make())["pages"] == "skip"


def test_a_deleted_output_is_created_again(make_anywhere: Make) -> None:
    execute_all(make_anywhere())
    output = make_anywhere().plan_stage(make_anywhere().stages["words"]).output
    assert output
    output.location.delete()
    assert reasons(make_anywhere())["words"] == "its output was deleted"
    assert execute_all(make_anywhere()) == {"letters": "skip", "words": "run", "pages": "skip"}


@pytest.mark.parametrize("cut", [False, True])
def test_a_missing_file_is_created_again_and_the_others_are_not(
    make: Make, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    execute_all(make())
    whole = files(make())
    output = make().plan_stage(make().stages["words"]).output
    assert output
    file = output.location / "letters/b.txt"
    file.write_bytes(b"") if cut else file.delete()
    assert reasons(make())["words"] == "letters/b.txt is missing or truncated; continues from the other parts"
    started: list[str] = []
    monkeypatch.setattr(toy, "before_part", lambda _, letter: started.append(letter))
    assert execute_all(make()) == {"letters": "skip", "words": "continue", "pages": "skip"}
    assert started == ["b"]
    assert files(make()) == whole


def test_a_skipped_stage_deletes_what_an_interrupted_attempt_left(make_anywhere: Make) -> None:
    run = make_anywhere()
    execute_all(run)
    artifact = run.artifact("words")
    assert artifact
    left = [artifact.location / "scratch", artifact.location / "scratch-0123456789ab"]  # the second of an older version
    for folder in left:
        (folder / "rows").write_text("half")
    assert execute_all(make_anywhere())["words"] == "skip"
    assert not any(folder.exists() for folder in left)


@pytest.mark.parametrize("moment", ["before its lease", "after its lease"])
def test_a_stage_whose_output_another_run_begins_to_write_again_has_a_manifest(
    make: Make, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one, with --force, has the lease as soon as this one does not need it."""
    if moment == "before its lease":
        execute_all(make())
    other, errors, working = make(), list[Exception](), threading.Event()
    thread = threading.Thread(target=lambda: force_letters(other, errors))

    def interfere(*_: object) -> None:
        if not thread.ident:
            thread.start()
            working.wait(20)

    def before_part(*_: str) -> None:
        if threading.current_thread() is thread:
            working.set()
            time.sleep(0.2)

    @contextmanager
    def hold_lease(place: Location, on_wait: Callable[[Owner], None]) -> Iterator[Lease | None]:
        with leases.hold_lease(place, on_wait) as lease:
            yield lease
        interfere()

    monkeypatch.setattr(toy, "before_part", before_part)
    monkeypatch.setattr(leases, "_POLL", 0.05)
    if moment == "before its lease":
        monkeypatch.setattr(planner, "delete_abandoned", interfere)
    else:
        monkeypatch.setattr(planner, "hold_lease", hold_lease)
    _, manifest = make().execute("letters", on_wait=lambda _: None)
    thread.join(20)
    assert manifest.counts == {"letters": 2} and not errors and working.is_set()


def force_letters(run: Run, errors: list[Exception]) -> None:
    try:
        run.execute("letters", force=True, on_wait=lambda _: None)
    except Exception as error:
        errors.append(error)


def test_a_stage_whose_input_is_not_finished_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="words: its input letters is not finished; run that stage first"):
        make().execute("words")
    with pytest.raises(UserError, match="pages: its inputs are not finished"):
        make().execute("pages", force=True)


def test_until_takes_a_stage_and_all_before_it(make: Make) -> None:
    assert [planned.stage.name for planned in make().plan(until="words")] == ["letters", "words"]
    with pytest.raises(UserError, match="word: is not a stage of this run; its stages are letters, words, pages"):
        make().until("word")


def test_a_missing_source_is_an_error_before_any_work(make: Make, tmp_path: Path) -> None:
    (tmp_path / "source.txt").unlink()
    with pytest.raises(UserError, match=r"source\.txt: no such file"):
        make().check()
    assert [planned.action for planned in make().plan()] == ["wait", "wait", "wait"]


def test_a_stages_progress_is_reported_under_its_name(make: Make) -> None:
    reported: list[tuple[object, ...]] = []
    with Run(make().config, progress=lambda *report: reported.append(report)) as run:
        run.execute("letters")
    assert reported == [("letters", done, 3, "letters", "") for done in (1, 2, 3)]


def test_two_runs_share_the_outputs_of_equal_stages(make: Make) -> None:
    execute_all(make())
    other = Run(make().config.model_copy(update={"name": "other"}))
    assert actions(other) == {"letters": "skip", "words": "skip", "pages": "skip"}
    assert Location(other.root.uri) == make().root


@pytest.mark.parametrize(
    ("file", "times", "finishes"), [("s3://b/a", 1, True), ("s3://b/a", 2, False), ("a", 1, False)]
)
def test_a_file_on_s3_that_seems_damaged_is_read_once_more(
    make: Make, monkeypatch: pytest.MonkeyPatch, file: str, times: int, finishes: bool
) -> None:
    failures = [DamagedFile(f"{file}: is damaged")] * times

    def fail(*_: str) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(toy, "before_part", fail)
    if finishes:
        assert make().execute("letters")[0].action == "run"
    else:
        with pytest.raises(DamagedFile):
            make().execute("letters")
