"""The tensors in the files of a published BERT -> the weights of the model that its config.json describes.

The files differ in names (of wrappers, of TensorFlow, without the prefix of the encoder), data types, tied weights that
are stored twice, heads of other tasks, and rows that pad the vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.weight_files import StoredTensor, printable
from cloze.training.model.architectures import architecture_of, pretraining_model
from cloze.training.model.bert import BertConfig
from cloze.training.model.transformers_names import TransformersLayout

_WRAPPERS = frozenset({"module", "_orig_mod"})  # parts of a name, added by DataParallel and torch.compile
_TENSORFLOW_NAMES = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))
_NO_PREFIX = re.compile(r"^(?=(embeddings|encoder|pooler)\.)")  # files of an encoder without heads omit "bert."
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SHOWN_HEADS = 3

Weights = dict[str, StoredTensor]  # by the names in a current file of transformers; the tensors are fp32


class ImportedWeights(NamedTuple):
    """Weights by Cloze's names, in fp32; `notes` are for the user."""

    weights: dict[str, Tensor]
    notes: tuple[str, ...]


def import_weights(
    tensors: Sequence[StoredTensor], file: Location, model: BertConfig, vocab_size: int, config_file: Location
) -> ImportedWeights:
    """Stored tensors -> the weights of the model; its pooler and heads may be missing, each completely.

    `file` contains the tensors, or is the index of the files that do; `config_file` contains `model` and `vocab_size`.
    Raises UserError for a weight that is missing, unknown, not finite, or of another shape or type.
    """
    _check_sizes(tensors, file, model, vocab_size, config_file)
    layout = architecture_of(model).layout
    with torch.device("meta"):
        expected = layout.to_transformers(pretraining_model(model, vocab_size).state_dict())
    weights, heads = _rename(tensors, layout, {name.partition(".")[0] for name in expected})
    weights = _merge_tied(weights, layout)
    missing = tuple(
        prefix for prefix in layout.optional_prefixes if not any(name.startswith(prefix) for name in weights)
    )
    expected = {name: tensor for name, tensor in expected.items() if not name.startswith(missing)}
    _check_names_and_shapes(weights, expected, file, config_file)
    notes = (f"{file.name} has heads of other tasks, which are not used: {_list(heads)}",) if heads else ()
    return ImportedWeights(layout.from_transformers({name: item.tensor for name, item in weights.items()}), notes)


def without_padding(weights: Mapping[str, Tensor], model: BertConfig, vocab_size: int) -> dict[str, Tensor]:
    """The first `vocab_size` rows of the weights that have a row for each piece, and the other weights unchanged."""
    with torch.device("meta"):
        unpadded = pretraining_model(model, vocab_size).state_dict()
    return {name: tensor[: len(unpadded[name])] for name, tensor in weights.items()}


def _check_sizes(
    tensors: Sequence[StoredTensor], file: Location, model: BertConfig, vocab_size: int, config_file: Location
) -> None:
    """Raises UserError when the file is much too small for the model, before the model is built."""
    numbers = sum(item.tensor.numel() for item in tensors if _is_dense(item.tensor))
    sizes = {name: getattr(model, name) for name in model.SHAPE} | {"vocab_size": vocab_size}
    for name, size in sizes.items():
        stored = {"num_hidden_layers": len(tensors), "hidden_size": int(numbers**0.5)}.get(name, numbers)
        if size > stored:
            raise UserError(
                f"{config_file}: {name} is {size}, too large for {file.name}, which has {len(tensors)} tensors with "
                f"{numbers:,} numbers; give the {config_file.name} that belongs to the weights"
            )


def _rename(
    tensors: Sequence[StoredTensor], layout: TransformersLayout, modules: set[str]
) -> tuple[Weights, list[str]]:
    """The weights of the model's `modules` in fp32, and the first parts of the other names."""
    weights: Weights = {}
    heads = set[str]()
    for stored in sorted(tensors, key=lambda item: item.name):  # a file has no fixed order, and errors name the first
        name = _current_name(stored.name)
        if name in layout.ignored:
            continue
        if (module := name.partition(".")[0]) not in modules:
            heads.add(module)
            continue
        if name in weights:
            raise UserError(f"{stored} is the same weight as {printable(weights[name].name)}; keep one of them")
        weights[name] = stored._replace(tensor=_to_fp32(stored))
    return weights, sorted(heads)


def _current_name(name: str) -> str:
    """The name in a file -> the name in a current file of the complete model."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    for old, new in _TENSORFLOW_NAMES:
        name = old.sub(new, name)
    return _NO_PREFIX.sub("bert.", name)


def _to_fp32(stored: StoredTensor) -> Tensor:
    """Raises UserError for integers, for tensors that are not dense, and for values that are not finite in fp32."""
    tensor = stored.tensor.detach()
    if tensor.dtype not in _FLOATS or not _is_dense(tensor):
        raise UserError(f"{stored} is not a dense floating-point tensor; save the model in float32")
    converted = tensor.float()
    if not (finite := torch.isfinite(converted)).all():
        problem = "too large for float32" if torch.isfinite(tensor).all() else "NaN or infinite"
        count = int((~finite).sum())
        raise UserError(
            f"{stored} has {count} of {tensor.numel()} values that are {problem}; "
            "download it again, or give weights from before the training diverged"
        )
    return converted


def _is_dense(tensor: Tensor) -> bool:
    """Whether every element is stored: not sparse, not on the meta device, and not one number that is shown repeatedly.

    The last is possible in a pickle, where a small file may describe a tensor larger than the memory.
    """
    is_strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return is_strided and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _merge_tied(weights: Weights, layout: TransformersLayout) -> Weights:
    """Each tied weight once, by its first name."""
    merged = {name: stored for name, stored in weights.items() if name not in layout.tied}
    for copy, name in layout.tied.items():
        if copy in weights:
            stored, first = weights[copy], merged.setdefault(name, weights[copy])
            if not torch.equal(first.tensor, stored.tensor):
                difference = f"{stored} differs from {printable(first.name)}"
                raise UserError(f"{difference}; give a BERT whose decoder is tied to its embeddings")
    return merged


def _check_names_and_shapes(
    weights: Weights, expected: Mapping[str, Tensor], file: Location, config_file: Location
) -> None:
    """Raises UserError that names the first weight that is missing, unknown or has another shape than expected."""
    fix = f"give the {config_file.name} that belongs to the weights"
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"{file}: has no {missing[0]}{_and_more(missing)}; give a file with all of the model's weights")
    if unknown := sorted(weights.keys() - expected.keys()):
        raise UserError(
            f"{weights[unknown[0]]}{_and_more(unknown)} is not a weight of the BERT in {config_file.name}; {fix}"
        )
    for name, stored in sorted(weights.items()):
        if stored.tensor.shape != expected[name].shape:
            raise UserError(
                f"{stored} has shape {_shape(stored.tensor)}, but {_shape(expected[name])} according to "
                f"{config_file.name}; {fix}"
            )


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:_SHOWN_HEADS])) + _and_more(names[_SHOWN_HEADS - 1 :])


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "()"
