"""Documents + vocab -> token shards, and reading slices of them."""

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.ragged import ragged_ranges
from cloze.pipeline.core.ray_data import for_each
from cloze.pipeline.core.schema import text_key
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import Document, document
from cloze.pipeline.text.sentences import split_sentences
from cloze.pipeline.text.token_shards import TokenizedCorpus, token_shards
from cloze.pipeline.text.tokenizer import BulkTokenizer, build_tokenizer
from cloze.pipeline.tokens.stage import VERSION, TokensConfig, check, run, tokenize
from tests.golden import (
    digest,
    documents_artifact,
    finished,
    golden_documents,
    output,
    published_vocabulary,
    vocab_artifact,
)


def build_tokens(root: Path, documents: list[Document], shards: int = 3, workers: int = 2) -> Artifact:
    inputs = {"documents": documents_artifact(root, documents, shards), "vocab": vocab_artifact(root)}
    out = output(root, "tokens")
    run(TokensConfig(workers=workers), inputs, out)
    return finished(out)


@pytest.fixture(scope="module")
def tokens(ray_session, tmp_path_factory) -> Artifact:
    return build_tokens(tmp_path_factory.mktemp("tokens"), golden_documents())


def test_a_document_reads_back_as_the_pieces_of_its_sentences(tokens):
    documents = {text_key(one.doc_id): one for one in golden_documents()}
    tokenizer = build_tokenizer(published_vocabulary())
    seen = 0
    for shard in token_shards(tokens):
        for run_of in shard.documents:
            one = documents[int(run_of["key"])]
            sentences = [s for paragraph in one.text.split("\n\n") for s in split_sentences(paragraph)]
            expected = [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in sentences]
            offsets = np.array(shard.sentences[run_of["first"] : run_of["last"] + 1])
            ids = shard.slices(offsets[:-1], np.diff(offsets))
            assert ids.dtype == np.uint16
            parts = np.split(ids, (offsets - offsets[0])[1:-1])
            assert [part.tolist() for part in parts] == expected
            assert run_of["heldout"] == (one.split == "heldout")
            seen += 1
    assert seen == 45


def test_the_bytes_are_those_of_this_version(tokens):
    assert (VERSION, digest(tokens)) == (2, "0e9cbb6a7137"), (
        "the same input gives other bytes: raise VERSION in pipeline/tokens/stage.py"
    )


def test_counts_match_the_shards(tokens):
    counts = tokens.manifest.counts
    shards = token_shards(tokens)
    assert counts["documents"] == 45 == sum(len(shard.documents) for shard in shards)
    assert counts["heldout"] == sum(int(shard.documents["heldout"].sum()) for shard in shards) > 0
    assert counts["tokens"] == sum(len(shard.ids()) for shard in shards)
    assert counts["sentences"] == sum(len(shard.sentences) - 1 for shard in shards)
    assert tokens.manifest.drops == {}


def test_the_corpus_has_the_same_documents_in_the_same_order_however_they_are_sharded(ray_session, tokens, tmp_path):
    documents = golden_documents()
    random.Random(5).shuffle(documents)
    others = build_tokens(tmp_path, documents, shards=4, workers=1)
    for heldout in (False, True):
        corpora = [(TokenizedCorpus(token_shards(one), heldout), token_shards(one)) for one in (tokens, others)]
        contents = []
        for corpus, shards in corpora:
            assert len({index for shard in range(len(shards)) for index in corpus.indices_of_shard(shard)}) == len(
                corpus
            )
            contents.append(
                [shards[one.shard].ids()[one.offsets[one.first] : one.offsets[one.last]].tolist() for one in corpus]
            )
        assert contents[0] == contents[1]
        assert len(contents[0]) > 3


def test_documents_without_pieces_are_dropped_and_counted(ray_session, tmp_path):
    empty = document(["\u200b\x01"], doc_id="empty", source="s", heldout_fraction=0)
    short = document(["One.", "Two. \u200b"], doc_id="short", source="s", heldout_fraction=0)
    tokens = build_tokens(tmp_path, [empty, short, empty], shards=3)
    assert tokens.manifest.counts["documents"] == 1
    assert tokens.manifest.drops == {"without pieces": 2}
    assert [len(shard.documents) for shard in token_shards(tokens)] == [1]


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
    (shard,) = token_shards(finished(out))
    assert np.diff(shard.sentences).tolist() == [2, 4, 2]
    assert manifest.inputs["splitter"] == source.sha256
    assert check(TokensConfig(), {}) is None
    rules.write_text("split = 1")
    with pytest.raises(UserError, match=r"rules\.py: defines no split_sentences"):
        check(TokensConfig(), {"splitter": SourceFile(str(rules), "0", 9)})


def test_sentences_never_reach_across_paragraphs():
    bulk = BulkTokenizer(build_tokenizer(published_vocabulary()))
    found = tokenize(["a stop is missing\n\nhere. And here", "another one"], bulk)
    assert np.diff(found.sentences).tolist() == [4, 2, 2, 2]
    assert found.documents.tolist() == [0, 3, 4]


def test_many_documents_at_once_equal_one_by_one():
    texts = [one.text for one in golden_documents()] * 8  # more than one batch of characters
    assert sum(map(len, texts)) > 1 << 20
    together = tokenize(texts, BulkTokenizer(build_tokenizer(published_vocabulary())))
    bulk = BulkTokenizer(build_tokenizer(published_vocabulary()))
    for text, (first, last) in zip(texts, pairwise(together.documents.tolist()), strict=True):
        alone = tokenize([text], bulk)
        start = int(together.sentences[first])
        assert (together.sentences[first : last + 1] - start).tolist() == alone.sentences.tolist()
        assert together.ids[start : int(together.sentences[last])].tolist() == alone.ids.tolist()


@pytest.mark.parametrize("gap", [1, 50, 1 << 20])
def test_slices_on_s3_are_those_on_the_disk(s3_bucket, monkeypatch, gap):
    """Whether far slices are fetched one by one or close ones in one request."""
    monkeypatch.setattr("cloze.pipeline.text.token_shards._MAX_GAP", gap)
    ids = np.random.default_rng(1).integers(0, 60_000, 50_000).astype(np.uint16)
    from cloze.pipeline.text.token_shards import TokenShard, shard_files

    location = Location(f"{s3_bucket}/slices-{gap}")
    for name, data in shard_files("00007", ids, np.zeros(1, np.uint32), np.zeros(1)).items():
        (location / name).write_bytes(data)
    draw = np.random.default_rng(2)
    lengths = draw.integers(1, 90, 300)
    starts = draw.integers(0, len(ids) - lengths)
    starts[:3], lengths[:3] = [0, len(ids) - 5, 100], [7, 5, 40_000]  # both ends, and one that covers several
    assert (TokenShard(location, "00007").slices(starts, lengths) == ids[ragged_ranges(starts, lengths)]).all()


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
