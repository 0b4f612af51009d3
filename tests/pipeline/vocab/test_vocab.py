"""Counted words -> a vocabulary; documents -> a vocab artifact."""

import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load as load_config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import document
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, load_tokenizer, tokenizer_config_json
from cloze.pipeline.vocab import spelled_words
from cloze.pipeline.vocab.alphabet import CONTINUES, alphabet, count_characters
from cloze.pipeline.vocab.quality import count_left_out, measure_quality
from cloze.pipeline.vocab.stage import VERSION, VocabConfig, count_shard, count_words, run, train_vocabulary
from cloze.pipeline.vocab.word_counts import WordCounts, add_words_files, counts_table, split_by_hash
from cloze.pipeline.vocab.wordpiece_trainer import train_pieces
from tests.golden import digest, documents_artifact, finished, golden_documents, output, published_vocabulary
from tests.paths import QUICKSTART


def counted(words: dict[str, int]) -> list[WordCounts]:
    """The words in two buckets."""
    halves = (list(words.items())[start::2] for start in (0, 1))
    return [
        WordCounts(pa.array([word for word, _ in half], pa.string()), np.array([count for _, count in half], np.int64))
        for half in halves
    ]


def alphabet_of(words: dict[str, int], coverage: float, minimum: int = 0) -> tuple[list[str], list[str]]:
    return alphabet(count_characters(counted(words)), coverage, minimum)


def pieces(words: dict[str, int], size: int, min_frequency: int = 1) -> list[str]:
    known, _ = alphabet_of(words, coverage=1)
    return train_pieces(counted(words), known, size, min_frequency)


def vocabulary_of(words: dict[str, int], config: VocabConfig) -> list[str]:
    return train_vocabulary(counted(words), config)


def naive(words: dict[str, int], size: int, min_frequency: int) -> list[str]:
    """The same by its definition: all pairs are counted again for each merge."""
    spellings = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    known = {piece for spelling in spellings.values() for piece in spelling}
    found: list[str] = []
    while len(found) < size:
        counts: Counter[tuple[str, str]] = Counter()
        for word, spelling in spellings.items():
            for pair in pairwise(spelling):
                counts[pair] += words[word]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_frequency:
            break
        merged = best[0] + best[1].removeprefix("##")
        for spelling in spellings.values():
            for place in range(len(spelling) - 1):
                if tuple(spelling[place : place + 2]) == best:
                    spelling[place : place + 2] = [merged]
        if merged not in known:
            known.add(merged)
            found.append(merged)
    return found


@settings(deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=9), st.integers(1, 5), max_size=12),
    st.integers(0, 30),
    st.integers(1, 4),
)
def test_incremental_merging_equals_recounting_all_pairs(words, size, min_frequency):
    assert pieces(words, size, min_frequency) == naive(words, size, min_frequency)


@settings(deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=9), st.integers(1, 5), max_size=12),
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 4),
)
def test_an_index_of_the_most_frequent_pairs_only_gives_the_same_pieces(words, pairs, occurrences, min_frequency):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelled_words, "_MAX_PAIRS", pairs)
        patch.setattr(spelled_words, "_MAX_OCCURRENCES", occurrences)
        patch.setattr(spelled_words, "_BATCH_WORDS", 2)
        assert pieces(words, 30, min_frequency) == naive(words, 30, min_frequency)


def test_the_most_frequent_pair_comes_first_and_ties_go_by_text():
    assert pieces({"ab": 3, "cd": 3, "ef": 4}, 3) == ["ef", "ab", "cd"]
    assert pieces({"hugs": 5, "hug": 10, "pug": 3}, 3) == ["##ug", "hug", "hugs"]


def test_a_pair_below_min_frequency_is_not_merged():
    assert pieces({"ab": 2, "cd": 1}, 10, min_frequency=2) == ["ab"]


def test_counts_beyond_32_bits_do_not_overflow():
    assert pieces({"ab": 2**40, "cd": 2**40 + 1, "ef": 2**31}, 2) == ["cd", "ab"]


