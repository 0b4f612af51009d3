import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloze.infra.planner import Run
from cloze.infra.status import print_status, results, statuses
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.examples.config import ExamplesConfig
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from tests.infra import toy_run as toy
from tests.infra.toy_run import ToyConfig

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.chdir(tmp_path)
    Path("source.txt").write_text("what letters reads")
    return lambda **configs: toy.toy_run(monkeypatch, "root", "source.txt", **configs)


def status(run: Run, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Stage -> its line, with single spaces between columns."""
    capsys.readouterr()
    print_status(run)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    return {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines[1:]}


def test_at_first_no_stage_is_started(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(make(), capsys)
    assert list(lines) == ["letters", "words", "pages"]
    assert lines["letters"].startswith("not started no output yet root/letters/")
    assert lines["pages"] == "waiting its inputs are not finished yet"


def test_a_finished_stage_has_counts_size_and_location(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    _, manifest = make(letters=ToyConfig(size=5000)).execute("letters")
    line = status(make(letters=ToyConfig(size=5000)), capsys)["letters"]
    assert line.startswith("done 0 s 2 letters; dropped 1 vowels 1")
    assert " kB root/letters/" in line  # two files of 5 kB and their records
    assert line.endswith(manifest.fingerprint)


def test_the_warnings_of_a_finished_stage_are_below_the_table(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(letters=ToyConfig(warning="letters.size: 9 cannot be reached"))
    assert "warning:" not in status(run, capsys)
    run.execute("letters")
    assert status(run, capsys)["warning:"] == "letters.size: 9 cannot be reached"


def test_an_interrupted_stage_has_the_number_of_its_parts(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_c(_: str, letter: str) -> None:
        if letter == "c":
            raise UserError("stopped")

    monkeypatch.setattr(toy, "before_part", stop_at_c)
    with pytest.raises(UserError):
        make().execute("letters")
    assert status(make(), capsys)["letters"].startswith("half-done 2 parts root/letters/")


def test_an_interrupted_training_has_its_newest_checkpoint(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    output = make().plan()[0].output
    assert output
    for step, last_file in ((900_000, "manifest.json"), (1_000_000, "manifest.json"), (1_100_000, "model.safetensors")):
        (output.location / f"checkpoints/step-{step:06d}-0123abcd/{last_file}").write_text("{}")
    assert status(make(), capsys)["letters"].startswith("half-done checkpoint of step 1,000,000 root/letters/")


KEYS = ["stage", "state", "reason", "location", "fingerprint", "bytes", "seconds", "counts", "drops", "progress"]
KEYS += ["owner", "warnings", "heldout", "scores", "metric", "scored_split", "overlap", "page", "checks"]


def plain(run: Run) -> dict[str, dict[str, Any]]:
    """Stage -> its status as JSON has it."""
    entries = [status.plain() for status in statuses(run)]
    assert all(list(stage) == KEYS for stage in entries)
    return {stage["stage"]: stage for stage in entries}


def test_a_status_has_the_same_keys_in_every_state(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(letters=ToyConfig(warning="letters.size: 9 cannot be reached"))
    nothing = {"seconds": None, "counts": None, "drops": None, "progress": None, "warnings": [], "heldout": None}
    before = plain(run)
    assert before["letters"].items() >= {**nothing, "state": "not started", "bytes": 0, "page": None}.items()
    waiting = {"state": "waiting", "location": None, "fingerprint": None, "bytes": None}
    assert before["pages"].items() >= {**nothing, **waiting}.items()
    _, manifest = run.execute("letters")
    letters = plain(run)["letters"]
    assert letters["state"] == "done" and letters["warnings"] == ["letters.size: 9 cannot be reached"]
    assert letters["location"] == f"{Path.cwd()}/root/letters/{manifest.fingerprint}"
    assert letters["fingerprint"] == manifest.fingerprint
    assert letters["counts"] == {"letters": 2} and letters["drops"] == {"vowels": 1}
    assert letters["seconds"] == manifest.seconds
    assert letters["bytes"] == sum(file.stat().st_size for file in Path("root/letters").rglob("*") if file.is_file())


def test_the_progress_of_an_interrupted_stage_is_its_parts_and_its_newest_checkpoint(make: Make) -> None:
    output = make().plan()[0].output
    assert output
    output.commit("b", {"letters/b.txt": b"b"})
    assert plain(make())["letters"]["progress"] == {"parts": 1, "checkpoint_step": None}
    (output.location / "checkpoints/step-000020-0123abcd/manifest.json").write_text("{}")
    letters = plain(make())["letters"]
    assert letters["state"] == "half-done" and letters["progress"] == {"parts": 1, "checkpoint_step": 20}


def test_a_stage_that_a_run_works_on_has_its_process_and_progress(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    def look(_: str, letter: str) -> None:
        if letter == "c":
            time.sleep(0.05)  # a few heartbeats
            shown.extend([status(make(), capsys)["letters"], plain(make())["letters"], make().plan()[0].reason])

    monkeypatch.setattr(toy, "before_part", look)
    monkeypatch.setattr("cloze.pipeline.core.leases._HEARTBEAT", 0.01)
    make().execute("letters")
    line, entry, reason = shown
    process = f"process {os.getpid()} on {socket.gethostname()} (since {entry['owner']['since']}, 2 of 3 letters done)"
    assert line.startswith(f"half-done at work: {process} root/letters/")
    assert entry["owner"].items() >= {"pid": os.getpid(), "done": 2, "total": 3, "unit": "letters"}.items()
    assert reason == f"waits for {process}, which is writing it"
    assert plain(make())["letters"]["owner"] is None


_MASKED = {"mlm_loss": 3.0, "mlm_accuracy": 0.4, "mlm_loss_baseline": 6.5, "mlm_accuracy_baseline": 0.05, "masked": 50}
_PAIRS = {"nsp_loss": 0.69, "nsp_accuracy": 0.5, "nsp_loss_baseline": 0.6931, "nsp_accuracy_baseline": 0.5}
_COUNTS = {"pairs": 10, "pairs_1": 5, "answers_1": 10}
EVALUATED = {"split": "heldout", "step": 1200, **_MASKED, **_PAIRS, **_COUNTS}


@pytest.mark.parametrize("complete", [True, False])
def test_the_newest_evaluation_is_printed_with_its_baselines_finished_or_not(
    make: Make, capsys: pytest.CaptureFixture[str], complete: bool
) -> None:
    run = make()
    vars(run.config)["examples"] = ExamplesConfig(objective="mlm+sop")
    output = run.plan()[0].output
    assert output
    rows = [EVALUATED | {"step": 900}, {"split": "train", "step": 1000, "loss": 7.0}, EVALUATED]
    lines = json_lines.encode(rows)
    if complete:
        output.finish([output.commit("checkpoint", {"metrics.jsonl": lines})], {}, {})
    else:
        (output.location / "metrics.jsonl").write_bytes(lines)
    capsys.readouterr()
    print_status(run)
    masked, pairs = (line for line in capsys.readouterr().out.splitlines() if line.startswith("letters, "))
    assert masked.startswith("letters, step 1,200: On held-out documents, masked-token accuracy is 40.0 % of 50")
    assert "reaches 5.0 % (loss 6.500). The model's loss is 53.8 % lower." in masked
    assert pairs.startswith("letters, step 1,200: Held-out sentence-order accuracy is 50.0 % of 10 pairs")
    assert pairs.endswith('It answers "swapped" for all 10 pairs.')
    assert len(list(results(run))) == (2 if complete else 0)
    assert plain(run)["letters"]["heldout"] == EVALUATED


def test_the_results_are_scores_and_the_reports_location(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    output = make().plan()[0].output
    assert isinstance(output, Output)
    part = output.commit("report", {"report.html": b"<html>"})
    scores = {
        "pretrained": {"accuracy": 0.75, "interval": [0.7, 0.8]},
        "random": {"accuracy": 0.5, "interval": [0.4, 0.6]},
        "majority": {"accuracy": 0.4, "interval": [0.3, 0.5]},
    }
    output.finish([part], {}, {}, facts={"scores": scores})
    assert list(results(make())) == [
        "letters: accuracy 0.750 (0.700 to 0.800); 0.500 from random weights, 0.400 for the majority class",
        f"letters: {make().page}",
    ]
    expected = {"scores": scores, "metric": "accuracy", "scored_split": "test", "page": f"{Path.cwd()}/root/toy.html"}
    assert plain(make())["letters"].items() >= expected.items()
    assert "letters:" in status(make(), capsys)


def test_the_score_without_texts_of_the_pretraining_is_next_to_that_of_all(make: Make) -> None:
    run = make()
    run.stages["letters"] = replace(run.stages["letters"], facts=OverlapFacts)
    overlap = {
        "splits": {"test": {"examples": 9, "too_short": 0, "overlapping": 1, "overlapping_texts": {"text": 1}}},
        "scores": {"all": {"accuracy": 0.75}, "without_overlap": {"accuracy": 0.7, "interval": [0.6, 0.8]}},
    }
    output = run.plan()[0].output
    assert isinstance(output, Output)
    output.finish([], {}, {}, facts=overlap)
    without = "0.700 without the 1 of 9 examples that shares 13 words with the pretraining text"
    assert list(results(run)) == [f"letters: accuracy 0.750 ({without})"]
    assert plain(run)["letters"]["overlap"] == overlap and plain(run)["words"]["overlap"] is None


@pytest.mark.parametrize(
    ("others", "line"),
    [
        ({}, ""),
        ({"bag_of_words": 0.1}, "; 0.100 for the bag of words baseline"),
        ({"random": -0.05, "majority": 0.0}, "; -0.050 from random weights, 0.000 for the majority class"),
    ],
)
def test_the_score_line_has_the_tasks_metric_its_split_and_only_the_baselines_that_exist(
    make: Make, others: dict[str, float], line: str
) -> None:
    output = make().plan()[0].output
    assert output
    values = {"pretrained": 0.5, **others}
    scores = {name: {"matthews": value, "interval": [value - 0.1, value + 0.1]} for name, value in values.items()}
    output.finish([], {}, {}, facts={"scores": scores, "metric": "matthews", "scored_split": "dev"})
    assert list(results(make())) == [f"letters: dev Matthews correlation 0.500 (0.400 to 0.600){line}"]


def test_a_task_without_an_interval_has_no_line(make: Make) -> None:
    output = make().plan()[0].output
    assert output
    output.finish([], {}, {}, facts={"scores": {"pretrained": {"pearson": 0.5}}, "metric": "pearson"})
    assert list(results(make())) == []


def test_each_extra_file_with_labels_has_a_line(make: Make) -> None:
    output = make().plan()[0].output
    assert output
    score = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    output.finish([], {}, {}, facts={"scores": {"pretrained": score}, "extra_scores": {"new": {"pretrained": score}}})
    line = "accuracy 0.500 (0.400 to 0.600)"
    assert list(results(make())) == [f"letters: {line}", f"letters: new {line}"]
