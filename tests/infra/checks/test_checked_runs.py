"""The toy run with checks: a bad input stops it as often as it is run, until it is accepted or repaired."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloze.infra.checks import figures
from cloze.infra.checks.records import read_passed, read_results
from cloze.infra.checks.results import ChecksFailed, require_passed
from cloze.infra.cli import explain
from cloze.infra.planner import Run
from cloze.infra.status import print_status, statuses
from cloze.infra.workflow.command import materialize
from tests.infra import toy_run as toy
from tests.infra.toy_run import ToyConfig

CHECKS = {"letters": (figures.counts_check("letters"), figures.drop_rates_check("letters"))}
Make = Callable[..., Run]


@pytest.fixture
def make(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Creates the toy run, whose first stage has checks. Its settings are the same for any `text`, its input."""

    def make(text: str = "bcdfghjklm", limits: dict[str, Any] | None = None, **configs: ToyConfig) -> Run:
        source = tmp_path / "source.txt"
        source.write_text(text)
        monkeypatch.setattr(toy, "letters_of", letters_of)
        return toy.toy_run(
            monkeypatch, f"{folder}/root", source, CHECKS, [f"checks={json.dumps(limits or {})}"], **configs
        )

    return make


def letters_of(config: ToyConfig, inputs: Mapping[str, Any]) -> str:
    """Those of the file that the first stage reads."""
    return inputs["data"].location.read_text() if "data" in inputs else config.parts


def execute(run: Run) -> list[str]:
    """Executes as `cloze run` does; returns what was done."""
    actions: list[str] = []
    for name in run.stages:
        actions.append(run.execute(name)[0].action)
        require_passed(run.check_results(name))
    run.remember_passed()
    return actions


def test_a_first_run_passes_and_says_that_there_is_no_earlier_one(make: Make) -> None:
    run = make()
    execute(run)
    [counts, rates] = run.check_results("letters")
    assert counts.passed and counts.message == "no earlier run has passed" and counts.value == 10
    assert rates.passed and run.check_results("words") == []


def test_bad_input_stops_the_run_before_the_next_stage_as_often_as_it_is_run(make: Make) -> None:
    execute(make())
    for expected in ("run", "skip"):
        run = make("bcdf")
        assert run.execute("letters")[0].action == expected
        with pytest.raises(ChecksFailed, match=r"letters: 4 letters, 60 % fewer than 10 in the last run that passed"):
            require_passed(run.check_results("letters"))
        with pytest.raises(ChecksFailed, match=r"checks\.max_decrease=0\.6$"):
            run.execute("words")
        run.remember_passed()
        assert run.artifact("words") is None
    assert read_passed(run.root, "toy")["letters"].figures["counts"][0].value == 10
    [failed] = [result for result in run.check_results("letters") if not result.passed]
    assert (failed.value, failed.reference, failed.limit) == (4, 10, 9)


def test_an_accepted_output_becomes_the_reference(make: Make) -> None:
    execute(make())
    execute(make("bcdf", {"max_decrease": 0.6}))
    execute(make("bcdf"))
    execute(make("bcdfg"))
    with pytest.raises(ChecksFailed):
        execute(make("b"))
    execute(make("b", {"max_decrease": None}))


def test_a_run_whose_later_stage_fails_is_no_reference(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(make())

    def fail(stage: str, _: str) -> None:
        if stage == "pages":
            raise OSError("no space")

    monkeypatch.setattr(toy, "before_part", fail)
    with pytest.raises(OSError, match="no space"):
        execute(make("bcdfghjkl", words=ToyConfig(parts="xyz"), pages=ToyConfig(parts="xyz")))
    assert read_passed(make().root, "toy")["letters"].figures["counts"][0].value == 10


def test_other_settings_are_not_compared(make: Make) -> None:
    execute(make())
    run = make("bcdf", letters=ToyConfig(size=2))
    execute(run)
    assert run.check_results("letters")[0].message.startswith("not compared: the settings are not those")


def test_a_drop_reason_that_is_new_is_compared_with_zero(make: Make) -> None:
    execute(make("bcdfghjklm"))
    with pytest.raises(ChecksFailed, match=r"letters dropped as vowels: 10 %, 0 % in the last run that passed"):
        execute(make("bcdfghjklma"))


def test_status_shows_the_failed_check(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    execute(make())
    with pytest.raises(ChecksFailed):
        execute(make("bcdf"))
    print_status(make("bcdf"))
    assert "check failed: letters: 4 letters, 60 % fewer than 10" in capsys.readouterr().out
    letters, words, _ = (status.plain() for status in statuses(make("bcdf")))
    assert [check["passed"] for check in letters["checks"]] == [False, True]
    assert words["state"] == "not started" and words["checks"] == []


def test_the_results_are_stored_for_the_report(make: Make) -> None:
    run = make()
    execute(run)
    assert read_results(run.root, "toy")["letters"] == {
        "fingerprint": run.fingerprint("letters"),
        "results": [result.plain for result in run.check_results("letters")],
    }


@pytest.mark.parametrize("folder", ["local"], indirect=True)
def test_the_command_ends_with_the_line_of_the_check_and_the_report_shows_it(make: Make) -> None:
    assert materialize(make(), "cloze run toy") == 0
    run = make("bcdf")
    with pytest.raises(ChecksFailed) as failed:
        materialize(run, "cloze run toy")
    assert explain(failed.value) == str(failed.value)
    page = run.page.read_text()
    assert "Check failed: letters: 4 letters, 60 % fewer than 10 in the last run that passed" in page
    assert read_passed(run.root, "toy")["letters"].figures["counts"][0].value == 10
