"""Texts and tables -> vectors: which tokens, which rows have none, and the same bytes each time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder, from_folder
from cloze.training.finetune.prediction import file_prediction, text_embedder
from cloze.training.finetune.prediction.file_prediction import FilePrediction, write_part
from cloze.training.finetune.prediction.text_embedder import TextEmbedder, VectorPredictor, load_embedder
from cloze.training.vectors.representation import Representation
from tests.training.finetune.encoders.transformers_folders import texts, write_folder

TEXTS = [text[: 9 + 5 * (number % 9)] for number, text in enumerate(texts())][:40]
DIMENSION = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "albert", "albert")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PretrainedEncoder:
    return from_folder(Location(str(folder)))


def vectors(embedder: TextEmbedder, inputs: list[dict[str, str]]) -> np.ndarray:
    return np.concatenate([found for found, _ in embedder.embed(inputs)])


def test_texts_and_pairs_have_the_tokens_of_their_tokenizer(
    folder: Path, encoder: PretrainedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_embedder, "_READ_AHEAD", 16)
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(24)
    embedder = load_embedder(encoder, Representation(), 24)
    for second in (None, TEXTS[::-1]):
        inputs = [{"text": text} for text in TEXTS]
        if second:
            inputs = [{**one, "text_b": text} for one, text in zip(inputs, second, strict=True)]
        found = vectors(embedder, inputs)
        for text, row in zip(inputs, found, strict=True):
            encoded = tokenizer.encode(*text.values())
            if second and encoded.overflowing:
                continue  # of equally long texts the library cuts the first
            ids, segments = torch.tensor([encoded.ids]), torch.tensor([encoded.type_ids])
            with torch.inference_mode():
                expected = model(input_ids=ids, token_type_ids=segments).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_texts_that_are_cut_are_counted(encoder: PretrainedEncoder) -> None:
    cut = sum(len(encoder.tokenizer().encode(text).ids) > 10 for text in TEXTS)
    embedder = load_embedder(encoder, Representation(), 10)
    assert 5 < cut < len(TEXTS)
    assert sum(count for _, count in embedder.embed({"text": text} for text in TEXTS)) == cut
    assert load_embedder(encoder, Representation(), None).max_length == encoder.max_tokens == 128


@pytest.mark.parametrize(
    ("length", "line"),
    [(129, r"--max-length 129: the model has 128 positions; give at most 128"), (3, "--max-length 3: .* at least 4")],
)
def test_a_length_that_the_model_cannot_read_is_an_error(encoder: PretrainedEncoder, length: int, line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}$"):
        load_embedder(encoder, Representation(), length)


def planned(encoder: PretrainedEncoder, file: Path, to: Path, **columns: Any) -> FilePrediction:
    types = {"vector": pa.list_(pa.float32(), DIMENSION)}
    predictor = VectorPredictor(
        encoder, Representation(pooling="cls"), 16, {"text": ["text"], **columns}, {"pooling": "cls"}, types
    )
    return FilePrediction.plan(predictor, [Location(str(file))], Location(str(to)), "f00d")


def written(encoder: PretrainedEncoder, file: Path, to: Path, **columns: Any) -> FilePrediction:
    prediction = planned(encoder, file, to, **columns)
    for name in prediction.parts:
        write_part(name, prediction, threads=1, gpu=False)
    return prediction


def test_rows_keep_their_columns_and_a_blank_text_has_no_vector(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    given = ["a house", None, "the river " * 20, " "]
    pq.write_table(pa.table({"id": range(4), "text": given, "text_b": ["a"] * 4}), tmp_path / "in.parquet")
    for columns in ({}, {"text_b": ["text_b"]}):
        prediction = written(encoder, tmp_path / "in.parquet", tmp_path / f"to{len(columns)}", **columns)
        table = pq.read_table(f"{prediction.to}/part-00000.parquet")
        assert table.drop_columns("vector").to_pydict() == {"id": [*range(4)], "text": given, "text_b": ["a"] * 4}
        assert table.schema.field("vector").type == pa.list_(pa.float32(), DIMENSION)
        inputs = [{"text": text, **({"text_b": "a"} if columns else {})} for text in (given[0], given[2])]
        expected = vectors(load_embedder(encoder, Representation(pooling="cls"), 16), inputs).tolist()
        assert table["vector"].to_pylist() == [expected[0], [None] * DIMENSION, expected[1], [None] * DIMENSION]
        [record] = prediction.finished().values()
        assert (record.rows, record.counts) == (4, {"without_vector": 2, "truncated": 1})
        assert json.loads(table.schema.metadata[b"cloze"])["pooling"] == "cls"


def test_a_table_of_blank_texts_and_one_without_rows_have_no_vectors(
    encoder: PretrainedEncoder, tmp_path: Path
) -> None:
    for name, given in (("blank", ["", " "]), ("none", [])):
        pq.write_table(pa.table({"text": pa.array(given, pa.string())}), tmp_path / f"{name}.parquet")
        prediction = written(encoder, tmp_path / f"{name}.parquet", tmp_path / name)
        table = pq.read_table(f"{prediction.to}/part-00000.parquet")
        assert table["vector"].to_pylist() == [[None] * DIMENSION for _ in given]


def test_the_same_input_has_the_same_bytes(
    encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_prediction, "_ROWS", 16)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    first, second = (written(encoder, tmp_path / "in.parquet", tmp_path / name) for name in ("first", "second"))
    assert len(first.parts) == 3
    for name in first.parts:
        assert (first.to / name).read_bytes() == (second.to / name).read_bytes()


def test_a_column_that_is_named_vector_is_refused(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "vector": [1]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match="has a column vector already; rename it"):
        planned(encoder, tmp_path / "in.parquet", tmp_path / "to")
