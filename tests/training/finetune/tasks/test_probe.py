"""Probes: logistic regression on frozen vectors, beside scikit-learn on the vectors of transformers; and BiLSTMs."""

import itertools
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import as_one_file, source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import weights_files
from cloze.training.finetune.encoders.pretrained_encoder import from_weights_file
from cloze.training.finetune.probing import regression
from cloze.training.finetune.probing.bilstm import BiLSTM
from cloze.training.finetune.probing.regression import Regression, fold_of_examples
from cloze.training.finetune.stage import check
from cloze.training.finetune.tasks.probe_config import BiLSTMConfig, ProbeConfig
from cloze.training.finetune.tasks.registry import FinetuneConfig
from cloze.training.finetune.trials import FinetuneSetup
from cloze.training.model.bert import BertConfig
from tests.training.finetune.encoders.transformers_folders import write_folder
from tests.training.finetune.tasks.trained import Trained, task_of_files, train, train_in_process

WORDS = ["red", "green", "blue", "old", "new", "round", "flat", "is", "the", "who"]
COLOURS = WORDS[:3]
MODEL = BertConfig(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    initializer_range=0.1,
)
ALL_LAYERS = (0, "last", "sum-all", "second-to-last", "sum-last-4", "concat-last-4")

pytestmark = pytest.mark.usefixtures("single_process_group")


def config(**settings: Any) -> ProbeConfig:
    given = {"name": "tiny", "kind": "probe", "file": "x", "max_seq_length": 32, "threads": 1, "seed": 3, **settings}
    return TypeAdapter(FinetuneConfig).validate_python(given)


def sentences(count: int) -> list[list[str]]:
    chosen = random.Random(5)
    return [chosen.choices(WORDS, k=chosen.randint(3, 8)) for _ in range(count)]


def texts(count: int = 300) -> str:
    """Whether red is one of the words."""
    rows = (f"{' '.join(words)}\t{'red' if 'red' in words else 'other'}" for words in sentences(count))
    return "".join(f"{row}\n" for row in rows)


def tagged(count: int = 200) -> str:
    """A colour is an entity."""
    lines = (f"{word} {'B-COLOUR' if word in COLOURS else 'O'}" for words in sentences(count) for word in [*words, ""])
    return "".join("\n" if line == " O" else f"{line}\n" for line in lines)


def probed(root: Path, content: str, suffix: str, **settings: Any) -> Trained:
    root.mkdir(exist_ok=True)
    file = root / f"data.{suffix}"
    file.write_text(content)
    return train(config(**settings), {"data": file}, WORDS, root, MODEL)


def rows_of(trained: Trained, variant: str = "pretrained") -> list[dict[str, Any]]:
    return trained.manifest.facts["variants"][variant]["layers"]


of_texts = partial(probed, content=texts(), suffix="tsv", of="classification", columns={"text": 1, "label": 2})
of_words = partial(probed, content=tagged(), suffix="txt", of="tagging")


def test_a_probe_of_texts_has_a_row_for_each_choice_of_layers_and_keeps_the_best_on_dev(tmp_path: Path) -> None:
    trained = of_texts(tmp_path, layers=list(ALL_LAYERS), pooling="cls", C=[0.01, 1.0], compare_random=True)
    rows = rows_of(trained)
    assert [row["layers"] for row in rows] == list(ALL_LAYERS)
    assert [row["dimension"] for row in rows] == [32, 32, 32, 32, 32, 128]
    [chosen] = [row for row in rows if row.get("is_chosen")]
    assert chosen["dev"] == max(row["dev"] for row in rows)
    scores = trained.manifest.facts["scores"]
    assert scores["pretrained"]["accuracy"] == chosen["score"]
    assert set(scores) == {"pretrained", "random", "majority", "bag_of_words"}
    of_embeddings = next(row for row in rows if row["layers"] == 0)
    assert of_embeddings["score"] == pytest.approx(scores["majority"]["accuracy"], abs=0.05), "[CLS] has seen no word"
    assert chosen["score"] > of_embeddings["score"] + 0.1
    assert len(rows_of(trained, "random")) == 6
    assert not (trained.folder / "model").exists(), "nothing is trained"


def test_a_probe_of_words_scores_entities(tmp_path: Path) -> None:
    trained = of_words(tmp_path, layers=[0, "last"])
    assert trained.manifest.facts["metric"] == "f1"
    assert trained.score("f1") == 1, "the embedding of a word says which word it is"
    assert rows_of(trained)[0]["is_chosen"], "the first of equals"
    assert trained.predictions()[0].keys() == {"row", "words", "label", "predicted"}


