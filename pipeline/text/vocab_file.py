"""The bytes of somebody's vocab.txt or tokenizer.json -> its pieces in the order of their ids, its case and accents."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, UNK, build, ids_of, strips_accents

FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")  # of a vocab artifact
_PREFIX = "##"


class VocabFile(NamedTuple):
    """`lowercase` and `strip_accents` are None where the file does not say, as a vocab.txt does not."""

    pieces: list[str]
    lowercase: bool | None = None
    strip_accents: bool | None = None


def files(folder: Location) -> dict[str, bytes]:
    """The FILES in the folder of a vocab artifact, by name."""
    return {name: (folder / name).read_bytes() for name in FILES}


def pieces_in(folder: Location) -> list[str]:
    """The pieces in the folder of a vocab artifact, in the order of their ids. Raises UserError as `read` does."""
    return read_file(folder / "vocab.txt").pieces


def read_file(file: Location) -> VocabFile:
    """What `read` says of a file."""
    return read(file.read_bytes(), file.uri)


def read(data: bytes, name: str) -> VocabFile:
    """A tokenizer.json if the name ends in .json, else a vocab.txt: a piece a line.

    Raises UserError, which begins with the name, for one that our tokenizer could not stand for.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not UTF-8 text (byte {error.start}); give a vocab.txt or tokenizer.json"
        ) from error
    found = _from_json(text, name) if name.lower().endswith(".json") else VocabFile(_lines(text, name))
    try:
        ids_of(found.pieces)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return found


def check(file: VocabFile, name: str, lowercase: bool, strip_accents: bool | None) -> None:
    """Raises UserError when the file was made for text of another case, or with other accents, than is asked for."""
    for key, found, asked in (
        ("lowercase", file.lowercase, lowercase),
        ("strip_accents", file.strip_accents, strips_accents(lowercase, strip_accents)),
    ):
        if found is not None and found != asked:
            raise UserError(
                f"{name}: was made with {key}: {_yaml(found)} and vocab.{key} is {_yaml(asked)}; "
                f"set vocab.{key}: {_yaml(found)}"
            )


def _yaml(value: bool) -> str:
    return str(value).lower()


def _lines(text: str, name: str) -> list[str]:
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise UserError(f"{name}: is empty; give a vocab.txt with a piece a line, or a tokenizer.json")
    if broken := [line for line in lines if "\r" in line]:
        raise UserError(f"{name}:{lines.index(broken[0]) + 1}: has a line break inside a piece; write a piece a line")
    if "" in lines:
        raise UserError(f"{name}:{lines.index('') + 1}: is an empty line; every line is a piece: remove it")
    return lines


def _from_json(text: str, name: str) -> VocabFile:
    try:
        data = json.loads(text)
        tokenizer = Tokenizer.from_str(text)  # holds each part to its type
    except ValueError as error:
        raise UserError(f"{name}: is not JSON ({error}); give a vocab.txt or tokenizer.json") from error
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{name}: is no tokenizer.json ({error}); give a vocab.txt or tokenizer.json") from error
    model = tokenizer.model
    if not isinstance(model, models.WordPiece):
        raise UserError(f"{name}: its model is {type(model).__name__}; give a tokenizer whose model is WordPiece")
    for key, found, wanted in (
        ("continuing_subword_prefix", model.continuing_subword_prefix, _PREFIX),
        ("unk_token", model.unk_token, UNK),
    ):
        if found != wanted:
            raise UserError(f"{name}: its {key} is {found!r}; give a tokenizer whose {key} is {wanted!r}")
    return VocabFile(_pieces(data, name), *_case_and_accents(json.loads(tokenizer.to_str()), name))


def _pieces(data: dict[str, Any], name: str) -> list[str]:
    """The model's pieces, and behind them the added tokens, by their ids."""
    added = data.get("added_tokens") or []
    if others := [token["content"] for token in added if not token["special"]]:
        raise UserError(f"{name}: has the added token {others[0]!r}, which is cut out of words; give one without it")
    ids = [*data["model"]["vocab"].items(), *((token["content"], token["id"]) for token in added)]
    pieces = []
    for place, (piece, index) in enumerate(sorted(set(ids), key=lambda entry: (entry[1], entry[0]))):
        if index != place:
            raise UserError(
                f"{name}: the piece {piece!r} has the id {index} where {place} is next; "
                "number the pieces from 0, without gaps and each once"
            )
        if not piece or "\n" in piece or "\r" in piece:
            raise UserError(f"{name}: the piece {piece!r} with the id {index} is no line of a vocab.txt; rename it")
        pieces.append(piece)
    return pieces


def _case_and_accents(said: dict[str, Any], name: str) -> tuple[bool, bool]:
    """What a tokenizer.json does to text, which has to be BERT's as Hugging Face or as we spell it."""
    for lowercase, strips, known in _known():
        if known == (said["normalizer"], said["pre_tokenizer"]):
            return lowercase, strips
    found = ", ".join(json.dumps(said[part], ensure_ascii=False)[:80] for part in ("normalizer", "pre_tokenizer"))
    raise UserError(f"{name}: its normalizer and pre_tokenizer are {found}; give a BertNormalizer's, or a vocab.txt")


def _known() -> Iterator[tuple[bool, bool, tuple[Any, Any]]]:
    for lowercase in (True, False):
        for strip_accents in (None, True, False):
            ours, theirs = (build(SPECIAL_TOKENS, lowercase, strip_accents) for _ in range(2))
            theirs.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)  # type: ignore[assignment]
            theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
            for tokenizer in (ours, theirs):
                said = json.loads(tokenizer.to_str())
                yield lowercase, strips_accents(lowercase, strip_accents), (said["normalizer"], said["pre_tokenizer"])
