"""The folder of a Hugging Face BERT -> its weights and vocabulary; a checkpoint + vocabulary -> such a folder."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import PAD, strips_accents
from cloze.training.checkpoints.checkpoint import CheckpointRef, SavedConfig
from cloze.training.checkpoints.fill_mask import load_model
from cloze.training.checkpoints.imported_weights import import_weights, without_padding
from cloze.training.checkpoints.onnx_file import ONNX_FILE, pretrained_onnx
from cloze.training.checkpoints.weight_files import find_weight_files, printable, read_json, read_tensors
from cloze.training.model.architectures import ARCHITECTURES, DEFAULT_ARCHITECTURE, Architecture, architecture_of
from cloze.training.model.bert import BertConfig

_CONFIG, _ORIGINAL_CONFIG = "config.json", "bert_config.json"  # the second is Google's; it has the same keys
# Embeddings are padded to a multiple of 8, which tensor cores need, up to 1,024: Megatron-LM's 128 times 8 GPUs. Other
# differences are a truncated or wrong vocabulary.
_PADDING_MULTIPLE, _MAX_PADDING = 8, 1024


# Export


def export(checkpoint: CheckpointRef, vocab: Location, to: Location, card: str, *, onnx: bool = False) -> None:
    """Write the folder of `export_files`. config.json is written last: without it the folder does not load, so an
    incomplete export is never used.

    `onnx`: also write model.onnx, which predicts every position. Raises UserError when `to` is not empty or cannot be
    written.
    """
    _check_empty(to)
    files = export_files(checkpoint, vocab, card)
    if onnx:
        files[ONNX_FILE] = pretrained_onnx(load_model(checkpoint))
    write_folder(to, files)


def export_files(checkpoint: CheckpointRef, vocab: Location, card: str) -> dict[str, bytes]:
    """The files that transformers' AutoModel and AutoTokenizer and the Hub can load; `card` is their README.md.

    The exported tokenizer reads [MASK] in a text as the special token, as published BERTs do, so that "fill-mask"
    works. `vocab` is the folder of a vocab artifact. Raises UserError when it is not that of the checkpoint.
    """
    from safetensors.torch import save

    saved = checkpoint.config()
    layout, pieces = architecture_of(saved.model).layout, vocab_file.read_pieces(vocab)
    if len(pieces) != saved.vocab_size:
        raise UserError(
            f"{vocab}: has {len(pieces)} pieces but {checkpoint.location} was trained with {saved.vocab_size}; "
            "give the vocabulary that belongs to the checkpoint"
        )
    return {
        "model.safetensors": save(layout.to_transformers(checkpoint.weights()), {"format": "pt"}),
        **tokenizer_files(vocab_file.read_files(vocab), saved.model.max_position_embeddings),
        "README.md": card.encode(),
        "config.json": _json(_config_json(saved, pieces)),
    }


def write_folder(to: Location, files: Mapping[str, bytes]) -> None:
    """Write the files of a model, config.json last. Raises UserError when `to` is not empty or cannot be written."""
    _check_empty(to)
    try:
        if to.local_path:
            to.local_path.mkdir(parents=True, exist_ok=True)
        for name, data in sorted(files.items(), key=lambda file: file[0] == _CONFIG):
            (to / name).write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{to}: cannot be written ({error.strerror or error}); free space there or give another folder"
        ) from error


def _check_empty(to: Location) -> None:
    if to.is_file() or (to / _CONFIG).is_file() or to.files():  # config.json by its name: a listing may omit it
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
    vocab_size: int  # without rows that only pad the embeddings
    weights: dict[str, Tensor]  # Cloze's names -> fp32, for BertForPreTraining; pooler and heads may be missing
    vocab: vocab_file.VocabFile | None
    notes: tuple[str, ...]  # for the user: what is not used, and how its tokenizer differs from Cloze's


def find_config(folder: Location) -> Location:
    """config.json in the folder of a model, or Google's bert_config.json if there is only that one."""
    original = folder / _ORIGINAL_CONFIG
    return original if original.is_file() and not (folder / _CONFIG).is_file() else folder / _CONFIG


def other_model_type(folder: Location) -> str | None:
    """The model_type in a folder's config.json if it is none of Cloze's architectures, else None. Raises UserError."""
    file = folder / _CONFIG
    model_type = read_json(file).get("model_type") if file.is_file() else None
    known = [architecture.layout.model_type for architecture in ARCHITECTURES.values()]
    return None if model_type is None or model_type in known else str(model_type)


