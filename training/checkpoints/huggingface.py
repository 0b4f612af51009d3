"""The folder of a Hugging Face BERT -> its weights and vocabulary; a checkpoint + vocabulary -> such a folder.

Reading executes no code: safetensors files contain plain numbers, and torch.load's weights_only restores tensors only.
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
    DEFAULT_ARCHITECTURE,
    Architecture,
    architecture_of,
    pretraining_model,
)
from cloze.training.model.bert import BertConfig
from cloze.training.model.transformers_names import TransformersLayout

_TENSORFLOW_NAMES = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_NO_PREFIX = re.compile(r"^(?=(embeddings|encoder|pooler)\.)")  # files of an encoder without heads omit "bert."


# Export


def export(checkpoint: CheckpointRef, vocab: Location, to: Location, card: str) -> None:
    """Write a folder that transformers' AutoModel and AutoTokenizer and the Hub can load; `card` is its README.md.

    The exported tokenizer reads [MASK] in a text as the special token, as published BERTs do, so that "fill-mask"
    works. config.json is written last: without it the folder does not load, so an incomplete export is never used.
    `vocab` is the folder of a vocab artifact. Raises UserError when `to` is not empty or cannot be written.
    """
    from safetensors.torch import save

    _check_empty(to)
    saved = checkpoint.config()
    layout, pieces = architecture_of(saved.model).layout, vocab_file.read_pieces(vocab)
    if len(pieces) != saved.vocab_size:
        raise UserError(
            f"{vocab}: has {len(pieces)} pieces but {checkpoint.location} was trained with {saved.vocab_size}; "
            "give the vocabulary that belongs to the checkpoint"
        )
    files = {
        "model.safetensors": save(layout.to_transformers(checkpoint.weights()), {"format": "pt"}),
        **tokenizer_files(vocab_file.read_files(vocab), saved.model.max_position_embeddings),
        "README.md": card.encode(),
        "config.json": _json(_config_json(saved, pieces)),
    }
    write_folder(to, files)


def write_folder(to: Location, files: Mapping[str, bytes]) -> None:
    """Write the files of a model, config.json last. Raises UserError when `to` is not empty or cannot be written."""
    _check_empty(to)
    try:
        if to.local_path:
            to.local_path.mkdir(parents=True, exist_ok=True)
        for name, data in sorted(files.items(), key=lambda file: file[0] == "config.json"):
            (to / name).write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror or error}); free space there or give another folder"
        ) from error


def _check_empty(to: Location) -> None:
    if to.is_file() or (to / "config.json").is_file() or to.files():  # config.json by its name: a listing may omit it
        raise UserError(f"{to}: already exists and is not empty; delete it or give another folder")


def tokenizer_files(vocab_files: Mapping[str, bytes], positions: int) -> dict[str, bytes]:
    """The files of a vocab artifact -> those of an exported model with this many positions.

    Users of the model write [MASK] as the mask; in training text, which the vocab artifact is for, it is plain text.
    """
    tokenizer_config = json.loads(vocab_files["tokenizer_config.json"])
    tokenizer_config |= {"model_max_length": positions, "split_special_tokens": False}
    return {**vocab_files, "tokenizer_config.json": _json(tokenizer_config)}


def _config_json(saved: SavedConfig, pieces: list[str]) -> dict[str, Any]:
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


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


# Import


class HuggingFaceModel(NamedTuple):
    """A model to start from; `vocab` is None if its folder has no vocabulary."""

    model: BertConfig
    vocab_size: int
    weights: dict[str, Tensor]  # Cloze's names -> fp32, for BertForPreTraining; pooler and heads may be missing
    vocab: vocab_file.VocabFile | None
    notes: tuple[str, ...]  # for the user: how its tokenizer differs from Cloze's


def read(location: Location) -> HuggingFaceModel:
    """The folder of a Hugging Face BERT -> the model.

    pytorch_model.bin is read only if there is no model.safetensors, and executes no code. Raises UserError when the
    model is not a BERT as published, or is incomplete.
    """
    model, vocab_size = _read_config(location / "config.json")
    layout = architecture_of(model).layout
    file, stored = _read_weights(location)
    weights = _merge_tied(_rename(stored, file, layout), file, layout)
    with torch.device("meta"):
        expected = layout.to_transformers(pretraining_model(model, vocab_size).state_dict())
    missing = tuple(
        prefix for prefix in layout.optional_prefixes if not any(name.startswith(prefix) for name in weights)
    )
    _check_weights(weights, {name: tensor for name, tensor in expected.items() if not name.startswith(missing)}, file)
    vocab, notes = _read_vocabulary(location, vocab_size)
    return HuggingFaceModel(model, vocab_size, layout.from_transformers(weights), vocab, tuple(notes))


def read_model_config(folder: Location) -> tuple[BertConfig, int]:
    """The model's configuration and the size of its vocabulary, from config.json. Raises UserError."""
    return _read_config(folder / "config.json")


