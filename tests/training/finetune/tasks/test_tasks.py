"""Kinds of tasks on tiny examples that they can learn: from files to scores and a model that transformers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks import glue
from cloze.training.finetune.tasks.minimal_pairs import MinimalPairsConfig
from cloze.training.finetune.tasks.registry import TASKS
from cloze.training.finetune.tasks.task_config import TaskConfig
from cloze.training.model.bert import BertConfig, BertForPreTraining
from tests.training.finetune.tasks.trained import task_of_files, train

WORDS = ("red", "blue", "green", "round", "square", "flat", "the", "a", "is", "of", "old", "new", "who", "what", ".")
PIECES = [*WORDS, "on", "##e"]
MODEL = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=48,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
SETTINGS = {"name": "tiny", "max_seq_length": 32, "learning_rate": 5e-3, "batch_size": 8, "precision": "fp32"}
TOKENIZER = build_tokenizer([*SPECIAL_TOKENS, *PIECES])
KINDS = {config.model_fields["kind"].default: config for config in TASKS}


def config(kind: str, **more: Any) -> TaskConfig:
    return KINDS[kind].model_validate({**SETTINGS, "kind": kind, **more})


def files_of(folder: Path, **content: str) -> dict[str, Path]:
    """Split -> its file. A name's suffix follows two underscores: train__tsv."""
    found = {}
    for name, text in content.items():
        split, _, suffix = name.partition("__")
        path = folder / f"{split}.{suffix}"
        path.write_text(text)
        found[split] = path
    return found


def table(rows: list[tuple[Any, ...]], header: tuple[str, ...]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in (header, *rows))