def test_the_alphabet_is_the_most_frequent_characters_and_whole_word_characters_have_no_continuing_piece():
    words = {"ab": 2, "ba": 1, "!": 9, "c": 1}
    assert alphabet_of(words, coverage=15 / 16) == (["!", "a", "b", "##a", "##b"], ["c"])
    assert alphabet_of(words, coverage=9 / 16) == (["!"], ["a", "##a", "b", "##b", "c"])
    assert alphabet_of(words, coverage=9 / 16, minimum=2) == (["!", "a", "##a"], ["b", "##b", "c"])
    assert alphabet_of(words, coverage=1) == (["!", "a", "b", "c", "##a", "##b"], [])


@settings(deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 2**50), min_size=1, max_size=20),
    st.floats(0.01, 1),
)
def test_the_alphabet_covers_the_fraction_asked_for_and_no_character_of_it_could_be_spared(words, coverage):
    kept, rare = alphabet_of(words, coverage)
    counts = Counter[str]()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    beginnings = [piece for piece in kept if len(piece) == 1]
    covered = sum(counts[character] for character in beginnings)
    assert covered >= coverage * counts.total() * (1 - 1e-12)
    assert covered - min(counts[character] for character in beginnings) < coverage * counts.total()
    assert not set(kept) & set(rare)
    assert {piece for word in words for piece in (word[0], *(CONTINUES + c for c in word[1:]))} <= {*kept, *rare}


def test_a_character_outside_the_alphabet_is_unknown_and_never_vanishes_from_a_word():
    words = {"ab": 9, "a☃b": 2, "cab": 3}
    config = VocabConfig(size=12, character_coverage=0.9, min_frequency=1)
    vocabulary = vocabulary_of(words, config)
    tokenizer = build_tokenizer(vocabulary)
    assert "☃" not in "".join(vocabulary)
    assert tokenizer.encode("ab a☃b cab", add_special_tokens=False).tokens == ["ab", "[UNK]", "c", "##a", "##b"]


def test_places_that_pairs_leave_empty_go_to_the_characters_left_out():
    words = {"ab": 97, "x☃": 1, "♜": 2}
    config = VocabConfig(size=20, character_coverage=0.9)
    vocabulary = vocabulary_of(words, config)
    assert vocabulary == [*SPECIAL_TOKENS, "a", "b", "##a", "##b", "ab", "♜", "x", "##x", "☃", "##☃"]
    for size in range(10, 16):  # each place more is one piece more
        assert vocabulary_of(words, VocabConfig(size=size, character_coverage=0.9)) == vocabulary[:size]


@settings(deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abc☃♜ж", min_size=1, max_size=6), st.integers(1, 5), min_size=1, max_size=12),
    st.floats(0.1, 1),
    st.integers(1, 3),
)
def test_no_place_is_empty_while_a_pair_of_any_word_is_frequent_enough(words, coverage, min_frequency):
    config = VocabConfig(size=90, character_coverage=coverage, min_frequency=min_frequency)
    vocabulary = vocabulary_of(words, config)
    assert len(vocabulary) == len(set(vocabulary)) < 90
    assert train_pieces(counted(words), vocabulary, 1, min_frequency) == []


def test_an_alphabet_that_is_small_for_the_vocabulary_is_complete():
    words = {"a" * 100: 10**6, **dict.fromkeys("bcdefghij", 1)}
    for size, kept in ((5 + 9 * 30, 9), (5 + 10 * 30, 10)):
        vocabulary = vocabulary_of(words, VocabConfig(size=size))
        assert len([piece for piece in vocabulary[5 : 5 + kept] if len(piece) == 1]) == kept
        assert vocabulary[5 + kept] == "##a"


def test_ideographs_and_a_run_of_kana_are_known_where_1000_characters_were_not_enough():
    rare = {chr(0x4E00 + number): 2 for number in range(3000)}
    words = {**rare, "カタカナ": 50, "ひらかな": 50_000}
    vocabulary = vocabulary_of(words, VocabConfig(size=4000))
    assert measure_quality(build_tokenizer(vocabulary), counted(words)).unknown_share == 0
    assert len(vocabulary) == len(set(vocabulary)) < 4000