def test_the_same_probe_has_the_same_bytes(tmp_path: Path) -> None:
    settings = {"layers": ["last", 0], "C": [0.1, 1.0], "cross_validation": 3}
    first, second = (of_words(tmp_path / name, **settings) for name in "ab")
    assert rows_of(first) == rows_of(second)
    read = [(one.folder / "predictions/pretrained.jsonl").read_bytes() for one in (first, second)]
    assert read[0] == read[1] and first.manifest.facts["scores"] == second.manifest.facts["scores"]


@pytest.mark.parametrize("of_units", [of_texts, of_words])
def test_with_cross_validation_the_folds_of_train_choose(tmp_path: Path, of_units: Callable[..., Trained]) -> None:
    rows = rows_of(of_units(tmp_path, layers=[0, 1, "last"], C=[1e-4, 1.0], cross_validation=4))
    means = [np.mean(row["folds"]) for row in rows]
    assert [len(row["folds"]) for row in rows] == [4] * 3
    assert rows[int(np.argmax(means))]["is_chosen"]
    assert rows[1]["C"] == 1.0, "1e-4 predicts the majority"


def after_a_colour(count: int = 300) -> str:
    """The word after a colour is an entity: the vector of its embedding does not tell."""
    lines = list[str]()
    for words in sentences(count):
        pairs = itertools.pairwise(["", *words])
        lines += [f"{word} {'B-NEXT' if previous in COLOURS else 'O'}" for previous, word in pairs]
        lines.append("")
    return "\n".join(lines)


BILSTM = {"hidden_size": 24, "epochs": 25, "learning_rate": 5e-3}


def test_a_bilstm_sees_the_other_words_of_a_sentence(tmp_path: Path) -> None:
    content, layers = after_a_colour(), [0, "concat-last-4"]
    of_lstm = probed(tmp_path / "a", content, "txt", of="tagging", layers=layers, bilstm=BILSTM)
    of_regression = probed(tmp_path / "b", content, "txt", of="tagging", layers=[0])
    assert of_lstm.score("f1") > 0.9
    assert of_regression.score("f1") < 0.5
    rows = rows_of(of_lstm)
    assert [row["dimension"] for row in rows] == [32, 128] and not any("C" in row for row in rows)


def test_the_same_bilstm_has_the_same_bytes_and_folds(tmp_path: Path) -> None:
    settings = {"layers": [0, "last"], "bilstm": BILSTM | {"epochs": 3}, "cross_validation": 3}
    first, second = (of_words(tmp_path / name, **settings) for name in "ab")
    assert rows_of(first) == rows_of(second) and [len(row["folds"]) for row in rows_of(first)] == [3, 3]
    read = [(one.folder / "predictions/pretrained.jsonl").read_bytes() for one in (first, second)]
    assert read[0] == read[1]


def test_the_probabilities_of_a_row_do_not_depend_on_the_other_rows() -> None:
    generator, lengths = np.random.default_rng(0), np.array([3, 7, 1, 5])
    vectors = generator.normal(size=(16, 8)).astype(np.float32)
    targets, settings = generator.integers(0, 3, 16), BiLSTMConfig(hidden_size=6, epochs=2)
    notes = list[int]()
    device = torch.device("cpu")
    model = BiLSTM.fit(vectors, targets, lengths, 3, settings, 1, device, notes.append)
    together = model.probabilities(vectors, lengths)
    assert notes == [1, 2] and together.sum(1) == pytest.approx(1)
    bounds = np.cumsum([0, *lengths])
    for start, stop in itertools.pairwise(bounds):
        assert model.probabilities(vectors[start:stop], np.array([stop - start])) == pytest.approx(
            together[start:stop], abs=1e-6
        )
    assert BiLSTM.fit(vectors, targets, lengths, 3, settings, 2, device, notes.append).probabilities(
        vectors, lengths
    ) != pytest.approx(together, abs=1e-3), "another seed"


