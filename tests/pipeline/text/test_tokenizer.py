"""Text -> pieces: BERT's own, for real text, hard cases and every code point."""

import json
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import (
    SPECIAL_TOKENS,
    BulkTokenizer,
    Tokenizer,
    WordSplitter,
    build_tokenizer,
    load_tokenizer,
    pieces_of,
    split_chunks,
    tokenizer_config_json,
)
from tests.golden import published_vocabulary, unpack

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def reference_words(text: str, lowercase: bool, strip_accents: bool) -> list[str]:
    """BERT's basic tokenization as its paper's code has it, by Python's own Unicode tables."""
    words = []
    for word in "".join(map(_cleaned, text)).split():
        word = word.lower() if lowercase else word
        if strip_accents:
            word = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
        words += "".join(map(_apart, word)).split(" ")
    return [word for word in words if word]


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The library's words, which have to be those of our faster splitter."""
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]
    assert [word for chunk in WordSplitter(tokenizer)(split_chunks(text)) for word in chunk] == words
    return words


@cache
def _cleaned(char: str) -> str:
    category = unicodedata.category(char)
    if char in " \t\n\r" or category == "Zs":
        return " "
    if any(first <= ord(char) <= last for first, last in _IDEOGRAPHS):
        return f" {char} "
    return "" if char in "\0\ufffd" or category in ("Cc", "Cf") else char


@cache
def _apart(char: str) -> str:
    ascii_symbol = " " < char < "\x7f" and not char.isalnum()
    return f" {char} " if ascii_symbol or unicodedata.category(char).startswith("P") else char


@pytest.mark.parametrize(("case", "lowercase"), [("lower", True), ("cased", False)])
def test_pieces_are_those_of_the_reference_on_every_golden_line(case, lowercase):
    tokenizer = build_tokenizer(published_vocabulary(), lowercase)
    lines = [json.loads(line) for line in unpack("wordpiece_uncased.jsonl").split("\n") if line]
    assert len(lines) == 375
    for line in lines:
        assert tokenizer.encode(line["text"], add_special_tokens=False).tokens == line[case]


@pytest.mark.parametrize(("lowercase", "strip_accents"), [(True, True), (True, False), (False, False)])
def test_every_assigned_code_point_between_letters_makes_the_words_of_the_reference(lowercase, strip_accents):
    tokenizer = build_tokenizer(SPECIAL_TOKENS, lowercase, strip_accents)
    # Of the two planes for private use, 131,068 code points without any property, every thousandth.
    numbers = [*range(0xF0000), *range(0xF0000, 0x110000, 1000)]
    points = [char for char in map(chr, numbers) if unicodedata.category(char) not in ("Cn", "Cs")]
    text = " 0x0 ".join(f"a{char}b" for char in points)  # all in one call; the word between them says where each begins
    ours = " ".join(words_of(tokenizer, text)).split(" 0x0 ")
    theirs = " ".join(reference_words(text, lowercase, strip_accents)).split(" 0x0 ")
    assert len(points) > 150_000
    assert [hex(ord(char)) for char, a, b in zip(points, ours, theirs, strict=True) if a != b] == []


@pytest.mark.parametrize("text", ["ΟΔΟΣ", "ΣΑΣ Σ ΣΣ", "ΑΣ.", "ΑΣ'Α", "ΑΣ\u0301", "ΑΣ中Α", "Σ\u00adΣ", "ὈΔΥΣΣΕΎΣ;"])
def test_a_sigma_that_ends_a_word_is_a_final_one(text):
    assert words_of(build_tokenizer(SPECIAL_TOKENS), text) == reference_words(text, True, True)


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "words"),
    [
        (True, True, ["viet", "nam"]),
        (True, False, ["việt", "nam"]),
        (True, None, ["viet", "nam"]),
        (False, True, ["Viet", "Nam"]),
        (False, None, ["Việt", "Nam"]),
    ],
)
def test_case_and_accents_are_kept_or_dropped_apart(lowercase, strip_accents, words):
    assert words_of(build_tokenizer(SPECIAL_TOKENS, lowercase, strip_accents), "Việt Nam") == words


def test_a_marker_in_a_text_is_text(tmp_path):
    tokenizer = build_tokenizer(published_vocabulary())
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    for one in (tokenizer, load_tokenizer(Location(str(tmp_path / "tokenizer.json")))):
        assert one.encode("a [MASK] b", add_special_tokens=False).tokens == ["a", "[", "mask", "]", "b"]


