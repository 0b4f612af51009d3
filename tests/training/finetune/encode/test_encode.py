"""A task's examples as an artifact: what it contains, and which settings it depends on."""

import json
import pickle
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ragged import Ragged
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, tokenizer_config_json
from cloze.training.finetune.encode.encoded_files import StoredSplits, split_files
from cloze.training.finetune.encode.stage import encode_config, run
from cloze.training.finetune.tasks.registry import TASKS, task_of
from cloze.training.finetune.tasks.task import splits_of
from cloze.training.finetune.tasks.task_config import TaskConfig

TEXTS = "text\tlabel\n" + "the old red\t1\nthe new\t0\n" * 12
PIECES = [*SPECIAL_TOKENS, "the", "old", "red", "new", "is"]
QUESTION = {"question": "is the", "answers": [{"text": "red", "answer_start": 8}]}
PARAGRAPHS = [{"context": "the old red" + " new" * n, "qas": [QUESTION | {"id": str(n)}]} for n in range(20)]
SQUAD = {"data": [{"paragraphs": PARAGRAPHS}]}
#: Kind -> the content of a labelled file, its suffix and the settings that it requires.
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classification": (TEXTS, "tsv", {}),
    "regression": (TEXTS, "tsv", {}),
    "multilabel": (TEXTS, "tsv", {"columns": {"labels": "label"}}),
    "choice": (
        "".join(f'{{"context": "the", "choices": ["old", "red new"], "label": {n % 2}}}\n' for n in range(20)),
        "jsonl",
        {},
    ),
    "tagging": ("the O\nred B-X\n\n" * 20, "txt", {}),
    "question_answering": (json.dumps(SQUAD), "json", {"max_seq_length": 10, "max_query_length": 5, "doc_stride": 1}),
    "probe": ("the O\nred B-X\n\n" * 20, "txt", {"of": "tagging"}),
    "minimal_pairs": ("good\tbad\nthe red\tred the\n", "tsv", {"columns": {"good": "good", "bad": "bad"}}),
}
KINDS = {config.model_fields["kind"].default: config for config in TASKS}


def config(kind: str, **changed: Any) -> TaskConfig:
    training = {} if kind in ("minimal_pairs", "probe") else {"learning_rate": 1e-3}
    settings = {"name": "a", "max_seq_length": 16, **training, **FILES[kind][2]}
    return KINDS[kind].model_validate(({} if "files" in changed else {"file": "x"}) | settings | changed)


