"""a Hugging Face BERT's folder -> our weights and its vocabulary; a checkpoint + vocab -> such a folder.

What is read is never run: safetensors are plain numbers, and of a pickle torch's weights_only makes tensors alone.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import PAD, strips_accents
from cloze.training.checkpoints.checkpoint import CheckpointRef, SavedConfig
from cloze.training.model.architectures import (
    ARCHITECTURES,
    DEFAULT,
    Architecture,
    architecture_of,
    pretraining_model,
)
from cloze.training.model.bert import BertConfig
from cloze.training.model.transformers_names import Layout

_RENAMED = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))  # as TensorFlow had them
_BARE = re.compile(r"^(?=(embeddings|encoder|pooler)\.)")  # an encoder without heads has no "bert." before its names


# Export


def export(checkpoint: CheckpointRef, vocab: Location, to: Location, card: str) -> None:
    """Write the folder that transformers' AutoModel..., AutoTokenizer and the Hub take; `card` is its README.md.

    There a marker such as [MASK] in a text is the special token, as in published BERTs, so that "fill-mask" answers.
    config.json comes last: without it nothing loads, and nobody takes the folder for finished. `vocab` is a vocab
    artifact's folder. Raises UserError when `to` holds anything or cannot be written.
    """
    from safetensors.torch import save

    if to.is_file() or (to / "config.json").is_file() or to.files():  # by its name: a listing may leave it out
        raise UserError(f"{to}: is there already and not empty; delete it or name another folder")
    saved = checkpoint.config()
    layout, pieces = architecture_of(saved.model).layout, vocab_file.read_pieces(vocab)
    if len(pieces) != saved.vocab_size:
        raise UserError(
            f"{vocab}: has {len(pieces)} pieces and {checkpoint.location} was trained with {saved.vocab_size}; "
            "give the vocabulary that belongs to the checkpoint"
        )
    vocab_files = vocab_file.read_files(vocab)
    tokenizer_config = json.loads(vocab_files["tokenizer_config.json"])
    tokenizer_config["model_max_length"] = saved.model.max_position_embeddings
    # [MASK] is the mask to those who load a model; in training text, for which the vocabulary's folder is, it is text.
    tokenizer_config["split_special_tokens"] = False
    files = {
        "model.safetensors": save(layout.theirs(checkpoint.weights()), {"format": "pt"}),
        **vocab_files,
        "tokenizer_config.json": _json(tokenizer_config),
        "README.md": card.encode(),
        "config.json": _json(_their_config(saved, pieces)),
    }
    try:
        if to.local_path:
            to.local_path.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (to / name).write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror or error}); make room there or name another folder"
        ) from error


def _their_config(saved: SavedConfig, pieces: list[str]) -> dict[str, Any]:
    layout = architecture_of(saved.model).layout
    return {
        "architectures": [layout.classes[0 if saved.nsp else 1]],
        "model_type": layout.model_type,
        "vocab_size": saved.vocab_size,
        "pad_token_id": pieces.index(PAD),
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        **saved.model.model_dump(mode="json", exclude={"architecture"}),
    }


def _json(said: Mapping[str, Any]) -> bytes:
    return (json.dumps(said, indent=2) + "\n").encode()


# Import


class Imported(NamedTuple):
    """A model to go on from; `vocab` is None where its folder has none."""

    model: BertConfig
    vocab_size: int
    weights: dict[str, Tensor]  # by our names, fp32: BertForPreTraining's, perhaps without pooler or heads
    vocab: vocab_file.VocabFile | None
    notes: tuple[str, ...]  # what a user should know: where its tokenizer is not quite ours


def read(location: Location) -> Imported:
    """The folder of a Hugging Face BERT -> the model.

    Of pytorch_model.bin, read where there is no model.safetensors, nothing is executed. Raises UserError for what is
    no BERT as published, or not whole.
    """
    model, vocab_size = _config(location / "config.json")
    layout = architecture_of(model).layout
    file, stored = _stored(location)
    found = _tied(_named(stored, file, layout), file, layout)
    with torch.device("meta"):
        expected = layout.theirs(pretraining_model(model, vocab_size).state_dict())
    lacking = tuple(prefix for prefix in layout.may_lack if not any(name.startswith(prefix) for name in found))
    _check(found, {name: tensor for name, tensor in expected.items() if not name.startswith(lacking)}, file)
    vocab, notes = _vocabulary(location, vocab_size)
    return Imported(model, vocab_size, layout.ours(found), vocab, tuple(notes))


def _config(file: Location) -> tuple[BertConfig, int]:
    """config.json -> our configuration and the size of the vocabulary."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a Hugging Face BERT, which has it")
    said = _read_json(file)
    kind = _architecture(said)
    for key, known in kind.layout.only.items():
        value = said.get(key)
        if value is not None and value not in known:
            raise UserError(f"{file}: {key} is {json.dumps(value)}; give a BERT whose {key} is {json.dumps(known[0])}")
    sizes = {name: said[name] for name in kind.config.model_fields if name in said} | {"hidden_act": "gelu"}
    try:
        model = kind.config.model_validate(sizes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the configuration"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {where}: {message}; give the config.json that belongs to the weights") from None
    vocab_size = said.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f"{file}: vocab_size is {json.dumps(vocab_size)}; set it to the number of pieces")
    return model, vocab_size