def pairs(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Two texts with a colour each; the label says whether that of the second is red."""
    draws = np.random.default_rng(seed).choice(WORDS[:3], (count, 2))
    return [(f"the {one} is old", f"a {other} is new", "yes" if other == "red" else "no") for one, other in draws]


pytestmark = pytest.mark.usefixtures("single_process_group")


def test_pairs_are_classified_and_a_test_part_without_labels_is_predicted(tmp_path: Path) -> None:
    header = ("text", "second", "label")
    unlabelled = [row[:2] for row in pairs(10, 3)]
    files = files_of(
        tmp_path,
        train__tsv=table(pairs(200, 1), header),
        dev__tsv=table(pairs(60, 2), header),
        test__tsv=table(unlabelled, header[:2]),
    )
    settings = config("classification", files={"train": "x"}, epochs=12, columns={"text_b": "second"}, metric="f1")
    trained = train(settings, files, PIECES, tmp_path, MODEL)
    scores = trained.manifest.facts["scores"]
    assert trained.manifest.facts["scored_split"] == "dev" and trained.manifest.facts["metric"] == "f1"
    assert {"f1", "accuracy", "macro_f1", "matthews"} == scores["pretrained"]["intervals"].keys()
    assert scores["pretrained"]["interval"][0] > scores["majority"]["f1"]
    assert scores["pretrained"]["interval"] == scores["pretrained"]["intervals"]["f1"]
    assert [row["label"] for row in trained.predictions("pretrained-test")] == [None] * 10
    new = list(trained.load().predict({"text": a, "text_b": b} for a, b in unlabelled))
    assert [row["predicted"] for row in new] == [row["predicted"] for row in trained.predictions("pretrained-test")]
    right = [row["predicted"] == label for row, (*_, label) in zip(new, pairs(10, 3), strict=True)]
    assert np.mean(right) >= 0.8

    folder = trained.model_folder
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "no", 1: "yes"}
    with torch.inference_mode():
        logits = model(**tokenizer(*zip(*unlabelled, strict=True), padding=True, return_tensors="pt")).logits
    probabilities = [list(row["probabilities"].values()) for row in new]
    np.testing.assert_allclose(logits.softmax(-1).numpy(), probabilities, atol=1e-5)


def test_a_number_is_predicted_and_scored_by_correlations(tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[tuple[str, float]]:
        draw = np.random.default_rng(seed)
        counts = draw.integers(0, 5, count)
        return [(" ".join(["red"] * n + ["is"] * int(draw.integers(1, 4))), float(n)) for n in counts]

    files = files_of(
        tmp_path,
        train__tsv=table(rows(200, 1), ("text", "label")),
        test__tsv=table(rows(50, 2), ("text", "label")),
    )
    trained = train(config("regression", files={"train": "x"}, epochs=10), files, PIECES, tmp_path, MODEL)
    found = trained.manifest.facts["scores"]["pretrained"]
    assert trained.manifest.facts["metric"] == "spearman" and found["pearson"] > 0.8 and found["interval"][0] > 0.8
    assert len(trained.predictions("pretrained-dev")) == 20, "a tenth of train, as there is no file for dev"
    folder = trained.model_folder
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == 1
    with torch.inference_mode():
        number = model(**tokenizer("red red is", return_tensors="pt")).logits.item()
    [mine] = trained.load().predict([{"text": "red red is"}])
    assert mine["predicted"] == pytest.approx(number, abs=2e-4)


def squad(count: int, seed: int, labelled: bool = True) -> str:
    """Contexts with one colour or shape; the questions ask for it, in SQuAD's form. Long ones need several windows."""
    draw = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        answer = str(draw.choice(WORDS[:6]))
        words = [*draw.choice(WORDS[6:12], int(draw.integers(3, 40)))]
        words.insert(int(draw.integers(0, len(words))), answer)
        context = " ".join(words)
        entry: dict[str, Any] = {"id": f"q{seed}-{number}", "question": "what is the"}
        if labelled:
            entry["answers"] = [{"text": answer, "answer_start": f" {context} ".index(f" {answer} ")}]
        paragraphs.append({"context": context, "qas": [entry]})
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


def test_questions_are_answered_from_windows_of_their_contexts(tmp_path: Path) -> None:
    files = files_of(
        tmp_path, train__json=squad(300, 1), dev__json=squad(60, 2), test__json=squad(10, 3, labelled=False)
    )
    settings = config(
        "question_answering", files={"train": "x"}, epochs=6, max_seq_length=24, doc_stride=8, max_query_length=8
    )
    trained = train(settings, files, PIECES, tmp_path, MODEL)
    encoded = trained.task.encode(trained.load().tokenizer)
    assert len(encoded.splits["dev"].lengths) > 60, "long contexts have several windows"
    scores = trained.manifest.facts["scores"]["pretrained"]
    assert trained.manifest.facts["metric"] == "f1" and scores["exact_match"] > 0.8 and scores["interval"][0] > 0.8
    predicted = {row["id"]: row["predicted"] for row in trained.predictions("pretrained-test")}
    written = trained.folder / "predictions/pretrained-test"
    assert json.loads((written / "predictions.json").read_text()) == predicted
    assert (written / "nbest_predictions.json").exists() and not (written / "null_odds.json").exists()

    folder = trained.model_folder
    model, report = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("what is the", "the old blue is new", return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
        span = int(output.start_logits[0, 5:-1].argmax()) + 5, int(output.end_logits[0, 5:-1].argmax()) + 5
    [mine] = trained.load().predict([{"question": "what is the", "context": "the old blue is new"}])
    assert mine["predicted"] == tokenizer.decode(inputs["input_ids"][0, span[0] : span[1] + 1]) == "blue"


@pytest.mark.parametrize(("null_threshold", "predicted", "of"), [(-1e9, "", 1), (1e9, "red", 0)])
def test_the_probability_is_that_of_the_answer_that_the_threshold_chose(
    tmp_path: Path, null_threshold: float, predicted: str, of: int
) -> None:
    content = json.loads(squad(1, 1))
    [paragraph] = content["data"][0]["paragraphs"]
    first = {"answer_start": 0, "text": "the old red"}
    paragraph |= {"context": "the old red", "qas": [{"id": "a", "question": "who", "answers": [first]}]}
    paragraph["qas"].append({"id": "b", "question": "what", "answers": [], "is_impossible": True})
    file = files_of(tmp_path, train__json=json.dumps(content), dev__json=json.dumps(content))
    settings = config("question_answering", files={"train": "x"}, max_query_length=8, null_threshold=null_threshold)
    task = task_of_files(settings, file)
    data = task.encode(TOKENIZER).splits["dev"]
    logits = np.zeros((len(data.ids.values), 2), np.float32)
    logits[data.ids.offsets[:-1] + 5] = 3.0  # [CLS] who [SEP] the old red
    examples = [example for example in task.examples if example.split == "dev"]
    answers = [logits[start:stop] for start, stop in zip(data.ids.offsets, data.ids.offsets[1:], strict=False)]
    row = task.predictions(examples, answers, data).rows[0]
    best = task.predictions(examples, answers, data).files["nbest_predictions.json"]
    ranked = json.loads(best)["a"]
    assert [ranked[0]["text"], ranked[-1]["text"]] == ["red", ""]
    assert row["predicted"] == predicted
    assert row["probability"] == round((ranked[-1] if of else ranked[0])["probability"], 6)


def test_a_right_answer_that_is_not_the_first_one_is_shown_as_right(tmp_path: Path) -> None:
    content = json.loads(squad(1, 1))
    [paragraph] = content["data"][0]["paragraphs"]
    answers = [{"answer_start": 4, "text": "old red"}, {"answer_start": 0, "text": "the old red"}]
    paragraph |= {"context": "the old red one", "qas": [{"id": "a", "question": "who", "answers": answers}]}
    files = files_of(tmp_path, train__json=squad(1, 2), dev__json=json.dumps(content))
    task = task_of_files(config("question_answering", files={"train": "x"}, max_query_length=8), files)
    [dev] = [example for example in task.examples if example.split == "dev"]
    shown = {predicted: task.sample(dev, predicted)["label"] for predicted in ("The old red", "one")}
    assert shown == {"The old red": "The old red", "one": "old red"}


def test_questions_without_an_answer_are_scored_as_squad_2_does(tmp_path: Path) -> None:
    content = json.loads(squad(300, 1))
    for number, paragraph in enumerate(content["data"][0]["paragraphs"]):
        if number % 2:
            paragraph["context"] = " ".join(word for word in paragraph["context"].split() if word not in WORDS[:6])
            paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    files = files_of(tmp_path, data__json=json.dumps(content))
    settings = config("question_answering", file="x", epochs=6, max_query_length=8)
    trained = train(settings, files, PIECES, tmp_path, MODEL)
    scores = trained.manifest.facts["scores"]
    assert trained.manifest.facts["scored_split"] == "test", "a file alone is divided"
    assert scores["pretrained"]["f1"] > scores["no_answer"]["f1"] + 0.2
    assert scores["no_answer"]["no_answer_f1"] == 1 and scores["no_answer"]["has_answer_f1"] == 0
    assert (trained.folder / "predictions/pretrained/null_odds.json").exists()


def test_the_likelier_sentence_of_a_pair_is_that_of_a_loop_over_masked_pieces(tmp_path: Path) -> None:
    rows = [("the old red is new", "the red old is new"), ("who is flat", "who is is"), ("a round one .", "a round")]
    lines = (json.dumps({"sentence_good": good, "sentence_bad": bad, "term": "x"}) + "\n" for good, bad in rows)
    settings = MinimalPairsConfig(name="tiny", file="x", max_seq_length=32, columns={"group": "term"}, precision="fp32")
    trained = train(settings, files_of(tmp_path, data__jsonl="".join(lines)), PIECES, tmp_path, MODEL)
    model, tokenizer = BertForPreTraining(MODEL, len(SPECIAL_TOKENS) + len(PIECES), seed=11).eval(), TOKENIZER

    def log_likelihood(sentence: str) -> float:
        encoding = tokenizer.encode(sentence)
        total = 0.0
        for position in range(1, len(encoding.ids) - 1):
            ids = torch.tensor([encoding.ids])
            for later in range(position, len(encoding.ids) - 1):
                if later == position or encoding.tokens[later].startswith("##"):
                    ids[0, later] = tokenizer.token_to_id("[MASK]")
                else:
                    break
            logits, _ = model(ids, torch.zeros_like(ids), None, torch.tensor([position]))
            total += logits.log_softmax(-1)[0, encoding.ids[position]].item()
        return total

    found = trained.predictions("pretrained")
    for row, pair in zip(found, rows, strict=True):
        expected = [log_likelihood(sentence) for sentence in pair]
        assert list(row["log_likelihoods"].values()) == pytest.approx(expected, abs=1e-3)
        assert row["predicted"] == ("good" if expected[0] > expected[1] else "bad")
    scores = trained.manifest.facts["scores"]["pretrained"]
    assert scores["accuracy"] == np.mean([row["predicted"] == "good" for row in found]) == scores["groups"]["x"]
    assert not (trained.folder / "model").exists()


MNLI = ("index", "sentence1", "sentence2", "gold_label")


def test_extra_files_are_predicted_and_those_with_labels_scored(tmp_path: Path) -> None:
    def content(count: int, seed: int, header: tuple[str, ...] = MNLI) -> str:
        rows = [(number, *row)[: len(header)] for number, row in enumerate(pairs(count, seed))]
        return table(rows, header)

    files = files_of(
        tmp_path, train__tsv=content(200, 1), dev__tsv=content(40, 2), test__tsv=content(10, 3, MNLI[:3]),
        mismatched__tsv=content(30, 4), **{"MNLI-mm__tsv": content(10, 5, MNLI[:3])},
    )  # fmt: skip
    extra = {"mismatched": "x", "MNLI-mm": "x"}
    settings = config("classification", files={"train": "x", "extra": extra}, glue="MNLI", epochs=4)
    trained = train(settings, files, PIECES, tmp_path, MODEL)
    facts = trained.manifest.facts
    assert facts["scored_split"] == "dev" and list(facts["extra_scores"]) == ["mismatched"]
    assert trained.manifest.counts.items() >= {"dev": 40, "test": 10, "mismatched": 30, "MNLI-mm": 10}.items()
    found, scores = trained.predictions("pretrained-mismatched"), facts["extra_scores"]["mismatched"]
    assert [row["label"] for row in found] == [label for *_, label in pairs(30, 4)]
    assert scores["pretrained"]["accuracy"] == np.mean([row["label"] == row["predicted"] for row in found])
    assert {one["benchmark"]: one["base"] for one in facts["published"]} == {
        "GLUE's MNLI": 0.846,
        "GLUE's MNLI-mm": 0.834,
    }
    assert list(scores) == ["pretrained", "majority", "bag_of_words"] and scores.keys() == facts["scores"].keys()
    assert json.loads((trained.folder / "scores-mismatched.json").read_text()) == scores
    assert json.loads((trained.folder / "scores.json").read_text()) == facts["scores"]
    for split, file in (("test", "MNLI-m.tsv"), ("MNLI-mm", "MNLI-mm.tsv")):
        predicted = [row["predicted"] for row in trained.predictions(f"pretrained-{split}")]
        lines = [f"{number}\t{label}\n" for number, label in enumerate(predicted)]
        submission = trained.folder / f"predictions/pretrained-{split}" / file
        assert submission.read_text() == "".join(["index\tprediction\n", *lines])
    assert {file.name for file in trained.folder.glob("predictions/*/*.tsv")} == {"MNLI-m.tsv", "MNLI-mm.tsv"}


@pytest.mark.parametrize("name", ["train", "data", "init", "a b", "", "rows", "truncated"])
def test_an_extra_file_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=r"files\.extra"):
        config("classification", files={"train": "x", "extra": {name: "x"}})


def test_an_extra_file_with_some_labels_names_the_first_row_without(tmp_path: Path) -> None:
    valid = "text\tlabel\nthe\ta\nold\tb\n"
    files = files_of(tmp_path, train__tsv=valid, dev__tsv=valid, more__tsv=f"{valid}red\t\n")
    settings = config("classification", files={"train": "x", "extra": {"more": "x"}})
    with pytest.raises(UserError, match=r"more\.tsv:4: has no label, other rows of more have one; add it or delete"):
        task_of_files(settings, files)


@pytest.mark.parametrize(
    ("name", "train", "test", "labels"),
    [
        ("CoLA", "gj04\t1\t\tthe old\ngj04\t0\t*\told the\n", "index\tsentence\n0\tthe new\n", ["1", "0"]),
        (
            "MRPC",
            '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tthe " old\tthe old\n0\t3\t4\ta\tb\n',
            "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tthe\ta\n",
            ["1", "0"],
        ),
        (
            "RTE",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t-1\n",
            ["entailment", "not_entailment"],
        ),
    ],
)
def test_glue_files_are_read_in_their_published_form(
    tmp_path: Path, name: str, train: str, test: str, labels: list[str]
) -> None:
    files = files_of(tmp_path, train__tsv=train, dev__tsv=train, test__tsv=test)
    settings = config("classification", files={"train": "x"}, glue=name)
    task = task_of_files(settings, files)
    assert [example.label for example in task.examples if example.split == "train"] == labels
    assert [example.label for example in task.examples if example.split == "test"] == [None]
    assert task.scored_split == "dev"
    test = [example for example in task.examples if example.split == "test"]
    written = glue.submission_files(name, test, [{"predicted": "1"}, {"predicted": "0"}])
    [published] = task.facts()["published"]
    assert (published["split"], published["base"]) == ("test", task.facts()["paper"]["base"])
    assert task.facts()["paper"]["base"] == {"CoLA": 0.521, "MRPC": 0.889, "RTE": 0.664}[name]
    assert written == {f"{name}.tsv": b"index\tprediction\n0\t1\n1\t0\n"}


@pytest.mark.parametrize("row", ["1\t\tb\n", "1\ta\n"])
def test_no_row_of_a_file_that_glue_scores_is_skipped(tmp_path: Path, row: str) -> None:
    header, rows = "index\tsentence1\tsentence2", "0\ta\tb\n1\tc\td\n"
    labelled = f"{header}\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n1\te\t\tentailment\n"
    settings = config("classification", files={"train": "x"}, glue="RTE", skip_invalid=True)
    files = files_of(tmp_path, train__tsv=labelled, dev__tsv=labelled, test__tsv=f"{header}\n{rows}")
    assert task_of_files(settings, files).facts()["skipped"] == {"empty text": 2}
    files["test"].write_text(f"{header}\n{rows}{row}")
    with pytest.raises(
        UserError, match=r"test\.tsv: has invalid rows \(1 of '.*, and GLUE's server takes an answer to"
    ):
        task_of_files(settings, files)


def test_f1_of_three_labels_needs_the_one_that_counts(tmp_path: Path) -> None:
    rows = "text\tlabel\nthe\ta\nold\tb\nnew\tc\n"
    files = files_of(tmp_path, train__tsv=rows, dev__tsv=rows)
    settings = {"files": {"train": "x"}, "metric": "f1"}
    with pytest.raises(
        UserError, match=r"has 3 labels in train, and metric: f1 is that of one; set positive to one of"
    ):
        task_of_files(config("classification", **settings), files)
    assert task_of_files(config("classification", **settings, positive="b"), files).positive == "b"


def test_small_numbers_are_not_rounded_to_equal_ones(tmp_path: Path) -> None:
    rows = "text\tlabel\nthe\t1e-6\nold\t2e-6\nnew\t3e-6\n"
    task = task_of_files(config("regression", files={"train": "x"}), files_of(tmp_path, train__tsv=rows, dev__tsv=rows))
    examples = [example for example in task.examples if example.split == "dev"]
    predicted = [row["predicted"] for row in task.predictions(examples, [1e-6, 2e-6, 3.00000001e-6], None).rows]
    assert predicted == [1e-6, 2e-6, 3e-6] and task.scores(examples, predicted)["spearman"] == 1


def test_a_label_that_is_not_a_number_names_file_and_line(tmp_path: Path) -> None:
    files = files_of(tmp_path, train__tsv="text\tlabel\nthe\t1\nold\tfar\n")
    settings = config("regression", files={"train": "x"})
    with pytest.raises(UserError, match=r"train\.tsv:3: the label 'far' is not a number; correct it or delete the row"):
        task_of_files(settings, files)


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    ("kind", "suffix", "valid", "invalid", "reason"),
    [
        ("classification", "tsv", "text\tlabel\nthe\ta\nold\tb\n", "text\tlabel\n\ta\n", "empty text"),
        ("classification", "tsv", "text\tlabel\nthe\ta\nold\tb\n", "text\tlabel\nold\tc\n", "unknown label"),
        ("regression", "tsv", "text\tlabel\nthe\t1\nold\t2\n", "text\tlabel\nthe\tfar\n", "invalid label"),
        ("multilabel", "tsv", "text\tlabels\nthe\ta\nold\tb\n", "text\tlabels\nthe\tc\n", "unknown label"),
        (
            "choice",
            "jsonl",
            "".join(f'{{"context": "a", "choices": ["b", "c"], "label": {label}}}\n' for label in (0, 1)),
            '{"context": "a", "choices": ["b", "c"], "label": 2}\n',
            "invalid label",
        ),
        ("tagging", "txt", "the O\nred B-X\n", "the O\nred\n", "other number of columns"),
        (
            "tagging",
            "jsonl",
            '{"tokens": ["a", "b"], "tags": ["O", "B-X"]}',
            '{"tokens": ["a"], "tags": ["B-Y"]}',
            "tag",
        ),
    ],
)
def test_a_part_whose_rows_are_all_skipped_is_an_error_and_no_other_division(
    tmp_path: Path, kind: str, suffix: str, valid: str, invalid: str, reason: str, split: str
) -> None:
    parts = {"train": valid, "dev": valid, split: invalid}
    files = files_of(tmp_path, **{f"{name}__{suffix}": text for name, text in parts.items()})
    settings = config(kind, files={"train": "x"}, skip_invalid=True)
    line = rf"{split}\.{suffix}.*: skip_invalid leaves no row of {split}, as all are invalid \(.*{reason}"
    with pytest.raises(UserError, match=line):
        task_of_files(settings, files)