def read(location: Location) -> HuggingFaceModel:
    """The folder of a Hugging Face BERT -> the model.

    The files of weights: see weight_files.py. Rows of the embeddings beyond the vocabulary are left out. Raises
    UserError when the model is not a BERT as published, or is incomplete.
    """
    config_file = find_config(location)
    model, vocab_size = _read_config(config_file)
    files = find_weight_files(location)
    if not files:
        raise UserError(
            f"{location}: has neither model.safetensors nor pytorch_model.bin; save all of its weights in one of them"
        )
    vocab, tokenizer_notes = _read_vocabulary(location, vocab_size, config_file.name)
    weights, notes = import_weights(read_tensors(files), files[0], model, vocab_size, config_file)
    if vocab and (padding := vocab_size - len(vocab.pieces)):
        vocab_size = len(vocab.pieces)
        weights = without_padding(weights, model, vocab_size)
        notes = (*notes, f"the last {padding} rows of the embeddings, beyond the {vocab_size} pieces, are left out")
    return HuggingFaceModel(model, vocab_size, weights, vocab, (*notes, *tokenizer_notes))


def read_model_config(folder: Location) -> tuple[BertConfig, int]:
    """The model's configuration and the size of its vocabulary, from config.json. Raises UserError."""
    return _read_config(folder / "config.json")


def _read_config(file: Location) -> tuple[BertConfig, int]:
    """config.json -> the model's configuration and the number of rows of its embeddings."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the folder of a Hugging Face BERT, which contains it")
    config = read_json(file)
    architecture = _architecture(config)
    for key, supported in architecture.layout.supported_values.items():
        value = config.get(key)
        if value is not None and value not in supported:
            raise UserError(f"{file}: {key} is {_shown(value)}; give a BERT whose {key} is {_shown(supported[0])}")
    fields = {name: config[name] for name in architecture.config.model_fields if name in config}
    try:
        model = architecture.config.model_validate(fields | {"hidden_act": "gelu"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where} is {_shown(fields[where])}" if where in fields else where or "the configuration"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {what}: {message}; give the {file.name} that belongs to the weights") from None
    vocab_size = config.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise UserError(f"{file}: vocab_size is {_shown(vocab_size)}; set it to the number of pieces")
    return model, vocab_size


def _shown(value: Any) -> str:
    """A value of a JSON file for an error."""
    return printable(json.dumps(value))


def _architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture with the model_type of a config.json, else BERT."""
    model_type = config.get("model_type")
    matching = (item for item in ARCHITECTURES.values() if item.layout.model_type == model_type)
    return next(matching, ARCHITECTURES[DEFAULT_ARCHITECTURE])


def read_vocabulary(location: Location) -> tuple[vocab_file.VocabFile | None, list[str]]:
    """The vocabulary in the folder of a model, or None, and how Cloze's tokenizer differs; reads no weights."""
    config_file = find_config(location)
    _, vocab_size = _read_config(config_file)
    return _read_vocabulary(location, vocab_size, config_file.name)


def _read_vocabulary(
    location: Location, vocab_size: int, config_name: str
) -> tuple[vocab_file.VocabFile | None, list[str]]:
    """tokenizer.json, else vocab.txt with the settings of tokenizer_config.json; and how Cloze's tokenizer differs.

    `vocab_size` is larger than the vocabulary if the embeddings are padded. Raises UserError for other differences.
    """
    for name in ("tokenizer.json", "vocab.txt"):
        if (file := location / name).is_file():
            break
    else:
        return None, []
    vocab = vocab_file.read_file(file)
    padding = vocab_size - len(vocab.pieces)
    if padding and (vocab_size % _PADDING_MULTIPLE or not 0 < padding < _MAX_PADDING):
        raise UserError(
            f"{file}: has {len(vocab.pieces)} pieces, but vocab_size in {config_name} is {vocab_size}; "
            "give the vocabulary that belongs to the weights"
        )
    settings_file = location / "tokenizer_config.json"
    if name != "vocab.txt" or not settings_file.is_file():
        return vocab, []
    settings = read_json(settings_file)
    lowercase = settings.get("do_lower_case")
    if isinstance(lowercase, bool):
        strip = strips_accents(lowercase, settings.get("strip_accents"))
        vocab = vocab._replace(lowercase=lowercase, strip_accents=strip)
    return vocab, list(_differences(settings, settings_file))


def _differences(settings: Mapping[str, Any], file: Location) -> Iterator[str]:
    if settings.get("tokenize_chinese_chars") is False:
        difference = "tokenize_chinese_chars is false; here each ideograph is a word, so such text has other pieces"
        yield f"{file.name}: {difference}"
