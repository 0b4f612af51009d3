"""Documents + vocab -> token shards."""

import hashlib
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.artifacts import Artifact, FileRecord, Part
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import text_key
from cloze.pipeline.extract.document import Document, document
from cloze.pipeline.text.sentences import split_sentences
from cloze.pipeline.text.token_shards import TokenizedDocuments, read_token_shard, token_shard_names
from cloze.pipeline.text.tokenizer import BulkTokenizer, build_tokenizer
from cloze.pipeline.tokens.stage import VERSION, TokensConfig, check, run
from cloze.pipeline.tokens.steps import ShardCounts, document_groups
from cloze.pipeline.tokens.tokenization import tokenize
from tests.golden import (
    digest,
    documents_artifact,
    finished,
    golden_documents,
    output,
    published_vocabulary,
    vocab_artifact,
)

WORDS = 4000  # in a token shard: of the golden documents 7 for training, 3 held out


def build_tokens(
    root: Path | str, documents: Sequence[Document], shards: int = 3, workers: int = 2, words: int = WORDS
) -> Artifact:
    inputs = {"documents": documents_artifact(root, documents, shards), "vocab": vocab_artifact(root)}
    out = output(root, "tokens")
    run(TokensConfig(workers=workers), inputs, out, words)
    return finished(out)


def shards_of(tokens: Artifact) -> dict[str, TokenizedDocuments]:
    return {name: read_token_shard(tokens.location, name) for name in token_shard_names(tokens)}


@pytest.fixture(scope="module")
def tokens(ray_session, tmp_path_factory) -> Artifact:
    return build_tokens(tmp_path_factory.mktemp("tokens"), golden_documents())


def test_a_document_reads_back_as_the_pieces_of_its_sentences(tokens):
    documents = {text_key(one.doc_id): one for one in golden_documents()}
    tokenizer = build_tokenizer(published_vocabulary())
    seen = 0
    for name, shard in shards_of(tokens).items():
        assert shard.ids.dtype == np.uint16
        offsets = shard.sentence_offsets
        for row, (first, last) in zip(shard.documents, pairwise(shard.document_offsets), strict=True):
            one = documents[int(row["key"])]
            sentences = [s for paragraph in one.text.split("\n\n") for s in split_sentences(paragraph)]
            expected = [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in sentences]
            assert [shard.ids[a:b].tolist() for a, b in pairwise(offsets[first : last + 1])] == expected
            assert row["source"] == text_key(one.source)
            assert name.startswith(one.split)
            seen += 1
    assert seen == 45


def test_a_key_decides_the_shard_of_a_document_and_its_place_there(tokens):
    shards = shards_of(tokens)
    counts = {split: sum(name.startswith(split) for name in shards) for split in ("train", "heldout")}
    assert min(counts.values()) > 1
    for name, shard in shards.items():
        split, _, number = name.partition("-")
        keys = shard.documents["key"].tolist()
        assert keys == sorted(keys)
        assert {key * counts[split] >> 64 for key in keys} == {int(number)}


@given(st.integers(0, (1 << 64) - 1), st.integers(1, (1 << 32) - 1), st.integers(1, (1 << 32) - 1))
def test_the_shard_of_a_key_is_exact(key: int, train: int, heldout: int) -> None:
    found = ShardCounts(train, heldout).indices(np.array([key, key], np.uint64), np.array([False, True]))
    assert found.tolist() == [key * train >> 64, train + (key * heldout >> 64)]


def test_shards_follow_from_the_counts_of_all_documents():
    counts = {"documents": 100, "heldout": 5, "words": 20_000}
    assert ShardCounts.of(counts, 1000) == (20, 2)
    assert ShardCounts.of(counts, 30_000).names == ["train-00000", "heldout-00000"]
    assert ShardCounts.of({}, 1000) == (1, 1)


def test_the_bytes_are_those_of_this_version(tokens):
    assert (VERSION, digest(tokens)) == (3, "4646381e8533"), (
        "the same input gives other bytes: raise VERSION in pipeline/tokens/stage.py"
    )


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (5, 2), (40, 2)])
def test_the_bytes_are_the_same_however_documents_are_divided_into_files(tokens, tmp_path, shards, workers):
    documents = golden_documents()
    random.Random(shards).shuffle(documents)
    assert digest(build_tokens(tmp_path, documents, shards, workers)) == digest(tokens)


def test_the_order_of_documents_with_equal_keys_does_not_depend_on_their_files(ray_session, tmp_path):
    documents = [document([text], doc_id="a", source="s", heldout_fraction=0) for text in ("One two.", "Four.", "Six.")]
    one = build_tokens(tmp_path / "one", documents, shards=1)
    assert digest(build_tokens(tmp_path / "other", documents[::-1], shards=3)) == digest(one)


def test_the_bytes_on_s3_are_those_on_the_disk(ray_session, s3_bucket, tokens):
    assert digest(build_tokens(f"{s3_bucket}/tokens-stage", golden_documents())) == digest(tokens)


class StoppedOutput(Output):
    """Stops before the first part."""

    def commit(self, *args: Any, **changed: Any) -> Part:
        raise UserError("stopped")


def test_a_run_that_was_stopped_between_the_steps_resumes_with_the_second(tokens, tmp_path):
    inputs = {"documents": documents_artifact(tmp_path, golden_documents()), "vocab": vocab_artifact(tmp_path)}
    out = output(tmp_path, "tokens")
    with pytest.raises(UserError, match="stopped"):
        run(TokensConfig(), inputs, StoppedOutput(**vars(out)), WORDS)
    for file in inputs["documents"].files("documents/"):
        file.delete()
    run(TokensConfig(), inputs, out, WORDS)
    assert digest(finished(out)) == digest(tokens)
    assert not (out.location / "scratch").exists()


