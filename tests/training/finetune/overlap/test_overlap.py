"""The stage that compares a task's dev and test examples with the pretraining documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.checkpoints.warm_start import register_digest
from cloze.training.finetune.overlap import shard_search
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.finetune.overlap.pretraining_documents import PretrainingDocuments
from cloze.training.finetune.overlap.stage import EvaluationTexts, SharedNgram, run
from cloze.training.finetune.tasks.classification import ClassificationConfig
from cloze.training.finetune.tasks.question_answering.task import QuestionAnsweringConfig
from cloze.training.finetune.tasks.registry import task_of

CONFIG = ClassificationConfig(name="mood", file="mood.jsonl", learning_rate=1e-3)
Documents = Sequence[Sequence[tuple[str, str]]]  # shards of (text, split)


def sentence(number: int, words: int = 15) -> str:
    return " ".join(f"word{number}x{place}" for place in range(words))


#: Test rows 0 to 9 and dev rows 20 to 25, of 15 words each; test row 9 has 12.
TEXTS = {number: sentence(number, 12 if number == 9 else 15) for number in (*range(10), *range(20, 26), *range(30, 34))}


def output(root: Path, stage: str, fingerprint: str) -> Output:
    return Output(Location(f"{root}/{stage}/{fingerprint}"), stage, 1, fingerprint)


def write_documents(root: Path, documents: Documents, fingerprint: str) -> Artifact:
    """The shards of the stage dedup. Documents are named by shard and place: 0-1."""
    out = output(root, "dedup", fingerprint)
    for shard, rows in enumerate(documents):
        names = [f"{shard}-{place}" for place in range(len(rows))]
        columns = {
            "doc_id": names,
            "title": [f"Title {name}" for name in names],
            "text": [text for text, _ in rows],
            "split": [split for _, split in rows],
        }
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        out.commit(f"{shard}", {f"documents/{shard:05}.parquet": parquet_bytes(table, row_group_size=2)})
    out.finish(out.require_parts([f"{shard}" for shard in range(len(documents))]), {}, {})
    return Artifact(out.location, "dedup", fingerprint)


def write_pretraining(
    root: Path, documents: Documents, fingerprint: str = "d" * 16, init: str | None = None
) -> CheckpointRef:
    """The manifests from dedup to pretrain, and the files of a checkpoint by which it is known as one."""
    write_documents(root, documents, fingerprint)
    output(root, "tokens", fingerprint).finish([], {}, {"documents": fingerprint, "vocab": "v"})
    for length in (32, 64):
        output(root, f"examples-{length}", fingerprint).finish([], {}, {"tokens": fingerprint, "vocab": "v"})
    out = output(root, "pretrain", fingerprint)
    inputs = {"vocab": "v", "examples-32": fingerprint, "examples-64": fingerprint}
    out.finish([], {"init": init}, inputs)
    folder = out.location / "checkpoints/step-00000005-abcd"
    for name in ("state.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return CheckpointRef(folder, fingerprint[:8] * 8, 5)


def write_task(root: Path, changed: Mapping[int, str] | None = None) -> dict[str, Any]:
    """The labelled file and the finished fine-tuning of a task, wrong in every third prediction."""
    texts = TEXTS | dict(changed or {})
    rows = [
        {
            "text": text,
            "label": ("bad", "good")[number % 2],
            "split": "test" if number < 20 else "dev" if number < 30 else "train",
        }
        for number, text in texts.items()
    ]
    (root / "mood.jsonl").write_bytes(json_lines.encode(rows))
    data = source_file(Location(f"{root}/mood.jsonl"), Location(f"{root}/sources"))
    labels = [row["label"] for row in rows if row["split"] == "test"]
    predicted = [label if number % 3 else "bad" for number, label in enumerate(labels)]
    predictions = [
        {"row": number, "label": label, "predicted": answer}
        for number, (label, answer) in enumerate(zip(labels, predicted, strict=True), start=1)
    ]
    out = output(root, "finetune-mood", "f" * 16)
    part = out.commit("pretrained", {"predictions/pretrained.jsonl": json_lines.encode(predictions)})
    task = task_of(CONFIG).read(CONFIG, {"data": data.location})
    scores = task.scores([one for one in task.examples if one.split == "test"], predicted)
    out.finish([part], {}, {}, facts={"scores": {"pretrained": scores}, "metric": "accuracy", "scored_split": "test"})
    return {"data": data, "finetuned": Artifact(out.location, "finetune-mood", "f" * 16)}


def compare(root: Path, inputs: Mapping[str, Any], name: str = "0") -> tuple[Manifest, OverlapFacts, list[Any]]:
    """The manifest of the stage, its facts and its rows."""
    out = output(root, "overlap-mood", name)
    manifest = run(CONFIG, inputs, out)
    return manifest, OverlapFacts.of(manifest), json_lines.read(out.location / "overlaps.jsonl")


PLANTED: Documents = [
    [("Nothing here.", "train"), (f"Before. {TEXTS[3].upper()}! After.", "train"), (TEXTS[5], "heldout")],
    [
        (f"Again {TEXTS[3]}", "train"),
        (f"{TEXTS[20]}\n\n{TEXTS[4]}", "train"),
        (TEXTS[9], "train"),
        (TEXTS[31], "train"),
    ],
]


def test_planted_texts_are_counted_listed_and_left_out_of_the_score(tmp_path: Path, ray_session: None) -> None:
    inputs = write_task(tmp_path) | {"checkpoint": write_pretraining(tmp_path, PLANTED)}
    manifest, facts, rows = compare(tmp_path, inputs)
    assert facts.splits["test"].plain == {
        "examples": 10, "too_short": 1, "overlapping": 2, "overlapping_texts": {"text": 2}
    }  # fmt: skip
    assert facts.splits["dev"].plain == {
        "examples": 6, "too_short": 0, "overlapping": 1, "overlapping_texts": {"text": 1}
    }  # fmt: skip
    assert manifest.counts == {
        "documents": 6, "dev": 6, "dev_overlapping": 1, "dev_too_short": 0,
        "test": 10, "test_overlapping": 2, "test_too_short": 1,
    }  # fmt: skip
    first_words = {number: " ".join(TEXTS[number].split()[:13]) for number in TEXTS}
    assert rows == [
        {"split": "dev", "row": 11, "text": "text", "ngram": first_words[20], "doc_id": "1-1", "title": "Title 1-1"},
        {"split": "test", "row": 4, "text": "text", "ngram": first_words[3], "doc_id": "0-1", "title": "Title 0-1"},
        {"split": "test", "row": 5, "text": "text", "ngram": first_words[4], "doc_id": "1-1", "title": "Title 1-1"},
    ]
    task = task_of(CONFIG).read(CONFIG, {"data": inputs["data"].location})
    kept = [one for one in task.examples if one.split == "test" and one.row not in (4, 5)]
    predictions = json_lines.read(inputs["finetuned"].location / "predictions/pretrained.jsonl")
    predicted = {row["row"]: row["predicted"] for row in predictions}
    expected = task.scores(kept, [predicted[one.row] for one in kept])
    assert facts.scores["without_overlap"].plain == json.loads(json.dumps(expected))
    assert facts.scores["all"].accuracy == 0.8
    assert (facts.documents, facts.unknown) == ([f"dedup/{'d' * 16}"], [])


def test_the_workers_change_nothing(tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_task(tmp_path) | {"checkpoint": write_pretraining(tmp_path, PLANTED)}
    expected, facts, _ = compare(tmp_path, inputs)
    monkeypatch.setattr(shard_search, "_SMALL", 0)  # on Ray's workers
    actual, facts_of_workers, _ = compare(tmp_path, inputs, "1")
    assert (actual.files, actual.counts, facts_of_workers) == (expected.files, expected.counts, facts)


def test_finished_shards_are_not_searched_again(tmp_path: Path, ray_session: None) -> None:
    inputs = write_task(tmp_path) | {"checkpoint": write_pretraining(tmp_path, PLANTED)}
    expected, _, _ = compare(tmp_path, inputs)
    out = output(tmp_path, "overlap-mood", "0")
    (out.location / "manifest.json").delete()
    first = (out.location / f"parts/{'d' * 16}-00000.json").read_bytes()
    (out.location / f"parts/{'d' * 16}-00001.json").delete()
    shard = tmp_path / f"dedup/{'d' * 16}/documents/00000.parquet"
    shard.write_bytes(b"0" * shard.stat().st_size)  # would be an error if it were read
    assert compare(tmp_path, inputs)[0].files == expected.files
    assert (out.location / f"parts/{'d' * 16}-00000.json").read_bytes() == first


def test_without_a_planted_text_nothing_overlaps(tmp_path: Path, ray_session: None) -> None:
    documents = [[(sentence(number), "train") for number in range(100, 130)]]
    inputs = write_task(tmp_path) | {"checkpoint": write_pretraining(tmp_path, documents)}
    _, facts, rows = compare(tmp_path, inputs)
    assert rows == [] and list(facts.scores) == ["all"]
    assert [split.overlapping for split in facts.splits.values()] == [0, 0]


def test_there_is_no_score_if_all_examples_overlap(tmp_path: Path, ray_session: None) -> None:
    documents = [[(TEXTS[number], "train") for number in range(9)] + [(sentence(9), "train")]]
    inputs = write_task(tmp_path, {9: sentence(9)}) | {"checkpoint": write_pretraining(tmp_path, documents)}
    _, facts, rows = compare(tmp_path, inputs)
    assert facts.splits["test"].overlapping == 10 and len(rows) == 10 and list(facts.scores) == ["all"]


def test_the_texts_of_a_foreign_model_are_not_known(tmp_path: Path, ray_session: None) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "models/bert").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models/bert" / file).write_text("{}")
    init = source_file(Location(f"{tmp_path}/models/bert/model.safetensors"), Location(f"{tmp_path}/sources"))
    manifest, facts, rows = compare(tmp_path, write_task(tmp_path) | {"init": init})
    assert facts.plain == {"unknown": ["bert"]} and (rows, manifest.files) == ([], {})


def test_a_model_whose_folder_is_near_the_root_of_the_disk_is_one_whose_texts_are_not_known() -> None:
    assert PretrainingDocuments.of(Location("/bert")) == ((), ("bert",))


def test_a_checkpoint_given_as_init_is_compared_with_its_own_documents(tmp_path: Path, ray_session: None) -> None:
    checkpoint = write_pretraining(tmp_path, PLANTED)
    init = source_file(checkpoint.location / "model.safetensors", Location(f"{tmp_path}/sources"))
    _, facts, _ = compare(tmp_path, write_task(tmp_path) | {"init": init})
    assert facts.splits["test"].overlapping == 2


@pytest.mark.parametrize("lost", ["tokens", "dedup", "examples-64", "dedup/*/documents/00001.parquet"])
def test_the_documents_of_a_checkpoint_are_not_known_when_they_are_deleted(tmp_path: Path, lost: str) -> None:
    checkpoint = write_pretraining(tmp_path, PLANTED)
    [path] = tmp_path.glob(lost)
    Location(str(path)).delete()
    assert PretrainingDocuments.of(checkpoint.location) == ((), (checkpoint.location.name,))


def test_a_model_that_pretraining_started_from_has_pretraining_documents_too(tmp_path: Path) -> None:
    earlier = write_pretraining(tmp_path, PLANTED, "a" * 16)
    register_digest(Location(str(tmp_path)), earlier)

    def documents(init: str, fingerprint: str) -> tuple[list[str], tuple[str, ...]]:
        found = PretrainingDocuments.of(write_pretraining(tmp_path, PLANTED, fingerprint, init).location)
        return [artifact.fingerprint for artifact in found.artifacts], found.unknown

    assert documents("a" * 8, "b" * 16) == (["b" * 16, "a" * 16], ())
    assert documents("c" * 8, "c" * 16) == (["c" * 16], ("c" * 8,))
    assert documents(f"{tmp_path}/models/bert", "d" * 16) == (["d" * 16], ("bert",))
    assert documents(earlier.location.uri, "e" * 16) == (["e" * 16, "a" * 16], ())


def test_an_example_of_several_texts_overlaps_if_one_does(tmp_path: Path) -> None:
    paragraph = {
        "context": sentence(1),
        "qas": [
            {"id": f"{number}", "question": sentence(number), "answers": [{"text": "word1x0", "answer_start": 0}]}
            for number in (2, 3)
        ],
    }
    files = dict[str, Location]()
    for split in ("train", "dev"):
        (tmp_path / f"{split}.json").write_text(
            json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]})
        )
        files[split] = Location(f"{tmp_path}/{split}.json")
    config = QuestionAnsweringConfig(name="squad", files={"train": "a", "dev": "b"}, learning_rate=1e-3)
    evaluation = EvaluationTexts.of(task_of(config).read(config, files))
    assert sorted(evaluation.texts) == [sentence(1), sentence(2), sentence(3)]
    numbers = {text: number for number, text in enumerate(evaluation.texts)}
    too_short = [False] * 3
    only_one = {numbers[sentence(3)]: SharedNgram("", "", "")}
    fact = evaluation.fact("dev", only_one, too_short)
    assert (fact.overlapping, fact.overlapping_texts) == (1, {"question": 1, "context": 0})
    both = only_one | {numbers[sentence(1)]: SharedNgram("", "", "")}
    fact = evaluation.fact("dev", both, too_short)
    assert (fact.overlapping, fact.overlapping_texts) == (2, {"question": 1, "context": 2})
    assert [row["text"] for row in evaluation.rows(both)] == ["context", "question", "context"]