@settings(deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abc☃♜ж", min_size=1, max_size=6), st.integers(1, 5), min_size=1, max_size=12),
    st.integers(30, 45),
    st.floats(0.1, 1),
)
def test_reported_left_out_words_are_unknown_to_the_tokenizer(words, size, coverage):
    words = words | {"a" * 201: 3}
    vocabulary = vocabulary_of(words, VocabConfig(size=size, character_coverage=coverage))
    left = count_left_out(counted(words), vocabulary)
    unknown = measure_quality(build_tokenizer(vocabulary), counted(words))
    assert left.words + left.long_words == round(unknown.unknown_share * unknown.words)
    assert (left.of_words, left.long_words) == (unknown.words, 3)
    assert left.of_characters == sum(len(word) * count for word, count in words.items() if len(word) <= 200)
    assert left.characters <= left.of_characters and left.distinct_characters <= len(set("".join(words)))
    assert not set(left.most_frequent) & set(vocabulary)
    assert bool(left.most_frequent) == bool(left.words) == bool(left.distinct_characters)


def test_left_out_characters_are_counted():
    words = {"ab": 97, "x☃☃": 1, "♜": 2, "a" * 201: 4}
    assert count_left_out(counted(words), [*SPECIAL_TOKENS, "a", "##b", "x", "♜"]).plain == {
        "distinct_characters": 1,
        "of_distinct_characters": 5,
        "characters": 2,
        "of_characters": 199,
        "words": 1,
        "long_words": 4,
        "of_words": 104,
        "most_frequent": ["##☃"],
    }


def test_the_special_tokens_come_first_and_the_size_is_met():
    vocabulary = vocabulary_of({"hugs": 5, "hug": 10, "pug": 3}, VocabConfig(size=15, min_frequency=1))
    assert tuple(vocabulary[:5]) == SPECIAL_TOKENS
    assert len(vocabulary) == len(set(vocabulary)) == 15


def test_no_room_for_the_alphabet_is_an_error_that_names_the_size_needed():
    with pytest.raises(UserError, match=r"vocab\.size: 8 has no room .* set it to 11 at least"):
        vocabulary_of({"abc": 1}, VocabConfig(size=8))
    with pytest.raises(UserError, match=r"or lower vocab\.character_coverage \(now 0\.9995\)$"):
        vocabulary_of({"abc": 1}, VocabConfig(size=8))
    assert len(vocabulary_of({"abc": 1}, VocabConfig(size=11))) == 11


def test_the_google_layout_is_that_of_the_published_vocabulary():
    words = {"hugs": 5, "hug": 10, "pug": 3}
    compact = vocabulary_of(words, VocabConfig(size=18, min_frequency=1))
    google = vocabulary_of(words, VocabConfig(size=1012, min_frequency=1, layout="google"))
    assert google[:999] == published_vocabulary()[:999]
    assert google[999:] == compact[5:]
    tokenizer = build_tokenizer(google)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 100, 101, 102, 103]
    assert json.loads(tokenizer.to_str())["model"]["vocab"] == {piece: index for index, piece in enumerate(google)}
    assert tokenizer.encode("hugs ☃").ids == [101, google.index("hugs"), 100, 102]


def test_the_google_layout_needs_room_for_all_that_it_reserves():
    with pytest.raises(UserError, match=r"vocab\.size: 1000 has no room for 999 .* 6 pieces; set it to 1005 at least"):
        vocabulary_of({"abc": 1}, VocabConfig(size=1000, layout="google"))
    assert len(vocabulary_of({"abc": 1}, VocabConfig(size=1005, layout="google"))) == 1005


