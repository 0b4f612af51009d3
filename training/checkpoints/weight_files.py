"""The folder of a Hugging Face model -> the tensors in its files of weights, as they are stored.

A model is one file, or several shards with an index that maps each tensor's name to its shard, such as
model.safetensors.index.json. Reading executes no code: safetensors files contain plain numbers, and torch.load's
weights_only restores tensors only.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cloze.pipeline.core.errors import DamagedFile, MissingFile, UserError
from cloze.pipeline.core.storage import Location

SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_INDEX = ".index.json"
_FILES = (SAFETENSORS, SAFETENSORS + _INDEX, _PICKLE, _PICKLE + _INDEX)  # the first one is read, as in transformers
_TENSORFLOW = "bert_model.ckpt"
_SHARD_NAME = re.compile(r"\w[\w.+-]{0,200}", re.ASCII)  # a file in the index's folder
_SHOWN_CHARS = 100


class StoredTensor(NamedTuple):
    """A tensor with its name in a file."""

    name: str
    tensor: Tensor
    file: Location

    def __str__(self) -> str:
        """FILE: NAME, as errors begin."""
        return f"{self.file}: {printable(self.name)}"


def printable(name: str) -> str:
    """A name from a file as part of one line."""
    shown = name if name and name.isprintable() else repr(name)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}..."


def find_weight_files(folder: Location) -> list[Location]:
    """The file of weights in a folder, or the index and then its shards; empty when there is neither.

    Raises MissingFile for a shard that does not exist and for a folder with a TensorFlow checkpoint only, UserError for
    an index that is damaged or names a file outside the folder.
    """
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        if (folder / f"{_TENSORFLOW}.index").is_file():
            raise MissingFile(
                f"{folder}: has only {_TENSORFLOW}, a TensorFlow checkpoint, which Cloze does not read; convert it "
                f"with transformers 4 and TensorFlow: transformers-cli convert --model_type bert --tf_checkpoint "
                f"{folder}/{_TENSORFLOW} --config {folder}/bert_config.json --pytorch_dump_output {folder}/{_PICKLE}"
            )
        return []
    if not file.name.endswith(_INDEX):
        return [file]
    shards = sorted(set(_read_index(file).values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise MissingFile(
                f"{folder / shard}: no such file, but {file.name} lists it; download the whole folder again"
            )
    return [file, *(folder / shard for shard in shards)]


def read_tensors(files: Sequence[Location]) -> list[StoredTensor]:
    """The result of `find_weight_files` -> all tensors. Raises UserError when a file is damaged or contains code, or
    when the index and its shards differ.
    """
    first, *shards = files
    if not first.name.endswith(_INDEX):
        return [StoredTensor(name, tensor, first) for name, tensor in _load(first).items()]
    index, tensors = _read_index(first), list[StoredTensor]()
    for shard in shards:
        stored = _load(shard)
        for name in stored:
            if index.get(name) != shard.name:
                listed = f"in {index[name]} according to" if name in index else "not in"
                raise UserError(
                    f"{shard}: has {printable(name)}, which is {listed} {first.name}; download the whole folder again"
                )
        if missing := [name for name, file in index.items() if file == shard.name and name not in stored]:
            raise UserError(
                f"{shard}: has no {printable(missing[0])}, which {first.name} lists there; "
                "download the whole folder again"
            )
        tensors += [StoredTensor(name, tensor, shard) for name, tensor in stored.items()]
    return tensors


def _read_index(file: Location) -> dict[str, str]:
    """An index -> the shard's name of each tensor."""
    names = read_json(file, unique_keys=True).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(shard, str) for shard in names.values()):
        raise UserError(f"{file}: has no weight_map from names to files; download it again")
    for name, shard in names.items():
        if not _SHARD_NAME.fullmatch(shard):
            raise UserError(
                f"{file}: {printable(name)} is in {printable(shard)}, which is not the name of a file in this folder; "
                "put all shards next to the index"
            )
    return names


def read_json(file: Location, unique_keys: bool = False) -> dict[str, Any]:
    """Read a JSON object. Raises UserError for anything else, and for a repeated key if they must be unique."""

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if unique_keys and (repeated := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]):
            raise UserError(f"{file}: has {printable(repeated[0])} twice; download it again")
        return dict(pairs)

    try:
        data = json.loads(file.read_bytes(), object_pairs_hook=as_dict)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise UserError(f"{file}: is not a JSON object; download it again")
    return data


def _load(file: Location) -> dict[str, Tensor]:
    """One file's tensors by name."""
    from safetensors.torch import load

    data = file.read_bytes()
    try:
        is_pickle = file.suffix == ".bin"
        stored = torch.load(io.BytesIO(data), "cpu", weights_only=True) if is_pickle else load(data)
    except Exception as error:  # each kind of damage raises a different exception
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file}: contains code ({code[1]}), which was not executed; "
                "use a model.safetensors from a source you trust"
            ) from error
        raise DamagedFile(f"{file}: is damaged or is not a file of weights; download it again") from error
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise UserError(f"{file}: is not a mapping of names to weights; save only the model's state_dict")
    for name, tensor in stored.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{file}: {printable(name)} is not a tensor; save only the model's state_dict")
    return stored
