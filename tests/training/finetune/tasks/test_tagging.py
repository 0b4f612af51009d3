"""Tagging: files in columns and tables, schemes, rows of long sentences, document context, and a whole training."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForTokenClassification, pipeline

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.tag_schemes import detect_scheme, first_invalid, scheme_tags
from cloze.training.finetune.tasks.tagged_inputs import EncodedSentences
from cloze.training.finetune.tasks.tagging import TagAnswer, Tagging, TaggingConfig, prediction_files
from tests.training.finetune.tasks.trained import SETTINGS, Trained, task_of_files, train

# The first lines of CoNLL-2003's train.txt and valid.txt.
CONLL = {
    "train": "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\ncall NN I-NP O\n\n"
    "Peter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n\n-DOCSTART- -X- -X- O\n\nLONDON NNP B-NP B-LOC\n",
    "dev": "-DOCSTART- -X- -X- O\n\nWest NNP B-NP B-MISC\nIndian NNP I-NP I-MISC\nPhil NNP I-NP B-PER\n",
    "test": "-DOCSTART- -X- -X- O\n\nJAPAN NNP B-NP B-LOC\nGET VB B-VP O\n\n"
    "Nadim NNP B-NP B-PER\nLadki NNP I-NP I-PER\n",
}


def config(**settings: Any) -> TaggingConfig:
    files = {} if "file" in settings else {"files": {"train": "x"}}
    return TaggingConfig(**{**SETTINGS, **files, **settings})


def write(root: Path, files: dict[str, str], suffix: str = ".txt") -> dict[str, Path]:
    paths = {name: root / f"{name}{suffix}" for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    return paths


def read(root: Path, files: dict[str, str], suffix: str = ".txt", **settings: Any) -> Tagging:
    return task_of_files(config(**settings), write(root, files, suffix))


def columns(*sentences: str, separator: str = " ") -> str:
    """ "a/O b/B-X" -> lines with a word and its tag, sentences separated by an empty line."""
    return "\n\n".join("\n".join(word.replace("/", separator) for word in one.split()) for one in sentences) + "\n"


def encoded(task: Tagging, split: str, pieces: str) -> EncodedSentences:
    found: Any = task.encode(build_tokenizer([*SPECIAL_TOKENS, *pieces.split()])).splits[split]
    return found


def test_conll_2003_is_read_by_its_columns_and_documents(tmp_path):
    task = read(tmp_path, CONLL, columns={"token": 1, "tag": 4})
    assert [(one.split, one.row, one.document, one.words) for one in task.examples] == [
        ("train", 3, 1, ("EU", "rejects", "German", "call")),
        ("train", 8, 1, ("Peter", "Blackburn")),
        ("train", 13, 2, ("LONDON",)),
        ("dev", 3, 1, ("West", "Indian", "Phil")),
        ("test", 3, 1, ("JAPAN", "GET")),
        ("test", 6, 1, ("Nadim", "Ladki")),
    ]
    assert task.examples[0].label == ("B-ORG", "O", "B-MISC", "O")
    assert task.scheme == "BIO" and task.metric == "f1" and task.scored_split == "test"
    assert task.labels == ["O", *(f"{prefix}-{name}" for name in ("LOC", "MISC", "ORG", "PER") for prefix in "BI")]
    assert task.facts()["labels"]["test"] == {"B-LOC": 1, "B-PER": 1, "I-PER": 1, "O": 1}


@pytest.mark.parametrize("separator", [" ", "\t", "  "])
def test_the_last_column_is_the_tag_by_default(tmp_path, separator):
    files = {"train": columns("a/x/O b/y/B-T", separator=separator), "dev": columns("a/x/B-T", separator=separator)}
    task = read(tmp_path, files)
    assert [(one.words, one.label) for one in task.examples] == [(("a", "b"), ("O", "B-T")), (("a",), ("B-T",))]


def test_words_in_columns_with_tabs_have_spaces(tmp_path):
    files = {"train": "10 000\tB-N\n\u00a0\tO\n", "dev": "x y\tO\n"}
    assert [one.words for one in read(tmp_path, files).examples] == [("10 000", "\u00a0"), ("x y",)]


def test_comments_and_gzip_of_conll_u(tmp_path):
    text = "# newdoc id = a\n# sent_id = 1\n1\tab\tB-X\n2\tc\tO\n\n# newdoc\n1\td\tO\n"
    path = tmp_path / "train.conll.gz"
    path.write_bytes(gzip.compress(text.encode()))
    dev = tmp_path / "dev.conll"
    dev.write_text("1\te\tB-X\n")
    found = task_of_files(config(columns={"token": 2, "comment": "#"}), {"train": path, "dev": dev})
    assert [(one.words, one.row, one.document) for one in found.examples] == [
        (("ab", "c"), 3, 1),
        (("d",), 7, 2),
        (("e",), 1, None),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_words_and_numbers_of_tags_as_hugging_face_has_them(tmp_path, suffix):
    rows = {
        "train": [{"tokens": ["EU", "rejects"], "ner_tags": [1, 0]}, {"tokens": ["x"], "ner_tags": [2]}],
        "dev": [{"tokens": ["a"], "ner_tags": [1]}],
        "test": [{"tokens": ["b"]}],
    }
    paths = {name: tmp_path / f"{name}{suffix}" for name in rows}
    for name, found in rows.items():
        if suffix == ".jsonl":
            paths[name].write_text("".join(f"{json.dumps(row)}\n" for row in found))
        else:
            pq.write_table(pa.Table.from_pylist(found), paths[name])
    task = task_of_files(config(columns={"tag": "ner_tags", "tag_names": ("O", "B-ORG", "B-PER")}), paths)
    assert [one.label for one in task.examples] == [("B-ORG", "O"), ("B-PER",), ("B-ORG",), None]
    assert task.scored_split == "dev"
    assert prediction_files([one for one in task.examples if one.split == "test"], [{"predicted": ["O"]}]) == {}


def test_documents_of_a_table_have_a_column(tmp_path):
    rows = [{"tokens": [word], "tags": ["B-A" if word == "x" else "O"], "doc": word} for word in "xyxy"]
    files = {name: "".join(f"{json.dumps(row)}\n" for row in rows) for name in ("train", "dev")}
    task = read(tmp_path, files, ".jsonl", columns={"document": "doc"}, context="document")
    assert [one.document for one in task.examples if one.split == "dev"] == ["x", "y", "x", "y"]


def test_a_test_file_without_the_tags_column_is_unlabelled(tmp_path):
    files = {name: columns(f"a/x/{tag} b/y/O") for name, tag in (("train", "B-T"), ("dev", "B-T"))}
    task = read(tmp_path, files | {"test": "a x\nb y\n\nc z\n"})
    assert [one.label for one in task.examples if one.split == "test"] == [None, None]
    assert task.scored_split == "dev"
    rows = [{"predicted": ["B-T", "O"]}, {"predicted": ["O"]}]
    test = [one for one in task.examples if one.split == "test"]
    assert prediction_files(test, rows) == {"test.conll": b"a x B-T\nb y O\n\nc z O\n\n"}


def test_prediction_files_have_the_lines_of_the_file_and_the_predicted_tag(tmp_path):
    task = read(tmp_path, CONLL, columns={"tag": 4})
    rows = [{"predicted": ["O", "O"]}, {"predicted": ["B-PER", "I-PER"]}]
    test = [one for one in task.examples if one.split == "test"]
    assert prediction_files(test, rows)["test.conll"].decode() == (
        "-DOCSTART- -X- -X- O O\n\nJAPAN NNP B-NP B-LOC O\nGET VB B-VP O O\n\n"
        "Nadim NNP B-NP B-PER B-PER\nLadki NNP I-NP I-PER I-PER\n\n"
    )


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["B-A I-A O B-A", "O"], "BIO"),
        (["B-A O"], "BIO"),
        (["I-A I-A O I-A B-A", "I-B"], "IOB1"),
        (["S-A O B-A I-A E-A B-B E-B"], "IOBES"),
    ],
)
def test_the_scheme_is_detected(sentences, scheme):
    tags = [one.split() for one in sentences]
    assert detect_scheme(tags) == scheme
    assert all(first_invalid(one, scheme) is None for one in tags)


@pytest.mark.parametrize(
    ("scheme", "tags", "position"),
    [
        ("BIO", "O I-A", 1),
        ("BIO", "B-A I-B", 1),
        ("BIO", "I-A", 0),
        ("BIO", "O S-A", 1),
        ("IOB1", "O B-A", 1),
        ("IOB1", "I-A B-B", 1),
        ("IOBES", "B-A O", 0),
        ("IOBES", "B-A", 0),
        ("IOBES", "B-A I-A", 1),
        ("IOBES", "O E-A", 1),
        ("IOBES", "S-A I-A", 1),
        ("IOBES", "B-A I-A B-A E-A", 1),
    ],
)
def test_a_tag_that_breaks_its_scheme_has_a_position(scheme, tags, position):
    assert first_invalid(tags.split(), scheme) == position


def test_labels_are_all_tags_of_the_types_in_train():
    assert scheme_tags(["B-Y", "O", "S-X"], "IOBES") == ["O", *(f"{p}-X" for p in "BIES"), *(f"{p}-Y" for p in "BIES")]
    assert scheme_tags(["I", "O"], "IOB1") == ["O", "I", "B"]


DEV = columns("a/B-T")


@pytest.mark.parametrize(
    ("train", "dev", "settings", "message"),
    [
        (
            "a O\nb\n",
            DEV,
            {},
            r"train\.txt:2: has 1 columns, the file's first word has 2; separate 2 columns by spaces",
        ),
        (
            "a O\n# c d\n",
            DEV,
            {},
            r"train\.txt:2: has 3 columns, .* by spaces, or set columns\.comment if it is a comment",
        ),
        ("a\tO\n\tB-T\n", DEV, {}, r"train\.txt:2: the word is empty; fill it in"),
        ("a NN\nb O\n", DEV, {}, r"train\.txt:1: the tag 'NN' is not O, or B, I, E or S .* scheme: none for"),
        (
            columns("a/B-T b/I-T", "c/B-T d/O e/I-T f/O"),
            DEV,
            {},
            r"train\.txt:6: the tag 'I-T' between O and O is not BIO; correct it or set scheme",
        ),
        (
            columns("a/I-T"),
            DEV,
            {"scheme": "IOB1"},
            r"dev\.txt:1: the tag 'B-T' between the beginning of a sentence and",
        ),
        (columns("a/B-T"), "x O\ny B-U\n", {}, r"dev\.txt:2: the tag 'B-U' of dev is not in train; correct it or add"),
        ("a O\n", "a O\n", {}, r"train\.txt: all words of train have the tag 'O'; check columns\.tag"),
        ("a\n", DEV, {}, r"train\.txt:1: column 1 of 1 is both token and tag; add the tags"),
        ("a O\n", DEV, {"columns": {"tag": 4}}, r"train\.txt:1: has no column 4, it has 2; set columns to these"),
        ("a O\n", DEV, {"columns": {"tag": "ner"}}, r"set columns\.tag to a number, not 'ner'"),
        ("\n \n", DEV, {}, r"train\.txt: has no words; write a word and its tag per line"),
        ("a B-T\n# c\n", DEV, {"columns": {"comment": "#"}}, r"train\.txt:2: is a comment inside a sentence"),
    ],
)
def test_an_invalid_file_is_an_error_with_the_line(tmp_path, train, dev, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, {"train": train, "dev": dev}, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, r"train\.jsonl:2: has 2 tokens and 1 tags; give a tag for each word"),
        ({"tokens": "a b", "tags": ["O"]}, r"train\.jsonl:2: tokens is or contains 'a b'; write a list of texts"),
        ({"tokens": [], "tags": []}, r"train\.jsonl:2: tokens is or contains \[\]"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, r"train\.jsonl:2: tokens is or contains 3"),
        ({"tokens": ["a"], "tags": [7]}, r"train\.jsonl:2: tags are numbers \(7\); set columns\.tag_names"),
        ({"tokens": ["a"], "tags": None}, r"train\.jsonl:2: tags is or contains None"),
        ({"tokens": ["a", "b"], "tags": ["O", "I-T"]}, r"train\.jsonl:2: word 2: the tag 'I-T' between O and its end"),
        ({"tokens": ["a"]}, r"train\.jsonl:2: has no column tags"),
    ],
)
def test_an_invalid_row_is_an_error_with_the_line(tmp_path, row, message):
    good = json.dumps({"tokens": ["a", "b"], "tags": ["B-T", "I-T"]}) + "\n"
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"train": good + json.dumps(row) + "\n" + good, "dev": good}, ".jsonl")


def test_a_comma_separated_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv: is CSV; write a word per line"):
        read(tmp_path, {"train": "a,O\n", "dev": "a,O\n"}, ".csv")


def test_a_column_number_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"columns are counted from 1, or from the end: -1 is the last"):
        config(columns={"token": 0})


def test_invalid_sentences_are_skipped_and_counted_on_request(tmp_path):
    train = columns("a/B-T b/O", "c/O d/I-T", "e/NN") + "\nf\n\n" + columns("g/B-T")
    task = read(tmp_path, {"train": train, "dev": columns("a/B-T", "a/B-U")}, skip_invalid=True)
    assert [one.words for one in task.examples] == [("a", "b"), ("g",), ("a",)]
    assert task.facts()["skipped"] == {
        "other number of columns": 1,
        "invalid tag": 1,
        "tag that breaks the scheme": 1,
        "unknown tag": 1,
    }


def test_one_file_is_divided_by_documents(tmp_path):
    documents = [f"-DOCSTART- O\n\n{columns(*('a/O b/B-T',) * 3)}" for _ in range(20)]
    task = read(tmp_path, {"data": "\n".join(documents)}, file="x")
    by_document = {one.document: {other.split for other in task.examples if other.document == one.document}
                   for one in task.examples}  # fmt: skip
    assert all(len(splits) == 1 for splits in by_document.values())
    splits = [splits.copy().pop() for splits in by_document.values()]
    assert [splits.count(name) for name in ("train", "dev", "test")] == [16, 2, 2]


def test_one_file_without_documents_is_divided_by_sentences(tmp_path):
    task = read(tmp_path, {"data": columns(*("a/O b/B-T",) * 20)}, file="x")
    splits = [one.split for one in task.examples]
    assert [splits.count(name) for name in ("train", "dev", "test")] == [16, 2, 2]


PIECES = "a b c d e ##x ##y"


def test_the_first_piece_of_a_word_carries_its_tag(tmp_path):
    files = {"train": columns("axy/B-T b/O cx/B-T"), "dev": DEV}
    data = encoded(read(tmp_path, files), "train", PIECES)
    assert data.texts.ids.values.tolist() == [2, 5, 10, 11, 6, 7, 10, 3]
    assert data.first_pieces.values.tolist() == [1, 4, 5]
    assert data.words.values.tolist() == [0, 1, 2] and data.targets.tolist() == [1, 0, 1]


def test_pieces_are_those_of_words_that_are_split_already(tmp_path):
    words = ["U.S.", "Al-Ain's", "\u200b", "Müller", "(", "日本x", "\u00a0", "[MASK]"]
    files = {"train": "".join(f"{word}\tO\n" for word in words) + "\na\tB-X\n", "dev": DEV.replace("B-T", "B-X")}
    tokenizer = build_tokenizer([*SPECIAL_TOKENS, *"usalinmer.-'(日本x", *(f"##{c}" for c in "usalinmer")])
    data: Any = read(tmp_path, files).encode(tokenizer).splits["train"]
    expected = tokenizer.encode(words, is_pretokenized=True)
    first = np.array([0])
    assert data.texts.ids.take(first).values.tolist() == expected.ids
    positions = {word: position for position, word in reversed(list(enumerate(expected.word_ids))) if word is not None}
    assert data.words.take(first).values.tolist() == sorted(positions)
    assert data.first_pieces.take(first).values.tolist() == [positions[word] for word in sorted(positions)]


def test_a_long_sentence_becomes_several_rows_and_each_word_is_in_one(tmp_path):
    sentence = " ".join(f"{word}/O" for word in ["a", "bxy", "cx", "d", "exyx", "a", "b"])
    task = read(tmp_path, {"train": columns(sentence, "a/B-T b/O"), "dev": DEV}, max_seq_length=6)
    encoding = task.encode(build_tokenizer([*SPECIAL_TOKENS, *PIECES.split()]))
    data: Any = encoding.splits["train"]
    rows = [data.words.take(np.array([row])).values.tolist() for row in range(len(data.lengths))]
    assert rows == [[0, 1], [2, 3], [4], [5, 6], [7, 8]]
    assert data.lengths.max() <= 6
    for row in range(len(rows)):  # what is at a word's position is its first piece
        one = np.array([row])
        ids = data.texts.ids.take(one).values[data.first_pieces.take(one).values]
        words = [["a", "bxy", "cx", "d", "exyx", "a", "b", "a", "b"][word] for word in rows[row]]
        assert ids.tolist() == [PIECES.split().index(word[0]) + 5 for word in words]
    assert encoding.truncated == 0 and encoding.counts["divided_sentences"] == 1


def test_a_word_with_too_many_pieces_is_truncated_and_counted(tmp_path):
    task = read(tmp_path, {"train": columns("a/B-T bxyxyxy/O c/O"), "dev": DEV}, max_seq_length=5)
    encoding = task.encode(build_tokenizer([*SPECIAL_TOKENS, *PIECES.split()]))
    data: Any = encoding.splits["train"]
    assert data.lengths.tolist() == [3, 5, 3] and encoding.truncated == 1


def test_words_without_pieces_are_in_no_row_and_are_predicted_as_outside(tmp_path):
    files = {"train": columns("a/B-T"), "dev": "\u200b B-T\na B-T\n\n\u200b O\n"}
    task = read(tmp_path, files)
    encoding = task.encode(build_tokenizer([*SPECIAL_TOKENS, "a"]))
    data: Any = encoding.splits["dev"]
    assert encoding.counts["words_without_pieces"] == 2
    assert data.words.values.tolist() == [1]
    dev = [one for one in task.examples if one.split == "dev"]
    answers = [TagAnswer(np.array([1]), 0.5)]
    assert [row["predicted"] for row in task.predictions(dev, answers, data).rows] == [["O", "B-T"], ["O"]]
    assert task.evaluate(answers, data) == {"f1": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3), "loss": 0.5}


def test_document_context_fills_the_row_on_both_sides_without_labels(tmp_path):
    document = columns("a/B-T b/O", "c/O d/O", "e/O a/O")
    files = {"train": f"-DOCSTART- O\n\n{document}\n-DOCSTART- O\n\n{columns('e/B-T')}", "dev": DEV}
    data = encoded(read(tmp_path, files, context="document", max_seq_length=6), "train", PIECES)
    rows = np.split(data.texts.ids.values, data.texts.ids.offsets[1:-1])
    a, b, c, d, e = range(5, 10)
    assert [row.tolist() for row in rows] == [
        [2, a, b, c, d, 3],
        [2, b, c, d, e, 3],
        [2, c, d, e, a, 3],
        [2, e, 3],
    ]
    assert data.words.values.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.first_pieces.values.tolist() == [1, 2, 2, 3, 3, 4, 1]
    without = encoded(read(tmp_path, files, max_seq_length=6), "train", PIECES)
    assert without.lengths.tolist() == [4, 4, 4, 3]


def test_the_loss_is_the_mean_over_words_as_in_transformers(tmp_path):
    files = {"train": columns("a/B-T bxy/O c/O", "d/O"), "dev": DEV}
    task = read(tmp_path, files)
    data = encoded(task, "train", PIECES)
    rows = np.array([1, 0])
    logits = torch.randn(2, 7, 3, generator=torch.manual_seed(0))
    labels = torch.full((2, 7), -100)
    labels[0, 1] = 0  # d
    labels[1, 1], labels[1, 2], labels[1, 5] = 1, 0, 0  # a bxy c
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = task.loss(logits, data, rows) / task.loss_terms(data, rows)
    torch.testing.assert_close(loss, expected)
    assert sum(one.loss for one in task.answers(logits, data, rows)) / 4 == pytest.approx(expected.item())


def test_the_baseline_is_each_words_most_frequent_tag(tmp_path):
    files = {"train": columns("a/B-T b/O", "a/B-T", "a/O c/O"), "dev": columns("a/B-T z/O")}
    task = read(tmp_path, files)
    dev = [one for one in task.examples if one.split == "dev"]
    assert task.baselines(dev) == {"most_frequent_tag": [["B-T", "O"]]}
    scores = task.scores(dev, [["B-T", "O"]])
    assert next(iter(scores)) == "f1" and scores["f1"] == scores["f1_T"] == 1 and len(scores["intervals"]) == 5


def test_tags_without_a_scheme_are_scored_by_accuracy(tmp_path):
    files = {"train": columns("a/DET b/NOUN", "a/DET"), "dev": columns("a/DET b/NOUN")}
    task = read(tmp_path, files, scheme="none")
    assert task.labels == ["DET", "NOUN"]
    dev = [one for one in task.examples if one.split == "dev"]
    scores = task.scores(dev, [["DET", "DET"]])
    assert next(iter(scores)) == "accuracy" and scores["accuracy"] == 0.5 and "f1" not in scores


NAMES, OTHERS, LAST = ("ann", "bob", "cyd"), ("the", "old", "is", "new"), ("lee", "kim")


def sentences(count: int, seed: int) -> str:
    """Names of one word or two: a name's second word is the beginning of one where it stands alone."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        words = [f"{word}/O" for word in draw.choice(OTHERS, int(draw.integers(1, 5)))]
        first, last = f"{draw.choice(NAMES)}/B-PER", draw.choice(LAST)
        name = [[first], [first, f"{last}/I-PER"], [f"{last}/B-PER"]][int(draw.integers(3))]
        position = int(draw.integers(len(words) + 1))
        found.append(" ".join([*words[:position], *name, *words[position:]]))
    return columns(*found)