@settings(deadline=None)
@given(
    st.dictionaries(st.text(alphabet="abcé!", min_size=1, max_size=9), st.integers(1, 5), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_words_does_not_matter(words, random):
    shuffled = list(words.items())
    random.shuffle(shuffled)
    config = VocabConfig(size=40, min_frequency=1, character_coverage=0.7)
    assert vocabulary_of(dict(shuffled), config) == vocabulary_of(words, config)


def test_documents_without_text_are_an_error():
    with pytest.raises(UserError, match="vocab: the documents hold no text to train on"):
        vocabulary_of({}, VocabConfig(size=100))


def test_an_artifact_without_documents_is_an_error(tmp_path):
    documents = output(tmp_path, "dedup")
    documents.finish([], {}, {})
    with pytest.raises(UserError, match="vocab: the documents hold no text to train on"):
        run(CONFIG, {"documents": finished(documents)}, output(tmp_path, "vocab"))


def test_words_are_counted_as_the_tokenizer_sees_them():
    tokenizer = build_tokenizer(SPECIAL_TOKENS, True, None)
    counted = count_words(["Été, été! [MASK]\n\na\x0bb", "ÉTÉ"], tokenizer)
    assert counted == {"ete": 3, ",": 1, "!": 1, "[": 1, "mask": 1, "]": 1, "ab": 1}


def test_quality_is_the_share_of_unknown_words_and_pieces_per_word():
    tokenizer = build_tokenizer([*SPECIAL_TOKENS, "a", "##b"])
    assert measure_quality(tokenizer, counted({"a": 2, "ab": 1, "x": 1})).plain == {
        "words": 4,
        "unknown_share": 0.25,
        "pieces_per_word": 1.25,
    }
    assert measure_quality(tokenizer, counted({})).plain == {}


CONFIG = VocabConfig(size=1500)


def build_vocab(root: Path, shuffle: int | None, shards: int, workers: int, layout: str = "compact") -> Location:
    documents = golden_documents()
    if shuffle is not None:
        random.Random(shuffle).shuffle(documents)
    out = output(root, "vocab")
    config = CONFIG.model_copy(update={"workers": workers, "layout": layout})
    run(config, {"documents": documents_artifact(root, documents, shards)}, out)
    return out.location


@pytest.mark.parametrize(("shuffle", "shards", "workers"), [(1, 1, 1), (2, 5, 2)])
def test_the_same_documents_give_the_same_bytes_in_any_order_with_any_workers(
    ray_session, tmp_path, shuffle, shards, workers
):
    first = build_vocab(tmp_path / "a", None, 3, 2)
    second = build_vocab(tmp_path / "b", shuffle, shards, workers)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(("layout", "special"), [("compact", [0, 1, 2, 3, 4]), ("google", [0, 100, 101, 102, 103])])
def test_the_artifact_holds_the_vocabulary_and_its_quality(ray_session, tmp_path, layout, special):
    location = build_vocab(tmp_path, None, 3, 2, layout)
    manifest = finished(output(tmp_path, "vocab")).manifest
    lines = (location / "vocab.txt").read_text().split("\n")[:-1]
    assert len(lines) == 1500 == manifest.facts["size"]
    assert [lines.index(token) for token in SPECIAL_TOKENS] == special
    assert load_tokenizer(location / "tokenizer.json").get_vocab() == {line: index for index, line in enumerate(lines)}
    assert (location / "tokenizer_config.json").read_text() == tokenizer_config_json()
    heldout = manifest.facts["heldout"]
    assert heldout["words"] == manifest.counts["heldout_words"] > 1000
    assert 0 <= heldout["unknown_share"] < 0.01
    assert 1 < heldout["pieces_per_word"] < 2.5


def test_the_bytes_are_those_of_this_version(ray_session, tmp_path):
    build_vocab(tmp_path, None, 3, 2)
    found = digest(finished(output(tmp_path, "vocab")))
    assert (VERSION, found) == (3, "95c8e7b34f3a"), (
        "the same input gives other bytes: raise VERSION in pipeline/vocab/stage.py"
    )


def test_more_pieces_than_the_text_has_are_a_warning_and_no_error(ray_session, tmp_path):
    text = document(["the cat saw the cat"], doc_id="a", source="s", heldout_fraction=0)
    out = output(tmp_path, "vocab")
    manifest = run(VocabConfig(size=500), {"documents": documents_artifact(tmp_path, [text], 1)}, out)
    assert manifest.counts["pieces"] == manifest.facts["size"] < 500
    (warning,) = manifest.facts["warnings"]
    assert warning.startswith(f"vocab.size: 500 cannot be reached, the text gives {manifest.facts['size']} pieces:")
    assert "note" not in manifest.facts and manifest.facts["left_out"]["words"] == 0


def test_left_out_characters_are_noted_and_many_unknown_words_are_a_warning(ray_session, tmp_path):
    out = output(tmp_path, "vocab")
    config = VocabConfig(size=300, character_coverage=0.9)
    facts = run(config, {"documents": documents_artifact(tmp_path, golden_documents(), 3)}, out).facts
    left = facts["left_out"]
    assert facts["note"] == (
        f"The vocabulary leaves out {left['distinct_characters']} of the training text's "
        f"{left['of_distinct_characters']} different characters, which are {left['characters']:,} of all its "
        f"{left['of_characters']:,}; for them {left['words']:,} of its {left['of_words']:,} words are unknown."
    )
    (warning,) = facts["warnings"]
    unknown = 100 * facts["heldout"]["unknown_share"]
    assert warning.startswith(
        f"vocab: {unknown:.1f} % of the words of held-out documents are unknown; raise vocab.size"
    )
    assert unknown > 1 and left["words"] / left["of_words"] > 0.01


def test_a_warning_asks_for_more_text_if_the_training_text_lacks_characters(ray_session, tmp_path):
    texts = {"train": "the cat saw the cat", "heldout": "die Katze ist süß"}
    documents = [
        document([text], doc_id=split, source="s", heldout_fraction=float(split == "heldout"))
        for split, text in texts.items()
    ]
    out = output(tmp_path, "vocab")
    facts = run(VocabConfig(size=23), {"documents": documents_artifact(tmp_path, documents, 1)}, out).facts
    assert facts["warnings"] == [
        "vocab: 100.0 % of the words of held-out documents are unknown; add sources, for these words have characters "
        "that the training text lacks, or they have more than 200 and want spaces"
    ]


def source_file(path: Path) -> SourceFile:
    data = path.read_bytes()
    return SourceFile(str(path), hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_file_replaces_training_and_is_measured_on_the_words(ray_session, tmp_path, name):
    (tmp_path / "vocab.txt").write_text("\n".join(published_vocabulary()))
    (tmp_path / "tokenizer.json").write_text(build_tokenizer(published_vocabulary()).to_str())
    documents = documents_artifact(tmp_path, golden_documents(), 3)
    out = output(tmp_path, "vocab")
    source = source_file(tmp_path / name)
    manifest = run(VocabConfig(file=source.uri), {"documents": documents, "file": source}, out)
    assert (out.location / "vocab.txt").read_text().split("\n")[:-1] == published_vocabulary()
    assert (out.location / "tokenizer.json").read_text() == build_tokenizer(published_vocabulary()).to_str(pretty=True)
    assert manifest.inputs["file"] == source.identity
    assert manifest.facts["note"] == f"The pieces are those of {name}; none is learnt from this text."
    assert not set(manifest.facts["sample"]) & set(published_vocabulary()[:999])
    assert manifest.facts["heldout"]["words"] == manifest.counts["heldout_words"] > 1000
    assert manifest.facts["heldout"]["unknown_share"] < 0.01


def test_a_file_of_another_case_is_refused_before_any_work(tmp_path):
    (tmp_path / "cased.json").write_text(build_tokenizer(published_vocabulary(), lowercase=False).to_str())
    source = source_file(tmp_path / "cased.json")
    out = output(tmp_path, "vocab")
    inputs = {"documents": documents_artifact(tmp_path, golden_documents(), 3), "file": source}
    with pytest.raises(UserError, match=r"cased\.json: .* set vocab\.lowercase: false"):
        run(VocabConfig(file=source.uri), inputs, out)
    assert not out.location.exists()


def test_another_vocabulary_is_measured_on_the_same_words(ray_session, tmp_path):
    documents = documents_artifact(tmp_path, golden_documents(), 3)
    (tmp_path / "small.txt").write_text("\n".join([*SPECIAL_TOKENS, "the", "a"]))
    out = output(tmp_path, "vocab")
    inputs = {"documents": documents, "compare": source_file(tmp_path / "small.txt")}
    facts = run(CONFIG, inputs, out).facts
    assert (facts["compared"]["name"], facts["compared"]["size"]) == ("small.txt", 7)
    assert facts["compared"]["words"] == facts["heldout"]["words"]
    assert facts["compared"]["unknown_share"] > 0.5 > facts["heldout"]["unknown_share"]
    alone = build_vocab(tmp_path / "alone", None, 3, 2)
    assert (alone / "vocab.txt").read_bytes() == (out.location / "vocab.txt").read_bytes()


def test_the_bytes_of_the_files_count_and_their_paths_do_not(tmp_path):
    for name, pieces in (("a.txt", SPECIAL_TOKENS), ("b.txt", SPECIAL_TOKENS), ("c.txt", [*SPECIAL_TOKENS, "c"])):
        (tmp_path / name).write_text("\n".join(pieces))

    def place(*overrides: str) -> str:
        config = load_config(RunConfig, QUICKSTART, [f"root={tmp_path}/runs", *overrides])
        (*_, step) = Run(config).plan("vocab")
        assert step.output
        return step.output.fingerprint

    for key in ("file", "compare"):
        a, b, c = (place(f"vocab.{key}={tmp_path}/{name}.txt") for name in "abc")
        assert a == b
        assert len({a, c, place()}) == 3
    assert place(f"vocab.file={tmp_path}/a.txt") != place(f"vocab.compare={tmp_path}/a.txt")


def test_a_stopped_run_resumes_from_the_shards_it_has_counted(ray_session, tmp_path):
    documents = documents_artifact(tmp_path, golden_documents(), 3)
    out = output(tmp_path, "vocab")
    missing = documents.location / "documents/00001.parquet"
    data = missing.read_bytes()
    missing.delete()
    with pytest.raises(FileNotFoundError, match=r"00001\.parquet"):
        run(CONFIG, {"documents": documents}, out)
    missing.write_bytes(data)
    counted = (out.location / "words").files()
    before = {file: file.info().mtime_ns for file in counted}
    run(CONFIG, {"documents": documents}, out)
    assert len(counted) == 2
    assert {file: file.info().mtime_ns for file in counted} == before
    assert not (out.location / "scratch").exists()


def test_a_run_resumes_from_the_words_of_each_shard_without_scratch(ray_session, tmp_path):
    documents = documents_artifact(tmp_path, golden_documents(), 3)
    first = run(CONFIG, {"documents": documents}, output(tmp_path / "first", "vocab"))
    out = output(tmp_path, "vocab")
    for number in range(3):
        count_shard(f"{number:05}", documents.location / f"documents/{number:05}.parquet", CONFIG, out)
    before = {file: file.info().mtime_ns for file in (out.location / "words").files()}
    second = run(CONFIG, {"documents": documents}, out)
    assert {file: file.info().mtime_ns for file in before} == before
    assert (second.files, second.counts, second.facts) == (first.files, first.counts, first.facts)


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=9),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_the_buckets_hold_each_word_once_with_the_sum_of_its_counts(groups, num_buckets):
    tables = [
        counts_table(*({word: counts[split] for word, counts in group.items()} for split in (0, 1))) for group in groups
    ]
    split = [split_by_hash(table, num_buckets) for table in tables]
    for number, buckets in enumerate(zip(*(add_words_files(files) for files in zip(*split, strict=True)), strict=True)):
        expected = Counter[str]()
        for group in groups:
            expected.update({word: counts[number] for word, counts in group.items()})
        pairs = [pair for words, counts in buckets for pair in zip(words.to_pylist(), counts.tolist(), strict=True)]
        assert len(pairs) == len(dict(pairs)) and dict(pairs) == +expected