def test_a_part_whose_rows_cannot_be_read_is_an_error_that_counts_them(tmp_path: Path) -> None:
    files = files_of(tmp_path, train__tsv="text\tlabel\nthe\ta\nold\tb\n", dev__tsv="text\tlabel\nthe\ta\tb\n")
    with pytest.raises(UserError, match=r"dev\.tsv: has no rows besides 1 that cannot be read and are skipped; add "):
        task_of_files(config("classification", files={"train": "x"}, skip_invalid=True), files)


def test_a_split_whose_rows_are_all_skipped_is_an_error_in_a_single_file_too(tmp_path: Path) -> None:
    files = files_of(tmp_path, data__tsv="text\tlabel\tsplit\nthe\ta\ttrain\nold\tb\ttrain\n\ta\tdev\n")
    with pytest.raises(
        UserError, match=r"data\.tsv:4: skip_invalid leaves no row of dev, as all are invalid \(1 of 'em"
    ):
        task_of_files(config("classification", file="x", skip_invalid=True), files)


def test_a_file_of_questions_is_divided_by_contexts(tmp_path: Path) -> None:
    content = json.loads(squad(30, 1))
    for paragraph in content["data"][0]["paragraphs"]:
        paragraph["qas"].append(paragraph["qas"][0] | {"id": f"{paragraph['qas'][0]['id']}-b"})
    settings = config("question_answering", file="x", max_query_length=8)
    task = task_of_files(settings, files_of(tmp_path, data__json=json.dumps(content)))
    splits = {split: {one.question.id for one in task.examples if one.split == split} for split in ("dev", "test")}
    assert splits == {
        "dev": {"q1-1", "q1-1-b", "q1-18", "q1-18-b", "q1-27", "q1-27-b"},
        "test": {"q1-25", "q1-25-b", "q1-4", "q1-4-b", "q1-5", "q1-5-b"},
    }
