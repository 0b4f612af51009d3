"""A vocab.txt or tokenizer.json -> its pieces in the order of their ids, and how it treats case and accents."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, UNK, build_tokenizer, ids_by_piece, strips_accents

FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")  # in a vocab artifact
_PREFIX = "##"


class VocabFile(NamedTuple):
    """The content of a vocabulary file. `lowercase` and `strip_accents` are None for a vocab.txt, which lacks them."""

    pieces: list[str]
    lowercase: bool | None = None
    strip_accents: bool | None = None


def read_files(folder: Location) -> dict[str, bytes]:
    """Returns the content of the FILES in the folder of a vocab artifact, by name."""
    return {name: (folder / name).read_bytes() for name in FILES}


def read_pieces(folder: Location) -> list[str]:
    """Returns the pieces of a vocab artifact in the order of their ids. Raises UserError as `parse` does."""
    return read_file(folder / "vocab.txt").pieces


def read_file(file: Location) -> VocabFile:
    """Returns the content of a file, as `parse`."""
    return parse(file.read_bytes(), file.uri)


def parse(data: bytes, name: str) -> VocabFile:
    """Parse a tokenizer.json if the name ends in .json, otherwise a vocab.txt: one piece per line.

    Raises UserError, which begins with the name, for a file that Cloze's tokenizer cannot reproduce.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not UTF-8 text (byte {error.start}); give a vocab.txt or tokenizer.json"
        ) from error
    file = _parse_json(text, name) if name.lower().endswith(".json") else VocabFile(_parse_lines(text, name))
    try:
        ids_by_piece(file.pieces)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return file


def check_case_and_accents(file: VocabFile, name: str, lowercase: bool, strip_accents: bool | None) -> None:
    """Raises UserError when the file's treatment of case or accents differs from the configuration."""
    for key, actual, configured in (
        ("lowercase", file.lowercase, lowercase),
        ("strip_accents", file.strip_accents, strips_accents(lowercase, strip_accents)),
    ):
        if actual is not None and actual != configured:
            raise UserError(
                f"{name}: was built with {key}: {_yaml(actual)} and vocab.{key} is {_yaml(configured)}; "
                f"set vocab.{key}: {_yaml(actual)}"
            )


def _yaml(value: bool) -> str:
    return str(value).lower()


def _parse_lines(text: str, name: str) -> list[str]:
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise UserError(f"{name}: is empty; give a vocab.txt with one piece per line, or a tokenizer.json")
    if broken := [line for line in lines if "\r" in line]:
        raise UserError(
            f"{name}:{lines.index(broken[0]) + 1}: has a line break inside a piece; write one piece per line"
        )
    if "" in lines:
        raise UserError(f"{name}:{lines.index('') + 1}: is an empty line; every line is a piece: remove it")
    return lines


def _parse_json(text: str, name: str) -> VocabFile:
    try:
        data = json.loads(text)
        tokenizer = Tokenizer.from_str(text)  # checks the types of all parts
    except ValueError as error:
        raise UserError(f"{name}: is not JSON ({error}); give a vocab.txt or tokenizer.json") from error
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{name}: is not a tokenizer.json ({error}); give a vocab.txt or tokenizer.json") from error
    model = tokenizer.model
    if not isinstance(model, models.WordPiece):
        raise UserError(f"{name}: its model is {type(model).__name__}; give a tokenizer whose model is WordPiece")
    for key, actual, required in (
        ("continuing_subword_prefix", model.continuing_subword_prefix, _PREFIX),
        ("unk_token", model.unk_token, UNK),
    ):
        if actual != required:
            raise UserError(f"{name}: its {key} is {actual!r}; give a tokenizer whose {key} is {required!r}")
    return VocabFile(_pieces(data, name), *_case_and_accents(json.loads(tokenizer.to_str()), name))


def _pieces(data: dict[str, Any], name: str) -> list[str]:
    """Returns the model's pieces and the added tokens, in the order of their ids."""
    added = data.get("added_tokens") or []
    if not_special := [token["content"] for token in added if not token["special"]]:
        raise UserError(
            f"{name}: has the added token {not_special[0]!r}, which splits words; give a tokenizer without it"
        )
    ids = [*data["model"]["vocab"].items(), *((token["content"], token["id"]) for token in added)]
    pieces = []
    for expected, (piece, index) in enumerate(sorted(set(ids), key=lambda entry: (entry[1], entry[0]))):
        if index != expected:
            raise UserError(
                f"{name}: the piece {piece!r} has the id {index}, but {expected} is next; "
                "number the pieces from 0, without gaps and each once"
            )
        if not piece or "\n" in piece or "\r" in piece:
            raise UserError(
                f"{name}: the piece {piece!r} with the id {index} cannot be a line of a vocab.txt; rename it"
            )
        pieces.append(piece)
    return pieces


def _case_and_accents(tokenizer: dict[str, Any], name: str) -> tuple[bool, bool]:
    """Returns `lowercase` and `strip_accents` of a tokenizer.json, if it treats text as BERT does.

    Two forms of that are known: Hugging Face's BertNormalizer, and Cloze's own regular expressions.
    """
    for lowercase, strips, known_form in _known_forms():
        if known_form == (tokenizer["normalizer"], tokenizer["pre_tokenizer"]):
            return lowercase, strips
    actual = ", ".join(json.dumps(tokenizer[key], ensure_ascii=False)[:80] for key in ("normalizer", "pre_tokenizer"))
    raise UserError(
        f"{name}: its normalizer and pre_tokenizer are {actual}; give a tokenizer with a BertNormalizer, or a vocab.txt"
    )


def _known_forms() -> Iterator[tuple[bool, bool, tuple[Any, Any]]]:
    """Yields `lowercase`, `strip_accents`, and the (normalizer, pre_tokenizer) in a tokenizer.json that mean these."""
    for lowercase in (True, False):
        for strip_accents in (None, True, False):
            cloze, hugging_face = (build_tokenizer(SPECIAL_TOKENS, lowercase, strip_accents) for _ in range(2))
            hugging_face.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)  # type: ignore[assignment]
            hugging_face.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
            for tokenizer in (cloze, hugging_face):
                content = json.loads(tokenizer.to_str())
                yield (
                    lowercase,
                    strips_accents(lowercase, strip_accents),
                    (content["normalizer"], content["pre_tokenizer"]),
                )
