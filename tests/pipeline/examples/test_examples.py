"""Token shards + vocab -> example shards."""

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.schema import example_schema, text_key
from cloze.pipeline.examples.stage import VERSION, LengthConfig, run
from cloze.pipeline.extract.document import Document
from cloze.pipeline.text.token_shards import read_token_shard
from cloze.pipeline.tokens import stage as tokens_stage
from tests.golden import (
    digest,
    documents_artifact,
    finished,
    golden_documents,
    output,
    published_vocabulary,
    vocab_artifact,
)

WORDS = 4000  # in a token shard, where there are several
CONFIG = LengthConfig(dupe_factor=3, seed=5, max_seq_length=64, max_predictions_per_seq=10)


def inputs(root: Path | str, documents: list[Document], shards: int = 3, words: int = 1 << 20) -> dict[str, Artifact]:
    """Documents in `shards` files -> token shards of about `words` words, and the published vocabulary."""
    vocab = vocab_artifact(root)
    out = output(root, "tokens")
    given = {"documents": documents_artifact(root, documents, shards), "vocab": vocab}
    tokens_stage.run(tokens_stage.TokensConfig(), given, out, words)
    return {"tokens": finished(out), "vocab": vocab}


@pytest.fixture(scope="module")
def stage_inputs(ray_session, tmp_path_factory) -> dict[str, Artifact]:
    return inputs(tmp_path_factory.mktemp("inputs"), golden_documents())


def build_examples(root: Path | str, stage_inputs: dict[str, Artifact], **changed: object) -> Artifact:
    out = output(root, "examples-64")
    run(CONFIG.model_copy(update=changed), stage_inputs, out)
    return finished(out)


@pytest.fixture(scope="module")
def dynamic(stage_inputs, tmp_path_factory) -> Artifact:
    return build_examples(tmp_path_factory.mktemp("dynamic"), stage_inputs)


@pytest.fixture(scope="module")
def static(stage_inputs, tmp_path_factory) -> Artifact:
    return build_examples(tmp_path_factory.mktemp("static"), stage_inputs, masking="static")


def table(artifact: Artifact, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(file.local_path) for file in artifact.files(f"{split}/")])


def unmasked(row: dict) -> list[int]:
    ids = list(row["input_ids"])
    for position, label in zip(row.get("masked_lm_positions", []), row.get("masked_lm_labels", []), strict=True):
        ids[position] = label
    return ids


def test_an_example_is_cls_a_segment_sep_another_sep(dynamic):
    vocabulary = published_vocabulary()
    cls, sep = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
    rows = table(dynamic, "train").to_pylist()
    assert len(rows) > 1000
    for row in rows:
        ids, second = row["input_ids"], row["segment_b"]
        assert 5 <= len(ids) <= 64
        assert ids[0] == cls
        assert [place for place, piece in enumerate(ids) if piece == sep] == [second - 1, len(ids) - 1]
        assert 3 <= second <= len(ids) - 2


def test_training_examples_are_unmasked_and_held_out_ones_masked_unless_masks_are_stored(dynamic, static):
    mask = published_vocabulary().index("[MASK]")
    for artifact, split, masked in (
        (dynamic, "train", False),
        (dynamic, "heldout", True),
        (static, "train", True),
        (static, "heldout", True),
    ):
        found = table(artifact, split)
        assert found.schema == example_schema(30522, masked)
        has_masks = any(mask in ids for ids in found["input_ids"].to_pylist())
        assert has_masks == masked


def test_stored_masks_hide_what_examples_without_masks_show(dynamic, static):
    plain = [row["input_ids"] for row in table(dynamic, "train").to_pylist()]
    rows = table(static, "train").to_pylist()
    assert [unmasked(row) for row in rows] == plain
    for row in rows:
        expected = min(10, max(1, round(len(row["input_ids"]) * 0.15)))
        assert len(row["masked_lm_positions"]) == len(row["masked_lm_labels"]) == expected