def test_a_deleted_shard_is_written_again_alone(tokens, tmp_path):
    inputs = {"documents": documents_artifact(tmp_path, golden_documents()), "vocab": vocab_artifact(tmp_path)}
    out = output(tmp_path, "tokens")
    run(TokensConfig(), inputs, out, WORDS)
    (out.location / "manifest.json").delete()
    (out.location / "ids/train-00001.npy").delete()
    before = {file: file.info().mtime_ns for file in out.location.files()}
    run(TokensConfig(), inputs, out, WORDS)
    written = {file.name for file in out.location.files() if before.get(file) != file.info().mtime_ns}
    assert written == {"train-00001.npy", "train-00001.json", "manifest.json"}
    assert digest(finished(out)) == digest(tokens)


def test_counts_match_the_shards(tokens):
    counts = tokens.manifest.counts
    shards = shards_of(tokens)
    assert counts["documents"] == 45 == sum(len(shard.documents) for shard in shards.values())
    assert counts["heldout"] == sum(len(shard.documents) for name, shard in shards.items() if "heldout" in name) > 0
    assert counts["tokens"] == sum(len(shard.ids) for shard in shards.values())
    assert counts["sentences"] == sum(len(shard.sentences) for shard in shards.values())
    assert tokens.manifest.drops == {}


def test_documents_without_pieces_are_dropped_and_counted(ray_session, tmp_path):
    empty = document(["\u200b\x01"], doc_id="empty", source="s", heldout_fraction=0)
    short = document(["One.", "Two. \u200b"], doc_id="short", source="s", heldout_fraction=0)
    tokens = build_tokens(tmp_path, [empty, short, empty], shards=3)
    assert tokens.manifest.counts["documents"] == 1
    assert tokens.manifest.drops == {"without pieces": 2}
    assert [(name, len(shard.documents)) for name, shard in shards_of(tokens).items()] == [("train-00000", 1)]


def test_a_group_has_consecutive_document_shards_of_up_to_32_mb_and_one_shard(tmp_path):
    """40 document shards, which are in groups of two where they are small."""
    megabytes = [15] * 10 + [100] * 4 + [1] * 26
    records = {f"documents/{n:05}.parquet": FileRecord(sha256="", bytes=mb << 20) for n, mb in enumerate(megabytes)}
    out = output(tmp_path, "documents")
    out.finish([Part(name="all", files=records, counts={}, drops={}, facts={})], {}, {})
    groups = [[int(file.name[:5]) for file in group] for group in document_groups(finished(out))]
    assert [shard for group in groups for shard in group] == list(range(40))
    assert [10], [11] in groups
    assert [38, 39] in groups
    assert max(sum(megabytes[shard] for shard in group[:-1]) for group in groups) <= 32


def test_a_file_of_ones_own_splits_and_is_named_by_its_bytes(ray_session, tmp_path):
    rules = tmp_path / "rules.py"
    rules.write_text("import re\ndef split_sentences(paragraph):\n    return re.split('(?<=,) ', paragraph)\n")
    text = document(["One, two. Three, four."], doc_id="a", source="s", heldout_fraction=0)
    source = SourceFile(str(rules), hashlib.sha256(rules.read_bytes()).hexdigest(), rules.stat().st_size)
    inputs = {
        "documents": documents_artifact(tmp_path, [text], 1),
        "vocab": vocab_artifact(tmp_path),
        "splitter": source,
    }
    out = output(tmp_path, "tokens")
    manifest = run(TokensConfig(splitter=str(rules)), inputs, out)
    (shard,) = shards_of(finished(out)).values()
    assert shard.sentences.tolist() == [2, 4, 2]
    assert manifest.inputs["splitter"] == source.sha256
    assert check(TokensConfig(), {}) is None
    rules.write_text("split = 1")
    with pytest.raises(UserError, match=r"rules\.py: defines no split_sentences"):
        check(TokensConfig(), {"splitter": SourceFile(str(rules), "0", 9)})


def test_sentences_never_reach_across_paragraphs():
    bulk = BulkTokenizer(build_tokenizer(published_vocabulary()))
    _, sentences, documents = tokenize(["a stop is missing\n\nhere. And here", "another one"], bulk)
    assert sentences.tolist() == [4, 2, 2, 2]
    assert documents.tolist() == [3, 1]


def test_many_documents_at_once_equal_one_by_one():
    texts = [one.text for one in golden_documents()] * 8  # more than one batch of characters
    assert sum(map(len, texts)) > 1 << 20
    together = tokenize(texts, BulkTokenizer(build_tokenizer(published_vocabulary())))
    bulk = BulkTokenizer(build_tokenizer(published_vocabulary()))
    alone = [tokenize([text], bulk) for text in texts]
    for column, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert column.tolist() == np.concatenate(expected).tolist()


def test_an_error_that_a_user_can_fix_leaves_a_worker_unchanged(ray_session):
    def fail(name: str) -> None:
        raise UserError(f"{name}: is broken; fix it")

    with pytest.raises(UserError, match=r"^00003: is broken; fix it$"):
        for_each(fail, ["00003"], 2)


def test_a_bug_in_a_worker_is_raised_with_its_traceback(ray_session):
    with pytest.raises(RuntimeError, match=r"(?s)00003.*in fail.*ZeroDivisionError"):

        def fail(name: str) -> None:
            print(1 // 0)

        for_each(fail, ["00003"], 2)
