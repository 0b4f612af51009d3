"""`cloze embed`: vectors of lines and of tables by the encoder of a run or a folder."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cloze
from cloze.infra.cli import main
from cloze.infra.embed import layers_of
from cloze.pipeline.core.errors import UserError
from tests.infra.test_export import CONFIG, mistake, objective, own_folder, run  # noqa: F401
from tests.training.finetune.encoders.transformers_folders import texts, write_folder

TEXTS = ["a d a", "d ab d", "x", "ab d a"]


def vectors_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lines: list[str], *arguments: str
) -> tuple[list[Any], str]:
    """What is printed for the lines, and the notes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    assert main(["embed", *arguments]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line)["vector"] for line in out.splitlines()], err


def test_a_run_and_its_exported_folder_have_the_vectors_of_python(run: Any, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    assert main(["export", CONFIG, "--to", "exported"]) == 0
    expected = cloze.load(CONFIG).embed(TEXTS)
    for source in (CONFIG, "exported", str(Path("exported").absolute())):
        found, notes = vectors_of(capsys, monkeypatch, TEXTS, source)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert notes == ""


def test_printed_numbers_are_those_of_fp32(run: Any, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    [found], _ = vectors_of(capsys, monkeypatch, ["a d"], CONFIG, "--layers", "0", "--pooling", "cls")
    assert all(float(np.float32(number)) == pytest.approx(number, rel=1e-7) for number in found)
    assert max(len(repr(number)) for number in found) < 17  # not the digits of fp64


def test_options_choose_the_vectors_and_a_blank_line_has_none(run: Any, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    options = [[], ["--layers", "second-to-last"], ["--layers", "sum-all"], ["--pooling", "cls"], ["--layers", "0"]]
    options += [["--without-special-tokens"]]
    found = [vectors_of(capsys, monkeypatch, ["a d", " ", "d"], CONFIG, *one)[0] for one in options]
    assert all(one[1] is None and len(one[0]) == len(one[2]) == 128 for one in found)
    assert len({tuple(one[0]) for one in found}) == len(options)
    _, notes = vectors_of(capsys, monkeypatch, ["a d a d", "a"], CONFIG, "--max-length", "4")
    assert notes == "cloze: cut to 4 tokens: 1 of the texts\n"


def test_an_error_of_embed_is_one_line(run: Any, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    line = "layers concat-last-4: the encoder has only 2 layers; give another choice, such as last\n"
    assert mistake(capsys, "embed", CONFIG, "--layers", "concat-last-4") == line
    assert "layers 3: the encoder has 2 layers; give a number from" in mistake(capsys, "embed", CONFIG, "--layers", "3")
    assert mistake(capsys, "embed", CONFIG, "--layers", "first").startswith(
        "--layers first: give the number of a layer"
    )
    assert "--max-length 600: the model has 512" in mistake(capsys, "embed", CONFIG, "--max-length", "600")
    assert mistake(capsys, "embed", CONFIG, "--input", "a.csv").startswith("--input requires --to")
    assert mistake(capsys, "embed", CONFIG, "--text", "body").startswith("--text and --text-b name columns of files")
    Path("empty").mkdir()
    assert mistake(capsys, "embed", "./empty").startswith("./empty: has no config.json; give the folder of a model")
    assert "config.json" not in mistake(capsys, "embed", "empty"), "a name is that of a run"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("na\xefve\n".encode("latin-1")), "ascii"))
    assert mistake(capsys, "embed", CONFIG).startswith("standard input: is not UTF-8 (")
    folder = str(write_folder(tmp_path / "roberta", "roberta"))
    capsys.readouterr()  # transformers' progress
    assert "vocab.size=3: " in mistake(capsys, "embed", folder, "vocab.size=3")


def test_layers_are_numbers_or_names() -> None:
    assert layers_of("12") == 12 and layers_of("sum-last-4") == "sum-last-4"
    for wrong in ("-1", "1.0", "²", "all"):
        with pytest.raises(
            UserError, match=f"^--layers {wrong}: give the number of a layer, 0 for the embeddings, or "
        ):
            layers_of(wrong)


@pytest.mark.campaign
def test_tables_and_lines_are_written_with_what_was_computed(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cloze.training.finetune.prediction.file_prediction._ROWS", 16)
    folder = str(write_folder(tmp_path / "roberta", "roberta"))
    lines = [text[:60] for text in texts()][:40]
    expected, _ = vectors_of(capsys, monkeypatch, lines, folder)
    pq.write_table(pa.table({"id": range(40), "body": lines}), "in.parquet")
    assert main(["embed", folder, "--input", "in.parquet", "--text", "body", "--to", "out"]) == 0
    assert capsys.readouterr().out == f"{Path('out').absolute()}\n"
    table = pq.read_table("out")
    assert table.column_names == ["id", "body", "vector"] and table["body"].to_pylist() == lines
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), expected, atol=1e-5)
    summary = json.loads(Path("out/_vectors.json").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} == summary["model_digests"].keys()
    assert (summary["layers"], summary["pooling"], summary["special_tokens"]) == ("last", "mean", True)
    assert (summary["dimension"], summary["max_length"]) == (32, 128)
    assert (summary["rows"], summary["truncated"], summary["without_vector"]) == (40, 0, 0)
    assert not Path("runs").exists()

    parts = {path: path.read_bytes() for path in Path("out").glob("*.parquet")}
    assert len(parts) == 3
    next(iter(parts)).unlink()  # the same command continues, with the same bytes
    assert main(["embed", folder, "--input", "in.parquet", "--text", "body", "--to", "out"]) == 0
    assert {path: path.read_bytes() for path in parts} == parts
    capsys.readouterr()
    other = mistake(capsys, "embed", folder, "--input", "in.parquet", "--text", "body", "--to", "out", "--layers", "1")
    assert "part-0000" in other and "is not of this model, these settings and these inputs" in other

    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in [*lines[:3], ""])))
    assert main(["embed", folder, "--to", "of-lines"]) == 0
    table = pq.read_table("of-lines")
    assert table["text"].to_pylist() == [*lines[:3], ""] and table["vector"].to_pylist()[3] == [None] * 32
    [source] = json.loads(Path("of-lines/_vectors.json").read_text())["inputs"]
    assert source["file"] == "standard input"