def _read_config(file: Location) -> tuple[BertConfig, int]:
    """config.json -> the model's configuration and the size of the vocabulary."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a Hugging Face BERT, which contains it")
    config = _read_json(file)
    architecture = _architecture(config)
    for key, supported in architecture.layout.supported_values.items():
        value = config.get(key)
        if value is not None and value not in supported:
            raise UserError(
                f"{file}: {key} is {json.dumps(value)}; give a BERT whose {key} is {json.dumps(supported[0])}"
            )
    fields = {name: config[name] for name in architecture.config.model_fields if name in config}
    try:
        model = architecture.config.model_validate(fields | {"hidden_act": "gelu"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the configuration"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {where}: {message}; give the config.json that belongs to the weights") from None
    vocab_size = config.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f"{file}: vocab_size is {json.dumps(vocab_size)}; set it to the number of pieces")
    return model, vocab_size


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture with the model_type of a config.json, else BERT."""
    model_type = config.get("model_type")
    matching = (item for item in ARCHITECTURES.values() if item.layout.model_type == model_type)
    return next(matching, ARCHITECTURES[DEFAULT_ARCHITECTURE])


def _read_json(file: Location) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}: is not a JSON object; download it again")
    return data


def _read_weights(location: Location) -> tuple[Location, dict[str, Tensor]]:
    """The file of weights in a folder, and its tensors by name."""
    from safetensors.torch import load

    for name in ("model.safetensors", "pytorch_model.bin"):
        if (file := location / name).is_file():
            break
    else:
        raise UserError(
            f"{location}: has neither model.safetensors nor pytorch_model.bin; save all of its weights in one of them"
        )
    data = file.read_bytes()
    try:
        stored = load(data) if name == "model.safetensors" else torch.load(io.BytesIO(data), "cpu", weights_only=True)
    except Exception as error:  # each kind of damage raises a different exception
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file}: contains code ({code[1]}), which was not executed; "
                "use a model.safetensors from a source you trust"
            ) from error
        raise UserError(f"{file}: is damaged or is not a file of weights; download it again") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise UserError(f"{file}: is not a mapping of names to weights; save only the model's state_dict")
    return file, stored


def _rename(stored: Mapping[str, Any], file: Location, layout: TransformersLayout) -> dict[str, Tensor]:
    """The weights in fp32, by the names in a current file of the complete model."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        current = _NO_PREFIX.sub("bert.", name)
        for old, new in _TENSORFLOW_NAMES:
            current = old.sub(new, current)
        if current in layout.ignored:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{file}: {name} is not a dense floating-point tensor; save the model in float32")
        weights[current] = tensor.float()
    return weights


def _merge_tied(weights: dict[str, Tensor], file: Location, layout: TransformersLayout) -> dict[str, Tensor]:
    """Each tied weight once, by its first name."""
    merged = {name: tensor for name, tensor in weights.items() if name not in layout.tied}
    for copy, name in layout.tied.items():
        if copy in weights and not torch.equal(merged.setdefault(name, weights[copy]), weights[copy]):
            raise UserError(f"{file}: {copy} differs from {name}; give a BERT whose decoder is tied to its embeddings")
    return merged


def _check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Location) -> None:
    """Raises UserError that names the first weight that is missing, unknown or has another shape than expected."""
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{file}: has no {missing[0]}{_and_more(missing)}; give a file with all of the model's weights")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(
            f"{file}: {unknown[0]}{_and_more(unknown)} is not a weight of the BERT in config.json; "
            "give a pretrained model without the heads of other tasks"
        )
    for name, tensor in sorted(weights.items()):
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{file}: {name} has shape {_shape(tensor)}, but {_shape(expected[name])} according to config.json; "
                "give the config.json that belongs to the weights"
            )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _read_vocabulary(location: Location, vocab_size: int) -> tuple[vocab_file.VocabFile | None, list[str]]:
    """tokenizer.json, else vocab.txt with the settings of tokenizer_config.json; and how Cloze's tokenizer differs."""
    for name in ("tokenizer.json", "vocab.txt"):
        if (file := location / name).is_file():
            break
    else:
        return None, []
    vocab = vocab_file.read_file(file)
    if len(vocab.pieces) != vocab_size:
        raise UserError(
            f"{file}: has {len(vocab.pieces)} pieces, but vocab_size in config.json is {vocab_size}; "
            "give the vocabulary that belongs to the weights"
        )
    settings_file = location / "tokenizer_config.json"
    if name != "vocab.txt" or not settings_file.is_file():
        return vocab, []
    settings = _read_json(settings_file)
    lowercase = settings.get("do_lower_case")
    if isinstance(lowercase, bool):
        strip = strips_accents(lowercase, settings.get("strip_accents"))
        vocab = vocab._replace(lowercase=lowercase, strip_accents=strip)
    return vocab, list(_differences(settings, settings_file))


def _differences(settings: Mapping[str, Any], file: Location) -> Iterator[str]:
    if settings.get("tokenize_chinese_chars") is False:
        difference = "tokenize_chinese_chars is false; here each ideograph is a word, so such text has other pieces"
        yield f"{file.name}: {difference}"
