"""Folders of small Hugging Face BERTs, as other people's programs write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.huggingface import read
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.transformers_names import BERT
from tests.golden import published_vocabulary

CONFIG = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
)
PIECES = published_vocabulary()[:1110]
CONFIG_JSON = {**CONFIG.model_dump(), "model_type": "bert", "vocab_size": len(PIECES)}


def small_model(nsp: bool = True) -> BertForPreTraining:
    """A model with all weights different from their initial values."""
    model = BertForPreTraining(CONFIG, len(PIECES), nsp=nsp)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


WEIGHTS = {name: tensor.detach() for name, tensor in small_model().state_dict().items()}
STORED = BERT.to_transformers(WEIGHTS)


def write_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({**CONFIG_JSON, **changes}))


def write_vocab(folder: Path, count: int = len(PIECES)) -> None:
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES[:count]))


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write safetensors, or a pickle for a file that ends in .bin."""
    if file.suffix == ".bin":
        torch.save(dict(weights), file)
    else:
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, file)


def write_shards(weights: Mapping[str, Tensor], shard_of: Mapping[str, int], folder: Path, file: str) -> Path:
    """Split the weights into files with an index, as transformers' save_pretrained does. Returns the index."""
    stem, suffix = file.split(".")
    count = max(shard_of.values()) + 1
    names = [f"{stem}-{number + 1:05}-of-{count:05}.{suffix}" for number in range(count)]
    for number in sorted(set(shard_of.values())):
        write_weights({name: weights[name] for name in weights if shard_of[name] == number}, folder / names[number])
    index = folder / f"{file}.index.json"
    weight_map = {name: names[shard_of[name]] for name in weights}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether names and bits are equal."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].view(torch.int32), right[name].view(torch.int32)) for name in left
    )


def refusal(folder: Path) -> str:
    """The error of reading a folder, without the folder: one line that begins with the folder and ends with a fix."""
    with pytest.raises(UserError) as refused:
        read(Location(str(folder)))
    line = str(refused.value)
    assert "\n" not in line
    assert "; " in line
    assert line.startswith(str(folder))
    return line.removeprefix(f"{folder}/")
