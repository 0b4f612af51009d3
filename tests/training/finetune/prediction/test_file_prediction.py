"""Tables of new inputs of each kind -> the same rows with the predictions of FineTunedModel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.prediction import file_prediction
from cloze.training.finetune.prediction.file_prediction import FilePrediction, write_part
from cloze.training.finetune.prediction.input_tables import open_table
from cloze.training.finetune.prediction.task_predictor import TaskPredictor
from tests.training.finetune.prediction.saved_models import HEADS, saved, task

ROWS = 50


def texts(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice([*"abcdefgh"], random.integers(1, 20))) for _ in range(ROWS)]


FIRST, SECOND, THIRD, FOURTH = (texts(seed) for seed in range(4))
#: Kind -> settings of the task, a table's columns, and their rows as inputs of FineTunedModel.
CASES: dict[str, tuple[dict[str, Any], dict[str, list[Any]], list[dict[str, Any]]]] = {
    "classification": (
        {"columns": {"text": "body", "text_b": "title"}},
        {"body": FIRST, "title": SECOND},
        [{"text": a, "text_b": b} for a, b in zip(FIRST, SECOND, strict=True)],
    ),
    "regression": ({}, {"text": FIRST}, [{"text": a} for a in FIRST]),
    "multilabel": ({"columns": {"text": "body"}}, {"text": FIRST}, [{"text": a} for a in FIRST]),
    "choice": (
        {"columns": {"context": "sent1", "choice_start": "sent2", "choices": ("ending0", "ending1", "ending2")}},
        {"sent1": FIRST, "sent2": ["c d"] * ROWS, "ending0": SECOND, "ending1": THIRD, "ending2": FOURTH},
        [
            {"context": a, **{f"choice{number}": f"c d {choice}" for number, choice in enumerate(choices)}}
            for a, *choices in zip(FIRST, SECOND, THIRD, FOURTH, strict=True)
        ],
    ),
    "tagging": ({}, {"tokens": [a.split() for a in FIRST]}, [{"words": a} for a in FIRST]),
    "question_answering": (
        {},
        {"question": SECOND, "context": FIRST},
        [{"question": b, "context": a} for a, b in zip(FIRST, SECOND, strict=True)],
    ),
    "contrastive": (
        {"columns": {"text": "title", "text_b": "body"}},
        {"title": FIRST, "body": SECOND},
        [{"text": a, "text_b": b} for a, b in zip(FIRST, SECOND, strict=True)],
    ),
}


def plan(folder: Path, kind: str, settings: dict[str, Any], file: Path) -> FilePrediction:
    predictor = TaskPredictor.of(Location(str(folder)), task(kind, **settings))
    return FilePrediction.plan(predictor, [Location(str(file))], Location(str(folder / "to")), "f00d")


def predicted(prediction: FilePrediction) -> pa.Table:
    for name in prediction.parts:
        write_part(name, prediction, threads=1, gpu=False)
    return pa.concat_tables(pq.read_table(f"{prediction.to}/{name}") for name in prediction.parts)


@pytest.mark.parametrize("kind", HEADS)
def test_rows_keep_their_columns_and_have_the_predictions_of_lines(tmp_path: Path, kind: str) -> None:
    settings, columns, inputs = CASES[kind]
    _, model = saved(tmp_path, kind)
    pq.write_table(pa.table({"id": range(ROWS), **columns}), tmp_path / "in.parquet")
    table = predicted(plan(tmp_path, kind, settings, tmp_path / "in.parquet"))
    expected = [{key: value for key, value in one.items() if key != "words"} for one in model.predict(inputs)]
    assert table.select(["id", *columns]).to_pydict() == {"id": [*range(ROWS)], **columns}
    assert table.drop_columns(["id", *columns]).to_pylist() == expected


def test_a_list_of_choices_is_a_column_too(tmp_path: Path) -> None:
    _, model = saved(tmp_path, "choice")
    pq.write_table(pa.table({"context": ["a"], "choices": [["b", "c", "d e"]]}), tmp_path / "in.parquet")
    [row] = predicted(plan(tmp_path, "choice", {}, tmp_path / "in.parquet")).to_pylist()
    [expected] = model.predict([{"context": "a", "choice0": "b", "choice1": "c", "choice2": "d e"}])
    assert row == {"context": "a", "choices": ["b", "c", "d e"], **expected}
    pq.write_table(pa.table({"context": ["a"], "choices": [["b", "c"]]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"^the context 'a' has 2 choices; give 3, as in training"):
        predicted(plan(tmp_path, "choice", {}, tmp_path / "in.parquet"))


def test_parts_of_any_size_and_all_formats_have_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, "multilabel")
    rows = [{"id": number, "text": text} for number, text in enumerate(FIRST)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=7)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in.tsv").write_text("id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows))
    whole = predicted(plan(tmp_path, "multilabel", {}, tmp_path / "in.parquet"))
    monkeypatch.setattr(file_prediction, "_ROWS", 16)
    for name in ("in.parquet", "in.jsonl", "in.tsv"):
        prediction = plan(tmp_path, "multilabel", {}, tmp_path / name)
        assert len(prediction.parts) == 4 and prediction.num_rows == ROWS
        found = predicted(prediction)
        assert found["id"].to_pylist() == (list(map(str, range(ROWS))) if name == "in.tsv" else [*range(ROWS)])
        assert found["predicted"].to_pylist() == whole["predicted"].to_pylist()


def test_a_row_without_a_text_has_no_prediction_and_is_counted(tmp_path: Path) -> None:
    _, model = saved(tmp_path, "classification")
    pq.write_table(pa.table({"text": ["a b", None, " ", "c"]}), tmp_path / "in.parquet")
    prediction = plan(tmp_path, "classification", {}, tmp_path / "in.parquet")
    found = predicted(prediction)["predicted"].to_pylist()
    first, last = (row["predicted"] for row in model.predict([{"text": "a b"}, {"text": "c"}]))
    assert found == [first, None, None, last]
    [record] = prediction.finished().values()
    assert (record.rows, record.counts) == (4, {"without_prediction": 2})


def test_input_and_parts_may_be_on_s3(tmp_path: Path, folder: str) -> None:
    _, model = saved(tmp_path, "regression")
    file, to = Location(f"{folder}/in/a.jsonl"), Location(f"{folder}/to")
    file.write_text('{"text": "a b"}\n{"text": "c"}\n')
    predictor = TaskPredictor.of(Location(str(tmp_path)), task("regression"))
    prediction = FilePrediction.plan(predictor, [file], to, "f00d")
    assert prediction.finished() == {}
    write_part("part-00000.parquet", prediction, threads=1, gpu=False)
    assert prediction.num_finished_rows() == 2 and list(prediction.finished()) == ["part-00000.parquet"]
    expected = [row["predicted"] for row in model.predict([{"text": "a b"}, {"text": "c"}])]
    assert open_table(to / "part-00000.parquet", {"text": []}, []).rows(0, 2)["predicted"].to_pylist() == expected
    other = FilePrediction.plan(predictor, [file], to, "another")
    with pytest.raises(UserError, match=r"part-00000\.parquet: is not of this model, these settings and these inputs"):
        other.finished()


def test_a_table_without_rows_is_a_part_without_rows(tmp_path: Path) -> None:
    saved(tmp_path, "tagging")
    pq.write_table(pa.table({"tokens": pa.array([], pa.list_(pa.string()))}), tmp_path / "in.parquet")
    table = predicted(plan(tmp_path, "tagging", {}, tmp_path / "in.parquet"))
    assert len(table) == 0 and table.column_names == ["tokens", "predicted"]


WANTED = {"text": ["body"]}


def test_an_unusable_table_is_an_error_that_names_the_file_and_the_column(tmp_path: Path) -> None:
    def error(name: str, wanted: dict[str, Any] = WANTED) -> str:
        with pytest.raises(UserError) as caught:
            open_table(Location(str(tmp_path / name)), wanted, ["predicted"])
        return str(caught.value).removeprefix(f"{tmp_path}/")

    pq.write_table(pa.table({"bodi": ["a"], "id": [1]}), tmp_path / "a.parquet")
    line = "has no column body or text; it has bodi, id: rename the one with the text"
    assert error("a.parquet") == f"a.parquet: {line}"
    (tmp_path / "a.csv").write_text("bodi,id\na,1\n")
    assert error("a.csv") == f"a.csv: {line}"
    pq.write_table(pa.table({"body": ["a"], "predicted": [1]}), tmp_path / "b.parquet")
    assert error("b.parquet").startswith("b.parquet: has a column predicted already; rename it")
    (tmp_path / "c.jsonl").write_text('{"body": "a", "n": 1}\n{"body": "b", "n": "x"}\n')
    assert error("c.jsonl").startswith("c.jsonl: the column n has values of different types (")
    (tmp_path / "d.jsonl").write_text('{"body": "a"}\n{"text": "b"}\n')
    assert error("d.jsonl").startswith("d.jsonl:2: has no column body; it has text")
    (tmp_path / "e.jsonl").write_text("")
    assert error("e.jsonl") == "e.jsonl: has no rows; leave it out"
    (tmp_path / "f.parquet").write_text("no")
    assert error("f.parquet").startswith("f.parquet: is not a Parquet file (")
    (tmp_path / "g.jsonl").write_text('{"body": "a"}\n{"body": "\\ud83d"}\n')
    assert error("g.jsonl") == "g.jsonl:2: 'body' has half a surrogate pair; remove or complete it"


def test_the_beginning_of_a_choice_may_be_blank_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    wanted = {"context": ["context"], "choice_start": ["start"], "choices": ["choices"]}
    file.write_text(
        '{"context": "a", "start": null, "choices": ["b", "c"]}\n{"context": " ", "start": "d", "choices": ["b"]}\n'
    )
    opened = open_table(Location(str(file)), wanted, [])
    assert opened.inputs(opened.rows(0, 2)) == [{"context": "a", "choice_start": "", "choices": ["b", "c"]}, None]


def test_a_column_of_bytes_of_lists_and_one_that_is_there_twice_are_errors(tmp_path: Path) -> None:
    saved(tmp_path, "regression")
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [b"a b"]}), file)
    with pytest.raises(UserError, match="the column text has the type binary; convert it to string"):
        plan(tmp_path, "regression", {}, file)
    pq.write_table(pa.table({"text": [["a", "b"]]}), file)  # not a pair: two texts have a column each
    with pytest.raises(UserError, match=r"the column text has the type list<element: string>; convert it to string"):
        plan(tmp_path, "regression", {}, file)
    (tmp_path / "in.jsonl").write_text('{"text": ["a", "b"]}\n')
    with pytest.raises(UserError, match=r"the column text has the type list<item: string>; convert it to string"):
        plan(tmp_path, "regression", {}, tmp_path / "in.jsonl")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), file)
    with pytest.raises(UserError, match="has 2 columns text; rename or remove all but one"):
        plan(tmp_path, "regression", {}, file)


def test_a_task_with_extra_files_predicts_tables(tmp_path: Path) -> None:
    saved(tmp_path, "regression")
    pq.write_table(pa.table({"text": FIRST}), tmp_path / "in.parquet")
    files = {"train": "t.jsonl", "extra": {"more": "m.jsonl"}}
    table = predicted(plan(tmp_path, "regression", {"file": None, "files": files}, tmp_path / "in.parquet"))
    assert len(table) == ROWS and table["predicted"].null_count == 0


def test_columns_without_a_header_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("gj04\t1\t\ta b\ngj04\t0\t*\tc\n")
    table = open_table(Location(str(tmp_path / "in.tsv")), {"text": ["sentence", 4]}, [])
    rows = table.rows(0, 2)
    assert rows.column_names == ["1", "2", "3", "4"]
    assert table.inputs(rows) == [{"text": "a b"}, {"text": "c"}]


def test_values_of_json_lines_that_come_later_have_a_column(tmp_path: Path) -> None:
    rows = [{"body": "a", "n": 1}, {"body": "b", "n": 2.5}, {"body": "c", "tags": ["x"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = open_table(Location(str(tmp_path / "in.jsonl")), WANTED, [])
    assert table.rows(1, 3).to_pylist() == [
        {"body": "b", "n": 2.5, "tags": None},
        {"body": "c", "n": None, "tags": ["x"]},
    ]
    assert table.rows(0, 1).schema == table.rows(2, 3).schema
