"""A run that trains vectors on pairs: its status, page, vectors and exports."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from cloze.infra.cli import main
from cloze.infra.planner import Run
from cloze.infra.ray_session import LazyRaySession
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from tests.infra.mood_task import MOODS, WORDS, write_task
from tests.infra.test_embed import vectors_of
from tests.infra.test_export import mistake
from tests.training.finetune.tasks.trained import train_in_process

TEXTS = ["a good day", "bad night", "a a a night night night night"]
TASK = "kind: contrastive, file: pairs.jsonl, init: models/tiny, learning_rate: 1e-3, epochs: 2, batch_size: 8"


class NoRay(LazyRaySession):
    def start(self) -> None:
        """The stages of these tests run in this process."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, single_process_group: None) -> Iterator[Path]:
    """A folder with own.yaml, whose tasks are finished."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("cloze.training.finetune.stage._train", train_in_process)
        write_task("tiny")
        rows = [
            {"text": f"{mood} {word}", "text_b": f"a {mood} a {word}", "split": split}
            for split, copies in (("train", 6), ("dev", 1), ("test", 1))
            for mood, word in [(mood, word) for mood in MOODS for word in WORDS] * copies
        ]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tasks = [
            f"  - {{name: {name}, max_seq_length: 6, {more}{TASK}}}\n"
            for name, more in (("cls", "pooling: cls, compare_random: true, "), ("words", "special_tokens: false, "))
        ]
        Path("own.yaml").write_text("name: own\nfinetune:\n" + "".join(tasks))
        with Run(load(RunConfig, Path("own.yaml")), ray=NoRay()) as run:
            for name in ("cls", "words"):
                for stage in (run.stage(f"finetune-{name}").reads["encoded"].stage, f"finetune-{name}"):
                    run.execute(stage)
        yield folder


@pytest.fixture(autouse=True)
def in_the_folder(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)


def test_status_and_the_page_say_what_was_found_and_what_chance_is(capsys: Any) -> None:
    assert main(["status", "own.yaml"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("finetune-cls: ")]
    assert lines[0].startswith("finetune-cls: MRR ") and "for the bag of words baseline" in lines[0]
    assert lines[1] == "finetune-cls: in random order MRR is 0.521"
    assert main(["report", "own.yaml"]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert "Test MRR" in page and "Dev MRR" in page and "Accuracy@1 " in page
    assert "looked for among the 4 of the test split: in random order MRR is 52.1\N{NO-BREAK SPACE}%." in page


def test_the_vectors_of_embed_and_of_the_export_are_those_that_were_trained(capsys: Any, monkeypatch: Any) -> None:
    found, notes = vectors_of(capsys, monkeypatch, TEXTS, "own.yaml", "--task", "cls")
    assert notes == "cloze: cut to 6 tokens: 1 of the texts\n"
    same, _ = vectors_of(
        capsys, monkeypatch, TEXTS, "own.yaml", "--task", "cls", "--pooling", "cls", "--max-length", "6"
    )
    assert found == same
    assert main(["export", "own.yaml", "--task", "cls", "--format", "sentence-transformers", "--to", "exported"]) == 0
    model = SentenceTransformer("exported", device="cpu")
    assert model.max_seq_length == 6
    np.testing.assert_allclose(model.encode(TEXTS), found, atol=1e-5)
    assert main(["export", "own.yaml", "--task", "cls", "--to", "plain"]) == 0
    capsys.readouterr()
    of_folder, _ = vectors_of(capsys, monkeypatch, TEXTS[:2], "./plain", "--pooling", "cls")
    np.testing.assert_allclose(of_folder, found[:2], atol=1e-6)

    of_words, _ = vectors_of(capsys, monkeypatch, TEXTS, "own.yaml", "--task", "words")
    expected, _ = vectors_of(
        capsys, monkeypatch, TEXTS, "own.yaml", "--task", "words", "--pooling", "mean", "--without-special-tokens"
    )
    assert of_words == expected


def test_its_model_can_be_inspected() -> None:
    assert main(["inspect", "own.yaml", "a good day", "--task", "cls", "--to", "page.html"]) == 0
    assert "good" in Path("page.html").read_text()


def test_predict_prints_the_cosine_of_each_pair(capsys: Any, monkeypatch: Any) -> None:
    [a, b, _], _ = vectors_of(capsys, monkeypatch, TEXTS, "own.yaml", "--task", "cls")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TEXTS[0]}\t{TEXTS[1]}\n{TEXTS[0]}\t{TEXTS[0]}\n"))
    assert main(["predict", "own.yaml", "--task", "cls"]) == 0
    different, same = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert different == {"similarity": pytest.approx(cosine, abs=1e-5)}
    assert same == {"similarity": pytest.approx(1.0, abs=1e-5)}
    monkeypatch.setattr("sys.stdin", io.StringIO("a good day\n"))
    assert "standard input:1: is not text TAB text_b" in mistake(capsys, "predict", "own.yaml", "--task", "cls")


def test_what_cannot_be_expressed_or_compared_is_an_error_of_one_line(capsys: Any) -> None:
    export = ["export", "own.yaml", "--to", "other", "--task"]
    line = mistake(capsys, *export, "words", "--format", "sentence-transformers")
    assert line.startswith("--task words: was trained with special_tokens: false, which sentence-transformers cannot")
    assert "cls: is a task of another kind" in mistake(capsys, "compare", "own.yaml", "cls", "--labels", "4")
    assert not Path("other").exists()
