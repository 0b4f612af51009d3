"""Several labels at once: lists, texts and 0/1 columns, errors, the loss of transformers, and a whole training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.multilabel import Multilabel, MultilabelConfig
from tests.training.finetune.tasks.trained import SETTINGS, Trained, task_of_files, train

ROWS = [
    ("a b", ["x", "y"], "train"),
    ("c", [], "train"),
    ("a", ["y"], "dev"),
    ("b", ["x"], "test"),
    ("d", [], "test"),
]
LABELS = [("x", "y"), (), ("y",), ("x",), ()]


def config(**settings: Any) -> MultilabelConfig:
    files = {} if "file" in settings else {"files": {"train": "x"}}
    return MultilabelConfig(**{**SETTINGS, **files, **settings})


def read(path: Path, text: str, **settings: Any) -> Multilabel:
    path.write_text(text)
    return task_of_files(config(file="x", **settings), {"data": path})


def jsonl(rows: list[tuple[str, Any, str]]) -> str:
    return "".join(json.dumps({"text": a, "labels": b, "split": c}) + "\n" for a, b, c in rows)


def test_labels_are_lists_in_json_lines_and_parquet(tmp_path):
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": a, "labels": b, "split": c} for a, b, c in ROWS]), parquet)
    lines = read(tmp_path / "a.jsonl", jsonl(ROWS))
    for task in (lines, task_of_files(config(file="x"), {"data": parquet})):
        assert [one.label for one in task.examples] == LABELS
        assert task.labels == ["x", "y"] and task.scored_split == "test"
    assert lines.facts()["labels"] == {"train": {"x": 1, "y": 1}, "dev": {"y": 1}, "test": {"x": 1}}


@pytest.mark.parametrize("separator", [",", ";", " | "])
def test_labels_are_a_text_with_a_separator(tmp_path, separator):
    rows = [f"{text}\t{separator.join(labels)}\t{split}" for text, labels, split in ROWS]
    task = read(tmp_path / "a.tsv", "text\tlabels\tsplit\n" + "\n".join(rows), columns={"separator": separator})
    assert [one.label for one in task.examples] == LABELS


def test_labels_are_columns_of_0_and_1(tmp_path):
    rows = [f"{text},{int('x' in labels)},{int('y' in labels)},{split}" for text, labels, split in ROWS]
    task = read(tmp_path / "a.csv", "text,x,y,split\n" + "\n".join(rows), columns={"labels": ("x", "y")})
    assert [one.label for one in task.examples] == LABELS


@pytest.mark.parametrize("labels", [None, "", -1])
def test_a_test_part_without_any_label_is_unlabelled(tmp_path, labels):
    rows = [row if row[2] != "test" else (row[0], labels, "test") for row in ROWS]
    task = read(tmp_path / "a.jsonl", jsonl(rows))
    assert [one.label for one in task.examples[-2:]] == [None, None] and task.scored_split == "dev"


def test_pairs_of_texts(tmp_path):
    text = "text,more,labels,split\n" + "".join(
        f"a,b,{label},{split}\n" for label, split in (("x", "train"), ("", "dev"))
    )
    task = read(tmp_path / "a.csv", text, columns={"text_b": "more"})
    assert [one.text_b for one in task.examples] == ["b", "b"]
    assert task.input_names(task.config, {}) == ("text", "text_b")


def test_one_file_is_divided_by_the_rarest_label(tmp_path):
    labels = [["common", "rare"] if number % 5 == 0 else ["common"] for number in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "labels": found}) + "\n" for found in labels))
    task = task_of_files(config(file="x"), {"data": path})
    counts = task.facts()["labels"]
    assert {split: counts[split]["rare"] for split in counts} == {"train": 16, "dev": 2, "test": 2}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", ["z"], "dev"), r"a\.jsonl:6: the label 'z' of dev is not in train; correct it or add examples there"),
        (("a", None, "dev"), r"a\.jsonl:6: labels is None; write a list of labels, or labels separated by ','"),
        (("a", {"x": 1}, "train"), r"a\.jsonl:6: labels is \{'x': 1\}; write a list"),
        (("a", ["x", None], "train"), r"a\.jsonl:6: labels is \['x', None\]; write a list"),
        (("a", "x,,y", "train"), r"a\.jsonl:6: labels is 'x,,y'; write a list"),
        ((" ", ["x"], "train"), r"a\.jsonl:6: text is empty; fill it in .*, or set skip_invalid: true"),
        (("a", ["x"], "valid"), r"a\.jsonl:6: split is 'valid'; write train, dev or test"),
    ],
)
def test_an_invalid_row_is_an_error_with_the_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.jsonl", jsonl([*ROWS, row]))
    assert "\n" not in str(caught.value)


def test_a_column_with_other_values_than_0_and_1_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv:3: y is '2'; write 1 or 0"):
        read(tmp_path / "a.csv", "text,x,y,split\na,1,1,train\na,0,2,train\n", columns={"labels": ("x", "y")})


def test_invalid_rows_are_skipped_and_counted_on_request(tmp_path):
    rows = jsonl([*ROWS, ("a", ["z"], "dev"), ("", ["x"], "dev"), ("a", 3.5, "train")]) + "{\n"
    task = read(tmp_path / "a.jsonl", rows, skip_invalid=True)
    assert [one.label for one in task.examples] == LABELS
    assert task.facts()["skipped"] == {
        "unreadable row": 1,
        "empty text": 1,
        "invalid labels": 1,
        "unknown label": 1,
    }


def test_the_loss_is_that_of_transformers(tmp_path):
    task = read(tmp_path / "a.jsonl", jsonl(ROWS))
    data: Any = task.encode(build_tokenizer([*SPECIAL_TOKENS, "a", "b"])).splits["train"]
    logits = torch.randn(2, 2, generator=torch.manual_seed(0))
    rows = np.array([1, 0])
    expected = torch.nn.BCEWithLogitsLoss()(logits, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(task.loss(logits, data, rows) / task.loss_terms(data, rows), expected)
    metrics = task.evaluate(task.answers(logits, data, rows), encoded_in_order(data, rows))
    assert metrics["loss"] == pytest.approx(expected.item())


def encoded_in_order(data: Any, rows: np.ndarray) -> Any:
    return type(data)(data.texts, data.targets[rows])


@pytest.mark.parametrize(("threshold", "predicted"), [(0.5, ["y"]), (0.3, ["x", "y"]), (0.9, [])])
def test_a_label_is_predicted_above_the_threshold(tmp_path, threshold, predicted):
    task = read(tmp_path / "a.jsonl", jsonl(ROWS), threshold=threshold)
    [row] = task.predictions(task.examples[2:3], [np.array([0.4, 0.6], np.float32)], None).rows  # type: ignore[arg-type]
    assert row == {"row": 3, "label": ["y"], "predicted": predicted, "probabilities": {"x": 0.4, "y": 0.6}}


def test_the_metric_is_the_first_of_the_scores(tmp_path):
    task = read(tmp_path / "a.jsonl", jsonl(ROWS), metric="exact_match")
    scores = task.scores(task.examples[3:], [["x"], ["y"]])
    assert list(scores)[:3] == ["exact_match", "micro_f1", "macro_f1"]
    assert scores["exact_match"] == 0.5 and scores["micro_f1"] == pytest.approx(2 / 3) and scores["macro_f1"] == 0.5
    assert task.baselines(task.examples[3:])["majority"] == [[], []]


WORDS = ("red", "old", "big", "the", "a", "is")


@pytest.fixture(scope="module")
def trained(single_process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A label for each of three words that a text may have."""
    root, draw, rows = tmp_path_factory.mktemp("multilabel"), np.random.default_rng(5), []
    for number in range(300):
        labels = [word for word in WORDS[:3] if draw.random() < 0.4]
        words = draw.permutation([*labels, *draw.choice(WORDS[3:], 3)])
        rows.append((" ".join(words), labels, "train" if number < 240 else "dev" if number < 270 else "test"))
    (root / "a.jsonl").write_text(jsonl(rows))
    return train(config(file="x", epochs=16), {"data": root / "a.jsonl"}, WORDS, root)


def test_training_learns_what_the_baseline_cannot(trained):
    assert trained.score("micro_f1") > 0.95 > trained.score("micro_f1", "majority") + 0.3
    assert trained.manifest.facts["metric"] == "micro_f1"
    assert trained.manifest.facts["variants"]["pretrained"]["dev_exact_match"][-1] > 0.9


def test_transformers_loads_the_model_with_equal_logits(trained):
    theirs = AutoModelForSequenceClassification.from_pretrained(trained.model_folder).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    found = trained.load()
    ids = torch.tensor([found.tokenizer.encode("the old is red").ids])
    with torch.inference_mode():
        torch.testing.assert_close(
            found.model(ids, torch.zeros_like(ids), torch.ones_like(ids)), theirs(ids).logits, rtol=0, atol=1e-5
        )
    [scores] = pipeline("text-classification", model=trained.model_folder, top_k=None)(["the old is red"])
    assert {one["label"] for one in scores if one["score"] > 0.5} == {"old", "red"}


def test_the_model_labels_new_texts(trained):
    assert [row["predicted"] for row in trained.load().predict([{"text": "big old"}, {"text": "the a"}])] == [
        ["big", "old"],
        [],
    ]