def inputs(kind: str, root: Path, content: str | None = None) -> dict[str, Any]:
    """The labelled file, and a vocabulary."""
    vocab, file = root / "vocab", root / f"data.{FILES[kind][1]}"
    vocab.mkdir(exist_ok=True)
    (vocab / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    build_tokenizer(PIECES).save(str(vocab / "tokenizer.json"))
    (vocab / "tokenizer_config.json").write_text(tokenizer_config_json())
    file.write_text(content or FILES[kind][0])
    data = source_file(Location(str(file)), Location(str(root / "cache")))
    return {"vocab": Artifact(Location(str(vocab)), "vocab", "v"), "data": data}


def assert_equal(found: Any, expected: Any) -> None:
    """The same types, shapes and values, at any depth."""
    assert type(found) is type(expected)
    if is_dataclass(expected):
        for field in fields(expected):
            assert_equal(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(expected, Ragged):
        assert_equal([*found], [*expected])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", FILES)
def test_the_files_contain_what_the_task_encodes(tmp_path: Path, kind: str) -> None:
    given, settings = inputs(kind, tmp_path), config(kind)
    out = Output(Location(str(tmp_path / "out")), "encode", 1, "e")
    manifest = run(encode_config(settings), given, out)
    task = task_of(settings).read(settings, {"data": given["data"].location})
    tokenizer = build_tokenizer(PIECES)
    tokenizer.encode_special_tokens = True
    expected = task.encode(tokenizer)
    stored = StoredSplits(out.location, [*expected.splits], task.split_kind)
    for split, encoded in expected.splits.items():
        assert_equal(stored[split], encoded)
        assert_equal(stored[split].lengths, encoded.lengths)
    counts = {split: sum(one.split == split for one in task.examples) for split in splits_of(task.examples)}
    extra = {"rows": len(task.examples), "truncated": expected.truncated, **expected.counts}
    assert manifest.counts == dict(sorted((counts | extra).items()))
    assert manifest.inputs == {"vocab": "v", "data": given["data"].identity}
    again = split_files(expected.splits)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in again} == again


def test_a_worker_receives_no_content_of_the_splits(tmp_path: Path) -> None:
    given, settings = inputs("classification", tmp_path), config("classification")
    run(encode_config(settings), given, Output(Location(str(tmp_path / "out")), "encode", 1, "e"))
    stored = StoredSplits(Location(str(tmp_path / "out")), ["train", "dev"], task_of(settings).split_kind)
    assert list(stored) == ["train", "dev"] and len(stored["train"].lengths) == 20
    copy = pickle.loads(pickle.dumps(stored))
    assert len(pickle.dumps(stored)) < 1000
    assert_equal(copy["train"], stored["train"])
    with pytest.raises(KeyError):
        stored["test"]


def test_rows_are_kept_or_dropped_with_their_reason(tmp_path: Path) -> None:
    given = inputs("classification", tmp_path, f"{TEXTS}the\nred\t\n\t1\n")
    manifest = run(
        encode_config(config("classification", skip_invalid=True)),
        given,
        Output(Location(str(tmp_path / "out")), "encode", 1, "e"),
    )
    assert manifest.drops == {"empty text": 2, "unreadable row": 1}
    kept = sum(manifest.counts[split] for split in ("train", "dev", "test"))
    assert manifest.counts["rows"] == kept + sum(manifest.drops.values()) == 27


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        *((kind, {"name": "b", "precision": "fp32", "workers": 2, "compare_random": True}) for kind in FILES),
        ("classification", {"learning_rate": [1e-4, 1e-5], "epochs": 9, "batch_size": 3, "seeds": (1, 2)}),
        ("classification", {"freeze_encoder": True, "metric": "f1", "positive": "1", "class_weights": "balanced"}),
        ("multilabel", {"threshold": 0.3, "metric": "exact_match"}),
        ("question_answering", {"n_best": 3, "max_answer_length": 4, "null_threshold": 1.0, "dataset": "SQuAD-v1.1"}),
    ],
)
def test_settings_of_the_training_alone_change_no_fingerprint(kind: str, changed: dict[str, Any]) -> None:
    assert config(kind, **changed) != config(kind)
    assert encode_config(config(kind, **changed)) == encode_config(config(kind))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        *((kind, {"max_seq_length": 12}) for kind in FILES),
        ("classification", {"seed": 1}),
        ("classification", {"skip_invalid": True}),
        ("classification", {"columns": {"text": "label"}}),
        ("regression", {"glue": "STS-B"}),
        ("question_answering", {"doc_stride": 2}),
        ("question_answering", {"max_query_length": 4}),
        ("tagging", {"scheme": "IOB1"}),
        ("tagging", {"context": "document"}),
        ("choice", {"dataset": "SWAG"}),
    ],
)
def test_other_settings_do(kind: str, changed: dict[str, Any]) -> None:
    assert identity(encode_config(config(kind, **changed))) != identity(encode_config(config(kind)))


def test_the_seed_counts_where_it_divides_the_examples() -> None:
    def of(seed: int, **files: str) -> dict[str, Any]:
        return identity(encode_config(config("classification", files={"train": "x", **files}, seed=seed)))

    assert of(1) != of(2)
    assert of(1, dev="x") == of(2, dev="x")


def test_a_file_that_changes_during_the_run_is_an_error(tmp_path: Path) -> None:
    given, settings = inputs("classification", tmp_path), config("classification")
    (tmp_path / "data.tsv").write_text(TEXTS.replace("\t1", "\t2"))
    with pytest.raises(UserError, match=r"data\.tsv: has changed since the run began; run again"):
        run(encode_config(settings), given, Output(Location(str(tmp_path / "out")), "encode", 1, "e"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    given, settings = inputs("classification", tmp_path), config("classification")
    run(encode_config(settings), given, Output(Location(str(tmp_path / "out")), "encode", 1, "e"))
    file = tmp_path / "out/train.arrow"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train\.arrow: is damaged: its length of .*; delete it and run again"):
        _ = StoredSplits(Location(str(tmp_path / "out")), ["train"], task_of(settings).split_kind)["train"]