def _architecture(said: Mapping[str, Any]) -> Architecture:
    """The one whose model_type a config.json has, else BERT."""
    named = (one for one in ARCHITECTURES.values() if one.layout.model_type == said.get("model_type"))
    return next(named, ARCHITECTURES[DEFAULT])


def _read_json(file: Location) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); fetch it again") from error
    if not isinstance(said, dict):
        raise UserError(f"{file}: is no JSON object; fetch it again")
    return said


def _stored(location: Location) -> tuple[Location, dict[str, Tensor]]:
    """The file that holds the weights, and what it holds."""
    from safetensors.torch import load

    for name in ("model.safetensors", "pytorch_model.bin"):
        if (file := location / name).is_file():
            break
    else:
        raise UserError(
            f"{location}: has neither model.safetensors nor pytorch_model.bin; save its weights in one of them, whole"
        )
    data = file.read_bytes()
    try:
        stored = load(data) if name == "model.safetensors" else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception as error:  # each kind of damage has an exception of its own
        if called := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file}: asks for {called[1]}, which is no weight, and nothing of it was run; "
                "use a model.safetensors from somebody you trust"
            ) from error
        raise UserError(f"{file}: cannot be read as weights, whole or at all; fetch it again") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise UserError(f"{file}: holds no weights by name; save the model's state_dict alone")
    return file, stored


def _named(stored: Mapping[str, Any], file: Location, layout: Layout) -> dict[str, Tensor]:
    """The weights, in fp32, under the names that a whole model of today has."""
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        today = _BARE.sub("bert.", name)
        for old, new in _RENAMED:
            today = old.sub(new, today)
        if today in layout.ignored:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{file}: {name} is no plain tensor of fractions; save the model in float32")
        found[today] = tensor.float()
    return found


def _tied(found: dict[str, Tensor], file: Location, layout: Layout) -> dict[str, Tensor]:
    """Each tied weight once, by its first name."""
    once = {name: tensor for name, tensor in found.items() if name not in layout.tied}
    for copy, name in layout.tied.items():
        if copy in found and not torch.equal(once.setdefault(name, found[copy]), found[copy]):
            raise UserError(f"{file}: {copy} is not {name}; give a BERT whose decoder is tied to its embeddings")
    return once


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Location) -> None:
    """Raises UserError for the first weight that is missing, unknown or misshapen."""
    if missing := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{file}: has no {missing[0]}{_more(missing)}; give a file with all of the model's weights")
    if unknown := sorted(found.keys() - wanted.keys()):
        raise UserError(
            f"{file}: {unknown[0]}{_more(unknown)} is no weight of a BERT as config.json has it; "
            "give a pretrained one, without the heads of other tasks"
        )
    for name, tensor in sorted(found.items()):
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{file}: {name} is {_shape(tensor)} and config.json makes it {_shape(wanted[name])}; "
                "give the config.json that belongs to the weights"
            )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _vocabulary(location: Location, vocab_size: int) -> tuple[vocab_file.VocabFile | None, list[str]]:
    """tokenizer.json, else vocab.txt with what tokenizer_config.json says of it; and where our tokenizer differs."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (file := location / name).is_file():
            break
    else:
        return None, []
    found = vocab_file.read_file(file)
    if len(found.pieces) != vocab_size:
        raise UserError(
            f"{file}: has {len(found.pieces)} pieces and config.json says vocab_size {vocab_size}; "
            "give the vocabulary that belongs to the weights"
        )
    said_by = location / "tokenizer_config.json"
    if name != "vocab.txt" or not said_by.is_file():
        return found, []
    said = _read_json(said_by)
    lowercase = said.get("do_lower_case")
    if isinstance(lowercase, bool):
        found = found._replace(lowercase=lowercase, strip_accents=strips_accents(lowercase, said.get("strip_accents")))
    return found, list(_differences(said, said_by))


def _differences(said: Mapping[str, Any], file: Location) -> Iterator[str]:
    if said.get("tokenize_chinese_chars") is False:
        difference = "tokenize_chinese_chars is false; here each ideograph is a word, so such text has other pieces"
        yield f"{file.name}: {difference}"
