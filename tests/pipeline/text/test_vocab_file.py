"""Somebody's vocab.txt or tokenizer.json -> pieces, case and accents."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.pipeline.text.vocab_file import VocabFile, check_case_and_accents, parse, read_files, read_pieces
from tests.golden import published_vocabulary, unpack

PIECES = [*SPECIAL_TOKENS, "a", "##b"]


def hugging_face(pieces: list[str], **normalizer: Any) -> Tokenizer:
    """As BertTokenizer.save_pretrained writes it, but for the frame."""
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def changed(tokenizer: Tokenizer, part: str, **values: Any) -> bytes:
    data = json.loads(tokenizer.to_str())
    data[part] = {**data[part], **values}
    return json.dumps(data).encode()


def with_added(*tokens: tuple[str, int]) -> bytes:
    data = json.loads(build_tokenizer(PIECES).to_str())
    like = data["added_tokens"][0]
    data["added_tokens"] += [
        {**like, "content": token, "id": index, "special": "[" in token} for token, index in tokens
    ]
    return json.dumps(data).encode()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_a_vocab_txt_has_one_piece_per_line_and_no_case_setting(end, start, last):
    text = start + end.join(PIECES) + (end if last else "")
    assert parse(text.encode(), "vocab.txt") == VocabFile(PIECES, None, None)


def test_a_line_ends_where_a_line_ends_and_nowhere_else():
    pieces = [*PIECES, "\u2028", "\x85", "a\x0bb", " "]
    assert parse("".join(f"{piece}\n" for piece in pieces).encode(), "v").pieces == pieces


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "strips"),
    [(True, None, True), (True, False, False), (True, True, True), (False, None, False), (False, True, True)],
)
def test_a_tokenizer_json_of_hugging_face_equals_that_of_cloze(lowercase, strip_accents, strips):
    theirs = hugging_face(PIECES, lowercase=lowercase, strip_accents=strip_accents)
    for tokenizer in (theirs, build_tokenizer(PIECES, lowercase, strip_accents)):
        assert parse(tokenizer.to_str().encode(), "x/Tokenizer.JSON") == VocabFile(PIECES, lowercase, strips)


def test_a_file_of_before_models_had_types_is_read():
    data = json.loads(hugging_face(PIECES).to_str())
    del data["model"]["type"]
    assert parse(json.dumps(data).encode(), "tokenizer.json").pieces == PIECES


def test_a_tokenizer_built_from_a_tokenizer_json_returns_the_reference_pieces():
    file = parse(hugging_face(published_vocabulary()).to_str().encode(), "tokenizer.json")
    tokenizer = build_tokenizer(file.pieces, bool(file.lowercase), file.strip_accents)
    for line in unpack("wordpiece_uncased.jsonl").split("\n")[:100]:
        expected = json.loads(line)
        assert tokenizer.encode(expected["text"], add_special_tokens=False).tokens == expected["lower"]


def test_added_tokens_follow_the_vocabulary():
    assert parse(with_added(("[B]", 8), ("[A]", 7)), "t.json").pieces == [*PIECES, "[A]", "[B]"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_added(("[A]", 9)), r"t\.json: the piece '\[A\]' has the id 9, but 7 is next; number the pieces from 0"),
        (with_added(("[A]", 6)), r"t\.json: the piece '\[A\]' has the id 6, but 7 is next"),
        (with_added(("[SEP]", 7)), r"t\.json: the vocabulary has the piece '\[SEP\]' twice"),
        (
            with_added(("[x\ny]", 7)),
            r"t\.json: the piece '\[x\\ny\]' with the id 7 cannot be a line of a vocab\.txt; rename",
        ),
        (
            with_added(("covid", 7)),
            r"t\.json: has the added token 'covid', which splits words; give a tokenizer without",
        ),
        (b'{"model": 1', r"t\.json: is not JSON \(.*\); give a vocab\.txt or tokenizer\.json"),
        (b'{"a": 0, "b": 1}', r"t\.json: is not a tokenizer\.json \(.*\); give a vocab\.txt or tokenizer\.json"),
        (b"[]", r"t\.json: is not a tokenizer\.json"),
        (b"\xff\xfe", r"t\.json: is not UTF-8 text \(byte 0\)"),
        (Tokenizer(models.BPE()).to_str().encode(), r"t\.json: its model is BPE; .* WordPiece"),
        (
            changed(build_tokenizer(PIECES), "model", continuing_subword_prefix="@@"),
            r"its continuing_subword_prefix is '@@'",
        ),
        (changed(build_tokenizer(PIECES), "model", unk_token="<unk>"), r"its unk_token is '<unk>'; .* is '\[UNK\]'"),
        (
            changed(build_tokenizer(PIECES), "model", vocab={"a": 6}),
            r"t\.json: the piece 'a' has the id 6, but 5 is next",
        ),
        (
            changed(hugging_face(PIECES), "normalizer", handle_chinese_chars=False),
            r't\.json: its normalizer and pre_tokenizer are \{"type": "BertNormalizer".*; give a tokenizer with',
        ),
        (changed(hugging_face(PIECES), "pre_tokenizer", type="Whitespace"), r'\{"type": "Whitespace"\}'),
    ],
)
def test_a_tokenizer_json_that_cloze_cannot_reproduce_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        parse(data, "t.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"vocab\.txt: is empty; give a vocab\.txt with one piece per line"),
        ("[PAD]\n\na\n", r"vocab\.txt:2: is an empty line"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"vocab\.txt: the vocabulary has no \[MASK\]; add a line with it"),
        ("\n".join([*PIECES, "a"]), r"vocab\.txt: the vocabulary has the piece 'a' twice; remove one of the lines"),
    ],
)
def test_a_vocab_txt_that_cannot_work_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse(text.encode(), "vocab.txt")


def test_a_vocab_txt_in_another_encoding_is_refused():
    with pytest.raises(UserError, match=r"vocab\.txt: is not UTF-8 text \(byte 2\); give a vocab\.txt"):
        parse("a\né".encode("latin-1"), "vocab.txt")


@pytest.mark.parametrize(
    ("file", "lowercase", "strip_accents", "message"),
    [
        (
            VocabFile([], False, False),
            True,
            None,
            r"t: was built with lowercase: false and vocab\.lowercase is true; set vocab\.lowercase: false",
        ),
        (
            VocabFile([], True, False),
            True,
            None,
            r"t: was built with strip_accents: false .*; set vocab\.strip_accents",
        ),
        (VocabFile([], False, True), False, None, r"set vocab\.strip_accents: true"),
    ],
)
def test_other_case_or_accents_than_the_configuration_asks_for_are_refused(file, lowercase, strip_accents, message):
    with pytest.raises(UserError, match=message):
        check_case_and_accents(file, "t", lowercase, strip_accents)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
def test_the_same_case_and_accents_pass_and_so_does_a_file_that_does_not_say(lowercase, strip_accents):
    for tokenizer in (
        build_tokenizer(PIECES, lowercase, strip_accents),
        hugging_face(PIECES, lowercase=lowercase, strip_accents=strip_accents),
    ):
        found = parse(tokenizer.to_str().encode(), "t.json")
        assert found[1:] == (lowercase, lowercase if strip_accents is None else strip_accents)
        check_case_and_accents(found, "t.json", lowercase, strip_accents)
    check_case_and_accents(VocabFile(PIECES), "vocab.txt", lowercase, strip_accents)


def test_the_folder_of_an_artifact_gives_its_pieces_and_its_files(tmp_path: Path) -> None:
    pieces = [*SPECIAL_TOKENS, "a", "##b", "\u2028"]
    said = {
        "vocab.txt": "".join(f"{piece}\n" for piece in pieces),
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
    }
    for name, text in said.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "manifest.json").write_text("{}")
    assert read_pieces(Location(str(tmp_path))) == pieces
    assert read_files(Location(str(tmp_path))) == {name: text.encode() for name, text in said.items()}
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"vocab\.txt: the vocabulary has no "):
        read_pieces(Location(str(tmp_path)))