def test_a_saved_tokenizer_reads_back_the_same_and_frames_pairs(tmp_path):
    tokenizer = build_tokenizer(published_vocabulary())
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    loaded = load_tokenizer(Location(str(tmp_path / "tokenizer.json")))
    assert pieces_of(loaded) == published_vocabulary()
    pair = loaded.encode("One two.", "Three!")
    assert pair.tokens == ["[CLS]", "one", "two", ".", "[SEP]", "three", "!", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 0, 0, 1, 1, 1]


def auto_tokenizer(folder: Path, ours: Tokenizer) -> Any:
    """What transformers makes of the files of a vocab artifact."""
    transformers = pytest.importorskip("transformers")
    (folder / "tokenizer.json").write_text(ours.to_str(pretty=True))
    (folder / "tokenizer_config.json").write_text(tokenizer_config_json())
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("beside", [[], ["config.json"]])  # a model's, which says that its tokenizer is BertTokenizer
@pytest.mark.parametrize(("case", "lowercase"), [("lower", True), ("cased", False)])
def test_transformers_gives_our_ids_on_every_golden_line_and_reads_markers_as_text(tmp_path, case, lowercase, beside):
    for name in beside:
        (tmp_path / name).write_text('{"model_type": "bert"}')
    ours = build_tokenizer(published_vocabulary(), lowercase)
    theirs = auto_tokenizer(tmp_path, ours)
    lines = [json.loads(line) for line in unpack("wordpiece_uncased.jsonl").split("\n") if line]
    assert len(lines) == 375
    for line in lines:
        assert theirs.tokenize(line["text"]) == line[case]
    for text in [*(line["text"] for line in lines), "", "[MASK] [SEP]", "a [MASK]b[CLS]. [PAD] [UNK] [unused5]"]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
    markers = {theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id}
    assert not markers & set(theirs("[MASK] [SEP] [CLS]", add_special_tokens=False)["input_ids"])


def test_transformers_pads_frames_and_cuts_as_bert_does(tmp_path):
    theirs = auto_tokenizer(tmp_path, build_tokenizer(published_vocabulary()))
    batch = theirs([("One two.", "Three!"), ("One", "Three")], padding=True)
    assert batch["token_type_ids"] == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    assert batch["input_ids"][1][-3:] == [theirs.pad_token_id] * 3 == [0] * 3
    assert batch["attention_mask"][1] == [1] * 5 + [0] * 3
    assert len(theirs("a " * 600, truncation=True)["input_ids"]) == theirs.model_max_length == 512
    special = [theirs.pad_token, theirs.unk_token, theirs.cls_token, theirs.sep_token, theirs.mask_token]
    assert special == list(SPECIAL_TOKENS)
    assert theirs.convert_ids_to_tokens([0, 100, 101, 102, 103]) == special
    assert theirs.decode(theirs("One two.")["input_ids"], skip_special_tokens=True) == "one two."


def test_words_longer_than_200_characters_are_unknown():
    tokenizer = build_tokenizer(published_vocabulary())
    encoded = tokenizer.encode(f"{'a' * 200} {'a' * 201}", add_special_tokens=False).tokens
    assert encoded[-1] == "[UNK]"
    assert "[UNK]" not in encoded[:-1]


def test_the_bulk_tokenizer_returns_the_ids_of_the_library():
    tokenizer = build_tokenizer(published_vocabulary())
    texts = [json.loads(line)["text"] for line in unpack("wordpiece_uncased.jsonl").split("\n") if line]
    texts += ["", " ", "\0 a\x0bb \x1c c\x85d \0", "a\u200bb", "\u2028x\u2029y", "ΑΣ ΑΣ", "[SEP] [MASK]"]
    bulk = BulkTokenizer(tokenizer)
    for _ in range(2):  # the second time from the cache
        ids, offsets = bulk.encode(texts)
        assert ids.dtype == np.uint16
        ours = [ids[a:b].tolist() for a, b in pairwise(offsets)]
        assert ours == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_no_texts_have_no_ids():
    ids, offsets = BulkTokenizer(build_tokenizer(published_vocabulary())).encode([])
    assert len(ids) == 0
    assert offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], r"the vocabulary has no \[MASK\]; add a line with it"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], "the vocabulary has the piece 'a' twice; remove one of the lines"),
    ],
)
def test_a_vocabulary_that_cannot_work_is_refused(pieces, message):
    with pytest.raises(UserError, match=message):
        build_tokenizer(pieces)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(Location(str(tmp_path / "tokenizer.json")))
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match=r"tokenizer\.json: is not a tokenizer\.json"):
        load_tokenizer(Location(str(tmp_path / "tokenizer.json")))
