"""Choice among texts: SWAG's files and others, errors, rows of all choices, and a whole training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForMultipleChoice

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.choice import Choice, ChoiceConfig
from tests.training.finetune.tasks.trained import SETTINGS, Trained, task_of_files, train

#: Rows in the layout of SWAG's train.csv and val.csv, whose first column has no name; test.csv has no label.
SWAG_HEADER = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
SWAG_ROWS = [
    '0,v1,1,"A man sits. He","A man sits, alone.",He,gold,stands up.,"is a ""cat"".",flies away.,sinks.,0',
    "1,v2,2,A dog runs. It,A dog runs.,It,gen,sings.,barks loudly.,reads.,cooks.,1",
]


def config(**settings: Any) -> ChoiceConfig:
    files = {} if "file" in settings else {"files": {"train": "x"}}
    return ChoiceConfig(**{**SETTINGS, **files, **settings})


def row(label: Any = 0, split: str = "train", **changed: Any) -> dict[str, Any]:
    return {"context": "a", "choices": ["b c", "d"], "label": label, "split": split, **changed}


GOOD = [row(0), row(1), row(0, "dev"), row(1, "test")]


def read(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Choice:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return task_of_files(config(file="x", **settings), {"data": path})


def swag(root: Path) -> dict[str, Path]:
    paths = {name: root / f"{name}.csv" for name in ("train", "dev", "test")}
    for path in paths.values():
        path.write_text("\n".join([SWAG_HEADER, *SWAG_ROWS]) + "\n")
    without_label = [line.rpartition(",")[0] for line in (SWAG_HEADER, *SWAG_ROWS)]
    paths["test"].write_text("\n".join(without_label) + "\n")
    return paths


def test_the_files_of_swag(tmp_path):
    task = task_of_files(config(dataset="SWAG"), swag(tmp_path))
    assert [(one.split, one.row, one.label) for one in task.examples] == [
        ("train", 2, 0),
        ("train", 3, 1),
        ("dev", 2, 0),
        ("dev", 3, 1),
        ("test", 2, None),
        ("test", 3, None),
    ]
    assert task.examples[0].context == "A man sits, alone."
    assert task.examples[0].choices == ("He stands up.", 'He is a "cat".', "He flies away.", "He sinks.")
    assert task.choices == 4 and task.scored_split == "dev"
    assert task.facts()["labels"] == {
        "train": {"0": 1, "1": 1, "2": 0, "3": 0},
        "dev": {"0": 1, "1": 1, "2": 0, "3": 0},
        "test": {"0": 0, "1": 0, "2": 0, "3": 0},
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_choices(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(GOOD), path)
        task = task_of_files(config(file="x"), {"data": path})
    else:
        task = read(path, GOOD)
    assert [one.choices for one in task.examples] == [("b c", "d")] * 4
    assert [one.label for one in task.examples] == [0, 1, 0, 1] and task.scored_split == "test"


def test_other_columns(tmp_path):
    rows = [{"premise": "a", "choice1": "b", "choice2": "c", "right": n % 2, "split": s}
            for n, s in enumerate(["train", "train", "dev"])]  # fmt: skip
    names = {"context": "premise", "choices": ("choice1", "choice2"), "label": "right"}
    assert [one.choices for one in read(tmp_path / "a.jsonl", rows, columns=names).examples] == [("b", "c")] * 3


def test_the_choices_of_an_example_are_rows_next_to_each_other(tmp_path):
    task = read(tmp_path / "a.jsonl", [*GOOD, row(1, choices=["e", "c d a"])])
    data: Any = task.encode(build_tokenizer([*SPECIAL_TOKENS, *"abcde"])).splits["train"]
    assert data.lengths.tolist() == [6, 6, 7] and data.targets.tolist() == [0, 1, 1]
    ids, segments, mask = task.inputs(data, np.array([2, 0]), torch.device("cpu"))
    a, b, c, d, e = range(5, 10)
    assert (ids * mask).tolist() == [
        [2, a, 3, e, 3, 0, 0],
        [2, a, 3, c, d, a, 3],
        [2, a, 3, b, c, 3, 0],
        [2, a, 3, d, 3, 0, 0],
    ]
    assert (segments * mask).sum(1).tolist() == [2, 4, 3, 2]
    logits = torch.randn(2, 2, generator=torch.manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0]))
    rows = np.array([2, 0])
    torch.testing.assert_close(task.loss(logits, data, rows) / task.loss_terms(data, rows), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(2), r"a\.jsonl:5: label is '2'; write the number of the right choice, from 0 to 1"),
        (row("b"), r"a\.jsonl:5: label is 'b'; write the number"),
        (row(-1), r"a\.jsonl:5: label is '-1'; write the number"),
        (row(None, "dev"), r"a\.jsonl:5: label is 'None'; write the number"),
        (row(choices=["b"]), r"a\.jsonl:5: has 1 choices, most rows have 2; give each row the same number"),
        (row(choices="b"), r"a\.jsonl:5: has 0 choices, most rows have 2"),
        (row(choices=["b", ""]), r"a\.jsonl:5: choice 1 is ''; write its text"),
        (row(context=""), r"a\.jsonl:5: context is empty; fill it in or delete the row, or set skip_invalid: true"),
    ],
)
def test_an_invalid_row_is_an_error_with_the_line(tmp_path, bad, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.jsonl", [*GOOD, bad])
    assert "\n" not in str(caught.value)


def test_a_test_part_without_labels_is_predicted(tmp_path):
    task = read(tmp_path / "a.jsonl", [*GOOD[:3], row(-1, "test"), row(None, "test")])
    assert [one.label for one in task.examples[3:]] == [None, None] and task.scored_split == "dev"


def test_invalid_rows_are_skipped_and_counted_on_request(tmp_path):
    paths = swag(tmp_path)
    with paths["train"].open("a") as file:
        file.write("2,v3,3\n3,v,4,A,A b.,It,gold,c.,d.,e.,f.,7\n")
    with pytest.raises(UserError, match=r"train\.csv:4: has more or fewer fields than the header"):
        task_of_files(config(dataset="SWAG"), paths)
    task = task_of_files(config(dataset="SWAG", skip_invalid=True), paths)
    assert [one.row for one in task.examples if one.split == "train"] == [2, 3]
    assert task.facts()["skipped"] == {"unreadable row": 1, "invalid label": 1}


def test_train_with_one_label_only_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jsonl: train has one label only"):
        read(tmp_path / "a.jsonl", [row(0), row(0, "dev")])


def test_predictions_and_the_baseline(tmp_path):
    task = read(tmp_path / "a.jsonl", [*GOOD, row(1)])
    [found] = task.predictions(task.examples[3:4], [np.array([0.25, 0.75], np.float32)], None).rows  # type: ignore[arg-type]
    assert found == {"row": 4, "label": 1, "predicted": 1, "probabilities": [0.25, 0.75]}
    assert task.baselines(task.examples[2:4])["majority"] == [1, 1]
    assert task.scores(task.examples[2:4], [1, 1])["accuracy"] == 0.5
    assert task.sample(task.examples[0], 1) == {"text": "a / 0: b c / 1: d", "label": 0}


COLOURS, SHAPES, OTHERS = ("red", "blue", "green"), ("round", "square", "flat"), ("the", "is", "old", "new")


@pytest.fixture(scope="module")
def trained(single_process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The right choice is the one with a colour."""
    root, draw, rows = tmp_path_factory.mktemp("choice"), np.random.default_rng(6), []
    for number in range(200):
        label = int(draw.integers(3))
        words = [draw.choice(COLOURS if choice == label else SHAPES) for choice in range(3)]
        choices = [" ".join(draw.permutation([word, *draw.choice(OTHERS, 2)])) for word in words]
        split = "train" if number < 140 else "dev" if number < 170 else "test"
        rows.append(row(label, split, context=" ".join(draw.choice(OTHERS, 2)), choices=choices))
    (root / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return train(config(file="x"), {"data": root / "a.jsonl"}, [*COLOURS, *SHAPES, *OTHERS], root)


def test_training_learns_what_the_baseline_cannot(trained):
    assert trained.score("accuracy") > 0.95 > trained.score("accuracy", "majority") + 0.3
    assert trained.manifest.facts["metric"] == "accuracy"


def test_transformers_loads_the_model_with_equal_logits(trained):
    theirs = AutoModelForMultipleChoice.from_pretrained(trained.model_folder).eval()
    found = trained.load()
    pairs = [("the old", "is red"), ("the old", "is flat"), ("the old", "new round")]
    encodings = found.tokenizer.encode_batch(pairs)
    ids, segments = (torch.tensor([getattr(one, name) for one in encodings]) for name in ("ids", "type_ids"))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        expected = theirs(input_ids=ids[None], token_type_ids=segments[None], attention_mask=mask[None]).logits
        torch.testing.assert_close(found.model(ids, segments, mask), expected, rtol=0, atol=1e-5)
    assert expected.argmax().item() == 0


def test_the_model_chooses_for_new_texts(trained):
    head = {"num_choices": 3}
    assert trained.task.input_names(trained.config, head) == ("context", "choice0", "choice1", "choice2")
    [found] = trained.load().predict([{"context": "the", "choice0": "flat", "choice1": "blue", "choice2": "round"}])
    assert found["predicted"] == 1
