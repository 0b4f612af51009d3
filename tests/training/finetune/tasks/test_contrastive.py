"""Pairs of texts: the loss beside a plain one, the files, the ranks, and a whole training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoModel

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.encoders.pretrained_encoder import from_folder
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
from cloze.training.finetune.prediction.text_embedder import load_embedder
from cloze.training.finetune.tasks.contrastive import Contrastive
from cloze.training.finetune.trials import FinetuneSetup
from tests.training.finetune.encoders.transformers_folders import write_folder
from tests.training.finetune.tasks.pairs import GOOD, LETTERS, TOKENIZER, config, row, toy_rows, write
from tests.training.finetune.tasks.trained import (
    Trained,
    task_of_files,
    train,
    train_in_process,
)


def read(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Contrastive:
    return task_of_files(config(**settings), {"data": write(path, rows)})


def plain_losses(vectors: np.ndarray, temperature: float, also_right: set[tuple[int, int]]) -> float:
    """The sum of the losses of pairs of vectors [n, 2, d], with a loop over each pair of rows."""
    a, b = (vectors[:, i] / np.linalg.norm(vectors[:, i], axis=1, keepdims=True) for i in range(2))
    total = 0.0
    for i in range(len(a)):
        weights = {j: np.exp(a[i] @ b[j] / temperature) for j in range(len(b)) if (i, j) not in also_right}
        total -= np.log(weights[i] / sum(weights.values()))
    return total


def test_the_loss_is_the_cross_entropy_among_the_texts_of_the_batch(tmp_path):
    task = read(tmp_path / "a.jsonl", [*GOOD, *(row(f"{x} a", f"{x} b") for x in "hijk")], temperature=0.2)
    data: Any = task.encode(TOKENIZER).splits["train"]
    vectors = np.random.default_rng(0).normal(size=(4, 2, 8)).astype(np.float32)
    rows = np.array([5, 0, 2, 1])
    found = task.loss(torch.tensor(vectors), data, rows).item()
    assert found == pytest.approx(plain_losses(vectors.astype(np.float64), 0.2, set()), rel=1e-5)
    assert task.loss_terms(data, rows) == 4
    library = MultipleNegativesRankingLoss(model=None, scale=1 / 0.2)
    expected = library.compute_loss_from_embeddings([torch.tensor(vectors[:, i]) for i in range(2)], None).item()
    assert found / 4 == pytest.approx(expected, rel=1e-5)


def test_equal_texts_of_other_rows_are_no_negatives(tmp_path):
    same = [row("q", "right"), row("r", "right"), row("q", "also right"), row("s", "also right"), row("t", "wrong")]
    task = read(tmp_path / "a.jsonl", [*same, *GOOD[2:]], temperature=0.2)
    data: Any = task.encode(TOKENIZER).splits["train"]
    vectors = np.random.default_rng(1).normal(size=(5, 2, 8)).astype(np.float32)
    q, r, again, s = range(4)
    of_all = {(q, r), (q, again), (q, s), (r, q), (again, q), (again, r), (again, s), (s, again)}
    for rows, also_right in ((range(5), of_all), ((q, s, 4), {(0, 1)})):  # the third row is not in the second batch
        found = task.loss(torch.tensor(vectors[list(rows)]), data, np.array(rows)).item()
        assert found == pytest.approx(plain_losses(vectors[list(rows)].astype(np.float64), 0.2, also_right), rel=1e-5)
    assert found != pytest.approx(plain_losses(vectors[[q, s, 4]].astype(np.float64), 0.2, set()), rel=1e-3)


def test_a_pair_is_two_inputs_and_the_tokens_of_the_mean_are_marked(tmp_path):
    for settings, counted in (
        ({}, [[1, 1, 1, 0], [1, 1, 1, 1]]),
        ({"special_tokens": False}, [[0, 1, 0, 0], [0, 1, 1, 0]]),
        ({"pooling": "cls"}, [[1, 0, 0, 0], [1, 0, 0, 0]]),
    ):
        task = read(tmp_path / "a.jsonl", GOOD, **settings)
        data: Any = task.encode(TOKENIZER).splits["train"]
        a, b, c, d = (TOKENIZER.token_to_id(letter) for letter in "abcd")
        ids, segments, mask, marked, second, *_ = task.inputs(data, np.array([1, 0]), torch.device("cpu"))
        assert (ids * mask).tolist() == [[2, d, 3, 0], [2, a, b, 3]] and not segments.any()
        assert marked.int().tolist() == counted
        assert second.shape == (2, 5) and second[1, 1] == c
        assert data.lengths.tolist() == [4 + 3, 3 + 5]


def test_the_ranks_of_a_case_by_hand(tmp_path):
    dev = [row("q1", "x", "dev"), row("q2", "y", "dev"), row("q3", "x", "dev"), row("q4", "z", "dev")]
    task = read(tmp_path / "a.jsonl", [*GOOD[:2], *dev])
    data: Any = task.encode(TOKENIZER).splits["dev"]
    angle = {"x": 0.0, "y": 1.0, "z": 2.0}
    queries = {"q1": 0.1, "q2": 0.2, "q3": 1.6, "q4": 0.9}  # the ranks are 1, 2, 3 and 3
    answers = [unit(queries[one["text"]], angle[one["text_b"]]) for one in dev]
    examples = task.examples[2:]
    rows = task.predictions(examples, answers, data).rows
    assert [one["rank"] for one in rows] == [1, 2, 3, 3]
    assert [one["predicted"] for one in rows] == ["x", "x", "z", "y"]
    assert [(one["row"], one["label"]) for one in rows] == [(3, "x"), (4, "y"), (5, "x"), (6, "z")]
    scores = task.scores(examples, [one["rank"] for one in rows])
    assert next(iter(scores)) == "mrr"
    assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert (scores["accuracy_at_1"], scores["accuracy_at_10"]) == (0.25, 1.0)
    low, high = scores["interval"]
    assert 0.3 < low < scores["mrr"] < high < 0.9
    metrics = task.evaluate(answers, data)
    assert metrics["mrr"] == scores["mrr"] and task.selection_key(metrics)[0] == scores["mrr"]
    cosines = np.cos(np.subtract.outer(list(queries.values()), list(angle.values()))) / task.config.temperature
    losses = np.log(np.exp(cosines).sum(1)) - cosines[np.arange(4), [0, 1, 0, 2]]
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-4)


def unit(*angles: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)


def test_a_split_without_a_column_is_drawn_and_a_file_for_each_split_is_read(tmp_path):
    rows = [{"title": f"{x} a", "body": f"{x} b"} for x in LETTERS[:20]]
    task = read(tmp_path / "a.jsonl", rows, columns={"text": "title", "text_b": "body"})
    assert [sum(one.split == split for one in task.examples) for split in ("train", "dev", "test")] == [16, 2, 2]
    assert task.scored_split == "test" and task.examples[0].named_texts() == [("text", "a a"), ("text_b", "a b")]
    paths = {split: tmp_path / f"{split}.tsv" for split in ("train", "dev")}
    for path in paths.values():
        path.write_text("a\tb\nc\td\n")
    task = task_of_files(config(file=None, files={"train": "x"}, columns={"text": 1, "text_b": 2}), paths)
    assert [(one.text, one.text_b) for one in task.examples] == [("a", "b"), ("c", "d")] * 2
    assert task.scored_split == "dev" and task.facts()["candidates"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [*GOOD, row("a", "")],
            r"a\.jsonl:5: text_b is empty; fill it in or delete the row, or set skip_invalid: true",
        ),
        ([*GOOD, row(" ", "a")], r"a\.jsonl:5: text is empty; fill it in"),
        ([*GOOD, row("a", "b", "valid")], r"a\.jsonl:5: split is 'valid'; write train, dev or test"),
        (GOOD[:2], r"a\.jsonl: has no row of the split dev; mark some rows dev"),
        (
            [*GOOD, row("a", "x", "test")],
            r"a\.jsonl.*: test has one text_b only, and none to compare it with",
        ),
        ([{"text": "a", "split": "train"}], r"a\.jsonl:1: has no column text_b|a\.jsonl.*text_b"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "a.jsonl", rows)
    assert "\n" not in str(caught.value)


def test_invalid_rows_are_skipped_and_counted_on_request(tmp_path):
    task = read(tmp_path / "a.jsonl", [*GOOD, row("a", ""), row("a", None)], skip_invalid=True)
    assert len(task.examples) == 4 and task.facts()["skipped"] == {"empty text": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "cls", "special_tokens": False}, "tiny: special_tokens has no meaning with pooling: cls"),
        ({"batch_size": (8, 1)}, "tiny: batch_size 1 has no other text to compare with; give 2 or more"),
        ({"freeze_encoder": True}, "tiny: freeze_encoder leaves nothing to train"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, single_process_group: None) -> Trained:
    root = tmp_path_factory.mktemp("contrastive")
    files = {"data": write(root / "pairs.jsonl", toy_rows())}
    return train(config(batch_size=16, compare_random=True), files, list(LETTERS), root)


def test_training_finds_pairs_that_share_a_word(trained):
    facts = FinetuneFacts.of(trained.manifest)
    curves = facts.variants["pretrained"]
    assert facts.metric == "mrr" and facts.scored_split == "test"
    assert facts.candidates == 12 and facts.chance["mrr"] < 0.26
    assert trained.score("mrr") > 0.9 and trained.score("accuracy_at_1") > 0.8
    assert trained.score("mrr", "bag_of_words") > 0.5
    assert curves.loss[-1][1] < 0.5 * curves.loss[0][1] and (curves.dev("mrr")[-1] or 0) > 0.9
    rows = trained.predictions()
    assert rows[0].keys() == {"row", "label", "predicted", "rank"}
    assert all((one["rank"] == 1) == (one["predicted"] == one["label"]) for one in rows)
    assert np.mean([1 / one["rank"] for one in rows]) == pytest.approx(trained.score("mrr"))
    assert facts.examples and all(isinstance(one.predicted, str) for one in facts.examples)
    assert "rank" not in curves.plain


def test_the_saved_model_has_the_vectors_that_were_trained(trained):
    lines = ["a w x", "b", "x c"]
    encoder = from_folder(Location(trained.model_folder))
    [(vectors, _)] = load_embedder(encoder, trained.config.representation, None).embed({"text": line} for line in lines)
    a, b, c = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [{"text": lines[0], "text_b": lines[1]}, {"text": lines[0], "text_b": lines[2]}]
    found = list(trained.load().predict(pairs))
    assert [one.keys() for one in found] == [{"similarity"}] * 2
    np.testing.assert_allclose([one["similarity"] for one in found], [a @ b, a @ c], atol=1e-5)
    model = AutoModel.from_pretrained(trained.model_folder).eval()
    ids = torch.tensor([TOKENIZER.encode(lines[0]).ids])
    with torch.inference_mode():
        expected = model(input_ids=ids).last_hidden_state.mean(1)[0]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)


@pytest.mark.parametrize("model_type", ["modernbert", "roberta"])
def test_encoders_that_transformers_runs_train_vectors_too(tmp_path, single_process_group, model_type):
    task = read(tmp_path / "a.jsonl", toy_rows(), epochs=1, max_seq_length=16, pooling="cls")
    encoder = from_folder(Location(str(write_folder(tmp_path / model_type, model_type))))
    encoder.check_head(task.head())
    out = Output(Location(str(tmp_path / "out")), "finetune-tiny", 1, "0")
    setup = FinetuneSetup(task.config, task, task.encode(encoder.tokenizer()).splits, encoder, out)
    train_in_process(setup)
    folder = Location(str(tmp_path / "out/model"))
    embedder = load_embedder(from_folder(folder), task.config.representation, None)
    [(vectors, _)] = embedder.embed({"text": text} for text in ("a w", "b w"))
    a, b = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    [found] = FineTunedModel.from_folder(folder, task.config).predict([{"text": "a w", "text_b": "b w"}])
    assert found["similarity"] == pytest.approx(a @ b, abs=1e-5)
