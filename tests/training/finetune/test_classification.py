"""A labelled file in every format, the errors for unusable ones, and the classification task."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cloze.pipeline.core.config import Config, identity, load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ragged
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.classification import (
    Classification,
    ClassificationConfig,
    EncodedTexts,
    label_counts,
    read_examples,
    with_known_labels,
)
from cloze.training.finetune.tasks.labelled_texts import LabelledColumns, LabelledText
from cloze.training.finetune.tasks.task_config import Trial
from cloze.training.vectors.text_inputs import TextInputs

ROWS = [
    ('He said "no", twice', "novel", "train"),
    ("it's 5 o'clock,\tin\nParis", "news", "train"),
    ("Ünïcode ☃ 雪", "novel", "dev"),
    ("a tale", "news", "dev"),
    ("another tale", "novel", "test"),
    ("the last", "news", "test"),
]
COLUMNS = ("text", "label", "split")
COLOURS = build_tokenizer([*SPECIAL_TOKENS, "red", "blue", "##ish"])


def config(**settings: Any) -> ClassificationConfig:
    return ClassificationConfig(name="a", file="a.csv", learning_rate=1e-3, **settings)


def task(labels: list[str]) -> Classification:
    return Classification(config(), [], labels)


def records(rows: list[tuple[str, ...]]) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def jsonl(path: Path, rows: list[tuple[str, ...]]) -> Location:
    path.write_text("".join(json.dumps(record) + "\n" for record in records(rows)))
    return Location(str(path))


def write(folder: Path, name: str) -> Location:
    """ROWS in the format that the name says."""
    path = folder / name.removesuffix(".gz")
    match path.suffix:
        case ".jsonl":
            jsonl(path, ROWS)
        case ".csv":
            with path.open("w", newline="", encoding="utf-8-sig") as file:
                csv.writer(file).writerows([COLUMNS, *ROWS])
        case ".tsv":  # cannot hold tabs and line ends
            lines = ["\t".join(COLUMNS), *("\t".join(value.translate(SPACES) for value in row) for row in ROWS)]
            path.write_text("\n".join(lines) + "\n")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(records(ROWS)), path)
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(path.read_bytes()))
    return Location(str(folder / name))


SPACES = str.maketrans("\t\n", "  ")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.gz", "a.tsv.gz", "a.parquet.gz"]
)
def test_every_format_gives_the_same_examples(tmp_path, name):
    found = read_examples(config(), {"data": write(tmp_path, name)})
    expected = [tuple(value.translate(SPACES) for value in row) if ".tsv" in name else row for row in ROWS]
    assert [(example.text, example.label, example.split) for example in found] == expected


def test_columns_may_have_other_names_and_labels_be_numbers(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"sentence": "fine", "sentiment": 1, "part": "train", "more": null}\n\n')
    found = read_examples(
        config(columns=LabelledColumns(text="sentence", label="sentiment", split="part")), {"data": Location(str(file))}
    )
    assert found == [LabelledText(1, "train", "1", "fine", where=f"{file}:1")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x", "split": "dev"}', r"a.jsonl:1: has no column label; it has text, split: set"),
        ("a.jsonl", '{"text": "x"', r"a.jsonl:1: is not JSON"),
        ("a.jsonl", '\n["x"]', r"a.jsonl:2: is a list; write one object per line"),
        ("a.jsonl", r'{"text": "x \ud83d", "label": "y"}', r"a.jsonl:1: 'text' has half a surrogate pair; remove or"),
        ("a.csv", "text,label,split\nx,y,validation\n", r"a.csv:2: split is 'validation'; write train, dev or test"),
        ("a.csv", "text,label,split\nx,,train\n", r"a.csv:2: label is empty"),
        ("a.csv", "text,label,split\nx,y\n", r"a.csv:2: has more or fewer fields than the header; quote its text"),
        (
            "a.csv",
            "text,label,split\nx, z,y,train\n",
            r"a.csv:2: has more or fewer fields than the header; quote its text",
        ),
        ("a.csv", 'text,label,split\n"x,y,train\n', r"a.csv:2: is not CSV .unexpected end of data.; quote its text"),
        (
            "a.tsv",
            "text\tlabel\tsplit\nx\n",
            r"a.tsv:2: has more or fewer fields than the header; remove tabs and line",
        ),
        ("a.csv", b"text,label,split\n\xff,y,train\n", r"a.csv: is not UTF-8 .byte 0xff at 17.; convert it"),
        ("a.parquet", "no parquet", r"a.parquet: is not a Parquet file .*; correct its suffix"),
        ("a.jsonl.gz", "no gzip", r"a.jsonl.gz: is damaged gzip .*; create it again"),
        ("a.xlsx", "PK", r"a.xlsx: is not a table; give one of .parquet, .jsonl, .ndjson, .json, .csv, .tsv"),
    ],
)
def test_an_unusable_file_is_named_with_the_row_and_the_fix(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_examples(config(), {"data": Location(str(file))})
    assert "\n" not in str(caught.value)


def test_a_truncated_gzip_is_an_error(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-9])
    with pytest.raises(UserError, match="is damaged gzip"):
        read_examples(config(), {"data": Location(str(file))})


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda row: row[2] != "dev", "has no row of the split dev"),
        (lambda row: row[1] == "novel", "train has the label 'novel' only; give examples of at least two"),
        (lambda row: row[1:] != ("news", "train"), "train has the label 'novel' only"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_an_error(tmp_path, kept, message):
    location = jsonl(tmp_path / "a.jsonl", list(filter(kept, ROWS)))
    with pytest.raises(UserError, match=message):
        with_known_labels(read_examples(config(), {"data": location}), location)


def test_a_label_that_train_does_not_have_is_an_error(tmp_path):
    location = jsonl(tmp_path / "a.jsonl", [*ROWS, ("x", "poem", "test")])
    with pytest.raises(UserError, match=r"a.jsonl:7: test has the label 'poem', which train does not have"):
        with_known_labels(read_examples(config(), {"data": location}), location)


def test_invalid_rows_are_skipped_and_counted_on_request(tmp_path):
    files = {split: tmp_path / f"{split}.tsv" for split in ("train", "dev")}
    files["train"].write_text("text\tlabel\nx\ta\ny\tb\nz\nw\t\n\ta\n")
    files["dev"].write_text("text\tlabel\nx\ta\ny\tc\n")
    found = Classification.read(
        config(skip_invalid=True), {split: Location(str(file)) for split, file in files.items()}
    )
    assert [(example.split, example.row) for example in found.examples] == [("train", 2), ("train", 3), ("dev", 2)]
    assert found.facts()["skipped"] == {"unreadable row": 1, "empty text": 2, "unknown label": 1}


def test_a_file_without_rows_is_an_error(tmp_path):
    files = {"train": jsonl(tmp_path / "train.jsonl", ROWS), "dev": Location(str(tmp_path / "dev.tsv"))}
    files["dev"].write_text("text\tlabel\n")
    with pytest.raises(UserError, match=r"dev.tsv: has no rows; add some, or leave the file out"):
        Classification.read(config(), files)


def test_test_has_labels_in_all_rows_or_in_none(tmp_path):
    files = {split: jsonl(tmp_path / f"{split}.jsonl", ROWS) for split in ("train", "dev")}
    files["test"] = Location(str(tmp_path / "test.csv"))
    files["test"].write_text("text,label\nx,news\ny,\n")
    with pytest.raises(UserError, match=r"test.csv:3: has no label, other rows of test have one"):
        Classification.read(config(), files)


def test_labels_are_sorted_and_counted_by_split(tmp_path):
    location = jsonl(tmp_path / "a.jsonl", [*ROWS, ("x", "novel", "train")])
    examples = read_examples(config(), {"data": location})
    assert with_known_labels(examples, location)[1] == ["news", "novel"]
    assert label_counts(examples)["train"] == {"news": 1, "novel": 2}


def test_a_text_becomes_cls_pieces_sep_and_is_truncated_to_the_length():
    examples = [
        LabelledText(1, "train", "a", "red blueish"),
        LabelledText(2, "train", "b", "blue " * 9),
        LabelledText(3, "dev", "b", "[MASK] red"),
        LabelledText(4, "test", "a", "red"),
    ]
    task = Classification(config(max_seq_length=6), examples, ["a", "b"])
    data = task.encode(COLOURS)
    train = data.splits["train"]
    assert isinstance(train, EncodedTexts)
    assert data.truncated == 1
    assert train.targets.tolist() == [0, 1]
    assert np.split(train.texts.ids.values, train.texts.ids.offsets[1:-1])[0].tolist() == [2, 5, 6, 7, 3]
    assert np.split(train.texts.ids.values, train.texts.ids.offsets[1:-1])[1].tolist() == [2, 6, 6, 6, 6, 3]
    assert 4 not in data.splits["dev"].texts.ids.values  # "[MASK]" in a text is text

    input_ids, token_type_ids, attention_mask = task.inputs(train, np.array([1, 0]), torch.device("cpu"))
    assert input_ids.tolist() == [[2, 6, 6, 6, 6, 3], [2, 5, 6, 7, 3, 0]]
    assert attention_mask.int().tolist() == [[1] * 6, [1] * 5 + [0]]
    assert not token_type_ids.any()


def test_accuracy_and_loss_are_those_of_the_true_labels():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], dtype=np.float32)
    no_texts = TextInputs(Ragged(np.zeros(0, np.int64), np.zeros(3, np.int64)), np.zeros(2, np.int64))
    data = EncodedTexts(no_texts, np.array([0, 1]))
    metrics = task(["a", "b", "c"]).evaluate(list(probabilities), data)
    assert metrics["accuracy"] == 0.5
    assert metrics["loss"] == pytest.approx((np.log(2) + np.log(4)) / 2)


def test_predictions_name_the_row_and_the_most_likely_label():
    answers = [np.array([0.25, 0.75], dtype=np.float32)]
    rows = task(["a", "b"]).predictions([LabelledText(9, "test", "a", "x")], answers, None).rows
    assert rows == [{"row": 9, "label": "a", "predicted": "b", "probabilities": {"a": 0.25, "b": 0.75}}]


def test_scores_contain_the_interval_of_the_accuracy():
    examples = [LabelledText(i, "test", "a" if i < 15 else "b", "x") for i in range(148)]
    found = task(["a", "b"]).scores(examples, ["a"] * 148)
    assert found["accuracy"] == pytest.approx(15 / 148)
    assert found["interval"] == pytest.approx([0.0624, 0.1605], abs=5e-5)
    assert found["matthews"] == 0


class Tasks(Config):
    tasks: tuple[ClassificationConfig, ...]


def test_one_value_or_a_list_is_read_from_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "tasks:\n"
        "  - {name: one, file: a.csv, learning_rate: 5e-5}\n"
        "  - {name: many, file: a.csv, learning_rate: [5e-5, 2e-5], batch_size: [16, 32], epochs: 2}\n"
    )
    one, many = load(Tasks, file).tasks
    assert one.trials == [Trial(5e-5, 32, 3)]
    assert many.trials == [Trial(5e-5, 16, 2), Trial(5e-5, 32, 2), Trial(2e-5, 16, 2), Trial(2e-5, 32, 2)]
    assert len({trial.name for trial in many.trials}) == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate: []", "tasks.0.learning_rate"),
        ("learning_rate: fast", r'learning_rate is "fast"'),
        ("learning_rate: [5e-5, -1.0]", r"learning_rate.*is -1\.0"),
        ("learning_rate: 5e-5, epochs: 0", r"epochs.*is 0"),
        ("learning_rate: 5e-5, epochs: [2, 2]", r"epochs.*2 is there more than once; give different values"),
        ("learning_rate: [2e-5, 2.0000001e-5]", r"learning_rate.*2e-05 is there more than once"),
        ("learning_rate: 5e-5, batchsize: 8", "did you mean batch_size"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path, setting, message):
    file = tmp_path / "run.yaml"
    file.write_text(f"tasks:\n  - {{name: one, file: a.csv, {setting}}}\n")
    with pytest.raises(UserError, match=message):
        load(Tasks, file)


def test_the_path_of_the_file_is_not_part_of_the_identity():
    here, there = (ClassificationConfig(name="a", file=file, learning_rate=1e-3) for file in ("a.csv", "b/a.csv"))
    assert identity(here) == identity(there)