def test_held_out_documents_are_in_no_training_example_and_training_ones_in_no_held_out_example(ray_session, tmp_path):
    """All of one split's documents say only "train", all of the other's only "test"."""
    documents = [
        Document(**{**vars_of(one), "text": " ".join(["Train." if one.split == "train" else "Test."] * 40)})
        for one in golden_documents()
    ]
    artifact = build_examples(tmp_path, inputs(tmp_path, documents))
    vocabulary = published_vocabulary()
    for split, word, other in (("train", "train", "test"), ("heldout", "test", "train")):
        pieces = {piece for row in table(artifact, split).to_pylist() for piece in unmasked(row)}
        assert vocabulary.index(word) in pieces
        assert vocabulary.index(other) not in pieces


def vars_of(one: Document) -> dict:
    return {name: getattr(one, name) for name in one.__slots__}


def test_a_next_segment_follows_in_its_document_and_a_random_one_is_from_another(dynamic):
    documents = documents_as_ids()
    seen = {0: 0, 1: 0}
    for row in table(dynamic, "train").to_pylist():
        first, second = row["input_ids"][1 : row["segment_b"] - 1], row["input_ids"][row["segment_b"] : -1]
        if len(first) < 8 or len(second) < 8:  # short ones occur in several documents
            continue
        label = row["next_sentence_label"]
        seen[label] += 1
        of_first, of_second = (
            [number for number, document in enumerate(documents) if text_of(segment) in document]
            for segment in (first, second)
        )
        assert of_first
        assert (of_first == of_second) == (label == 0)
        if label == 0:
            document = documents[of_first[0]]
            assert document.index(text_of(first)) < document.rindex(text_of(second))
    assert min(seen.values()) > 300
    counts = dynamic.manifest.counts
    assert 0.5 < counts["train_random_next"] / counts["train"] < 0.7


def documents_as_ids() -> list[str]:
    from cloze.pipeline.text.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(published_vocabulary())
    return [text_of(tokenizer.encode(one.text, add_special_tokens=False).ids) for one in golden_documents()]


def text_of(ids: list[int]) -> str:
    return " " + " ".join(map(str, ids)) + " "


def test_the_bytes_are_those_of_this_version(dynamic, static):
    found = (digest(dynamic), digest(static))
    assert (VERSION, *found) == (3, "56387c40b076", "72bee554b386"), (
        "the same input gives other bytes: raise VERSION in pipeline/examples/stage.py"
    )


def test_counts_are_those_of_the_rows(static):
    counts = static.manifest.counts
    for split in ("train", "heldout"):
        rows = table(static, split)
        assert counts[split] == len(rows) > 0
        assert counts[f"{split}_random_next"] == sum(rows["next_sentence_label"].to_pylist())
        assert counts[f"{split}_tokens"] == sum(map(len, rows["input_ids"].to_pylist()))
        assert counts[f"{split}_masked"] == sum(map(len, rows["masked_lm_labels"].to_pylist()))
    assert counts["documents"] == 45


def digests(artifact: Artifact) -> dict[str, str]:
    return {name: record.sha256 for name, record in artifact.manifest.files.items()}


def test_bytes_do_not_depend_on_the_number_of_workers(static, stage_inputs, tmp_path):
    assert digests(build_examples(tmp_path, stage_inputs, masking="static", workers=1)) == digests(static)