@pytest.fixture(scope="module")
def trained(single_process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("tagging")
    files = {"train": sentences(120, 1), "dev": sentences(30, 2), "test": sentences(30, 3)}
    return train(config(epochs=12), write(root, files), [*NAMES, *OTHERS, *LAST], root)


def test_training_learns_what_the_baseline_cannot(trained):
    assert trained.score("f1") > 0.95 > trained.score("f1", "most_frequent_tag") + 0.1
    facts = trained.manifest.facts
    assert facts["metric"] == "f1" and facts["scheme"] == "BIO"
    assert facts["variants"]["pretrained"]["dev_f1"][-1] > 0.9
    assert trained.manifest.counts == {"train": 120, "dev": 30, "test": 30}
    lines = (trained.folder / "predictions/pretrained/test.conll").read_text().splitlines()
    assert all(len(line.split()) == 3 for line in lines if line)


def test_transformers_loads_the_model_with_equal_logits(trained):
    theirs = AutoModelForTokenClassification.from_pretrained(trained.model_folder).eval()
    assert theirs.config.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    found = trained.load()
    ids = torch.tensor([found.tokenizer.encode("the old bob lee is new").ids])
    with torch.inference_mode():
        expected = theirs(ids).logits
        logits = found.model(ids, torch.zeros_like(ids), torch.ones_like(ids))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    ner = pipeline("ner", model=trained.model_folder, aggregation_strategy="simple")
    assert [one["word"] for one in ner("the old bob lee is new")] == ["bob lee"]


def test_the_model_tags_new_words(trained):
    lists, text = trained.load().predict([{"words": ["the", "ann", "kim"]}, {"words": "kim is old"}])
    assert lists["predicted"] == ["O", "B-PER", "I-PER"] and lists["words"] == ["the", "ann", "kim"]
    assert text["predicted"] == ["B-PER", "O", "O"]