def init_file(folder: Path, root: Path) -> Any:
    """The input `init` of a stage, as a run has it."""
    files = [Location(file) for file in weights_files(str(folder), Location(str(root)))]
    return as_one_file([source_file(file, Location(str(root / "sources"))) for file in files], Location(str(root)))


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_scores_are_those_of_scikit_learn_on_the_vectors_of_transformers(tmp_path: Path, model_type: str) -> None:
    folder, file = write_folder(tmp_path / "model", model_type), tmp_path / "data.jsonl"
    splits = ["train"] * 200 + ["dev"] * 60 + ["test"] * 60
    rows = [
        {"text": " ".join(words), "label": "long" if len(words) > 5 else "short", "split": split}
        for words, split in zip(sentences(320), splits, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(of="classification", pooling="cls", file=str(file), C=0.5, init=str(folder))
    encoder, task = from_weights_file(init_file(folder, tmp_path)), task_of_files(settings, {"data": file})
    out = Output(Location(str(tmp_path / "out")), "finetune-tiny", 1, "0")
    train_in_process(FinetuneSetup(settings, task, task.encode(encoder.tokenizer()).splits, encoder, out))
    [row] = out.finished_parts(["pretrained"])["pretrained"].facts["layers"]

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        vectors = model(**inputs).last_hidden_state[:, 0].numpy()
    labels = np.array([row["label"] for row in rows])
    reference = LogisticRegression(C=0.5, max_iter=1000).fit(vectors[:200], labels[:200])
    assert 0.6 < reference.score(vectors[260:], labels[260:]) < 1
    assert row["score"] == pytest.approx(reference.score(vectors[260:], labels[260:]), abs=1.5 / 60)
    assert row["dev"] == pytest.approx(reference.score(vectors[200:260], labels[200:260]), abs=1.5 / 60)


def test_layers_that_the_encoder_lacks_are_found_before_the_run(tmp_path: Path) -> None:
    folder, file = write_folder(tmp_path / "model", "distilbert"), tmp_path / "data.tsv"
    file.write_text(texts(40))
    inputs = {
        "data": source_file(Location(str(file)), Location(str(tmp_path / "cache"))),
        "init": init_file(folder, tmp_path),
    }
    columns = {"text": 1, "label": 2}
    with pytest.raises(UserError, match="layers 3: the encoder has 2 layers; give a number from 0 to 2"):
        check(config(of="classification", columns=columns, layers=[1, 3]), inputs)
    check(config(of="classification", columns=columns, layers=[1, 2]), inputs)


def test_a_label_of_train_is_in_every_fold() -> None:
    labels = np.array(["a"] * 20 + ["b"] * 8)
    folds = fold_of_examples(labels, 28, 4, seed=1)
    assert [(labels[folds == fold] == "b").sum() for fold in range(4)] == [2] * 4
    assert (folds != fold_of_examples(labels, 28, 4, seed=2)).any()


def test_labels_that_train_lacks_have_the_probability_0() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    two = Regression.fit(vectors, np.array([0, 2] * 10), 4, 1.0).probabilities(vectors)
    assert two.shape == (20, 4) and (two[:, [1, 3]] == 0).all() and two.sum(1) == pytest.approx(1)
    one = Regression.fit(vectors, np.full(20, 3), 4, 1.0).probabilities(vectors)
    assert (one == [0, 0, 0, 1]).all()


def test_a_regression_that_stops_early_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    targets = (vectors[:, 0] + vectors[:, 1] > 0).astype(np.int64)
    assert Regression.fit(vectors, targets, 2, 1.0).converged
    monkeypatch.setattr(regression, "MAX_ITERATIONS", 2)
    assert not Regression.fit(vectors, targets, 2, 1.0).converged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"of": "classification", "scheme": "BIO"},
            "tiny: scheme has no meaning with of: classification; leave it out",
        ),
        ({"of": "tagging", "pooling": "cls"}, "tiny: pooling has no meaning with of: tagging; leave it out"),
        ({"of": "tagging", "columns": {"text": 1}}, "tiny: columns.text has no meaning with of: tagging; leave it out"),
        ({"of": "classification", "bilstm": {}}, "tiny: bilstm has no meaning with of: classification; leave it out"),
        ({"of": "tagging", "bilstm": {}, "C": 2.0}, "tiny: C has no meaning with bilstm; leave it out"),
        ({"of": "tagging", "layers": [1, 1]}, "1 is there more than once; give different values"),
        ({"of": "tagging", "cross_validation": 1}, "give 0, or the number of folds, at least 2"),
    ],
)
def test_a_key_that_the_probe_does_not_read_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**settings)
    assert message in str(error.value)


def test_more_folds_than_texts_of_a_label_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "data.tsv"
    file.write_text(texts(40))
    settings = config(of="classification", columns={"text": 1, "label": 2}, cross_validation=40)
    with pytest.raises(UserError, match=r"most frequent label, .*, fewer than cross_validation 40; lower"):
        task_of_files(settings, {"data": file})