@pytest.fixture(scope="module")
def several_shards(ray_session, tmp_path_factory) -> dict[str, Artifact]:
    """Token shards of about five documents: seven of training documents, three of held-out ones."""
    return inputs(tmp_path_factory.mktemp("several"), golden_documents(), words=WORDS)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_bytes_do_not_depend_on_the_files_of_documents_nor_on_workers_nor_on_the_disk(
    several_shards, s3_bucket, tmp_path, objective
):
    expected = build_examples(tmp_path, several_shards, objective=objective)
    assert len(expected.files("train/")) == 7
    assert len(expected.files("heldout/")) == 3
    documents = golden_documents()
    random.Random(3).shuffle(documents)
    root = f"{s3_bucket}/examples-{objective}"
    other = build_examples(root, inputs(root, documents, 5, WORDS), objective=objective, workers=1)
    assert digests(other) == digests(expected)


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm"])
def test_the_segments_of_an_example_are_from_documents_of_its_token_shard(several_shards, tmp_path, objective):
    artifact = build_examples(tmp_path, several_shards, objective=objective, dupe_factor=1)
    texts = {text_key(one.doc_id): ids for one, ids in zip(golden_documents(), documents_as_ids(), strict=True)}
    tokens, seen = several_shards["tokens"].location, 0
    for file in artifact.files():
        split, number = file.uri.split("/")[-2], file.name.removesuffix(".parquet")
        documents = [texts[key] for key in read_token_shard(tokens, f"{split}-{number}").documents["key"].tolist()]
        segments = documents_of(pq.read_table(file.local_path).to_pylist())
        assert all(any(text_of(segment) in text for text in documents) for segment in segments)
        seen += len(documents)
    assert seen == 45


def test_a_single_document_is_paired_with_itself(ray_session, tmp_path):
    artifact = build_examples(tmp_path, inputs(tmp_path, golden_documents(0)[:1], 1))
    assert [file.uri.split("/")[-2] for file in artifact.files()] == ["train"]
    assert {row["next_sentence_label"] for row in table(artifact, "train").to_pylist()} == {0, 1}
    assert artifact.manifest.counts["heldout"] == 0


def test_another_seed_or_pass_has_other_examples(dynamic, stage_inputs, tmp_path):
    other = {
        tuple(ids) for ids in table(build_examples(tmp_path, stage_inputs, seed=6), "train")["input_ids"].to_pylist()
    }
    default = [tuple(ids) for ids in table(dynamic, "train")["input_ids"].to_pylist()]
    assert len(set(default)) > 0.98 * len(default)
    assert len(other & set(default)) < 0.05 * len(default)


def test_a_stopped_run_resumes_with_the_missing_shards(dynamic, stage_inputs, tmp_path):
    out = output(tmp_path, "examples-64")
    run(CONFIG, stage_inputs, out)
    (out.location / "manifest.json").delete()
    (out.location / "parts/heldout-00000.json").delete()
    before = {file: file.info().mtime_ns for file in out.location.files()}
    run(CONFIG, stage_inputs, out)
    again = {file for file in out.location.files() if before.get(file) not in (None, file.info().mtime_ns)}
    assert again == {out.location / "heldout/00000.parquet"}
    assert digests(finished(out)) == digests(dynamic)


@pytest.mark.parametrize(("length", "predictions"), [(5, 1), (512, 80)])
def test_very_short_and_long_examples_work(stage_inputs, tmp_path, length, predictions):
    artifact = build_examples(
        tmp_path,
        stage_inputs,
        max_seq_length=length,
        max_predictions_per_seq=predictions,
        masking="static",
        mask_unit="word",
        dupe_factor=1,
    )
    lengths = [len(ids) for ids in table(artifact, "train")["input_ids"].to_pylist()]
    assert min(lengths) >= 5
    assert max(lengths) == length


def documents_of(rows: list[dict]) -> list[list[int]]:
    """The segments of examples without pairs."""
    vocabulary = published_vocabulary()
    sep = vocabulary.index("[SEP]")
    found = []
    for row in rows:
        segment: list[int] = []
        for piece in unmasked(row)[1:]:
            if piece == sep:
                found.append(segment)
                segment = []
            else:
                segment.append(piece)
        assert not segment
    return found


@pytest.fixture(scope="module")
def sentences_alone(stage_inputs, tmp_path_factory) -> Artifact:
    return build_examples(tmp_path_factory.mktemp("mlm"), stage_inputs, objective="mlm", dupe_factor=2)


def test_without_pairs_every_pass_holds_every_piece_once_and_a_segment_is_of_one_document(sentences_alone):
    documents = [text for text, one in zip(documents_as_ids(), golden_documents(), strict=True) if one.split == "train"]
    rows = table(sentences_alone, "train").to_pylist()
    segments = documents_of(rows)
    assert sum(map(len, segments)) == 2 * sum(len(text.split()) for text in documents)
    assert all(any(text_of(segment) in text for text in documents) for segment in segments)
    assert len(segments) > len(rows)
    assert max(len(row["input_ids"]) for row in rows) == 64
    assert {row["next_sentence_label"] for row in rows} == {-100}
    assert all(row["segment_b"] == len(row["input_ids"]) for row in rows)
    assert len({tuple(row["input_ids"]) for row in rows}) == len(rows) / 2  # both passes alike, for other stored masks
    assert "train_random_next" not in sentences_alone.manifest.counts


def test_sentence_order_examples_are_consecutive_segments_half_of_which_are_swapped(stage_inputs, tmp_path):
    artifact = build_examples(tmp_path, stage_inputs, objective="mlm+sop")
    documents = documents_as_ids()
    swapped = []
    for row in table(artifact, "train").to_pylist():
        first, second = row["input_ids"][1 : row["segment_b"] - 1], row["input_ids"][row["segment_b"] : -1]
        both = [one for one in documents if text_of(first) in one and text_of(second) in one]
        if min(len(first), len(second)) >= 8 and len(both) == 1:
            in_order = both[0].index(text_of(first)) < both[0].index(text_of(second))
            assert in_order == (row["next_sentence_label"] == 0)
            swapped.append(not in_order)
    assert len(swapped) > 500
    assert 0.4 < sum(swapped) / len(swapped) < 0.6
    counts = artifact.manifest.counts
    assert 0.45 < counts["train_swapped"] / counts["train"] < 0.7  # lone sentences among them have a random second


def test_a_source_has_its_own_number_of_passes_and_the_examples_of_other_sources_stay(stage_inputs, dynamic, tmp_path):
    documents = [
        Document(**{**vars_of(one), "source": "rare" if n < 9 else "other"}) for n, one in enumerate(golden_documents())
    ]
    given = inputs(tmp_path, documents)

    def rows(name: str, **changed: object) -> Counter[str]:
        return Counter(map(str, table(build_examples(tmp_path / name, given, **changed), "train").to_pylist()))

    once, rare, other, all_of_them = (
        rows("once"),
        rows("rare", passes={"rare": 5}),
        rows("other", passes={"other": 5}),
        rows("all", dupe_factor=5),
    )
    assert once == Counter(map(str, table(dynamic, "train").to_pylist()))
    assert not once - rare
    assert (rare - once) + (other - once) == all_of_them - once
    assert min((rare - once).total(), (other - once).total()) > 100


def test_the_manifest_has_the_rows_of_each_file(dynamic):
    facts = dynamic.manifest.facts
    assert facts["row_group_size"] == 1024
    files = {name: dynamic.location / name for name in dynamic.manifest.files}
    assert facts["rows"] == {name: pq.read_metadata(file.local_path).num_rows for name, file in files.items()}


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_stored_masks_hide_whole_words(stage_inputs, tmp_path, unit):
    artifact = build_examples(tmp_path, stage_inputs, masking="static", mask_unit=unit, dupe_factor=1)
    vocabulary = published_vocabulary()
    on = 0
    for row in table(artifact, "train").to_pylist():
        ids, chosen = unmasked(row), set(row["masked_lm_positions"])
        for place in range(2, len(ids)):
            if vocabulary[ids[place]].startswith("##") and vocabulary[ids[place - 1]] not in ("[CLS]", "[SEP]"):
                assert (place in chosen) == (place - 1 in chosen)
                on += place in chosen
    assert on > 50
