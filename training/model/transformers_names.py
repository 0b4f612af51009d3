"""our weights by name <-> those of transformers: what a model's files are called there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How transformers writes a model of one architecture."""

    model_type: str
    classes: tuple[str, str]  # transformers' own: with a head for pairs, and for masked pieces alone
    #: Our modules -> theirs; {} is a layer's number. The others are called alike.
    modules: Mapping[str, str]
    joined: str  # a part of their names that stands for one module here and, by the names of `parts`, for several there
    parts: tuple[str, ...]
    tied: Mapping[str, str]  # a second name of a weight that their files may hold
    ignored: frozenset[str]  # buffers that are no weights
    may_lack: tuple[str, ...]  # beginnings of their names, of which each is there as a whole or not at all
    only: Mapping[str, tuple[str | bool, ...]]  # keys of config.json that change what is computed -> what we compute

    def ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (or their gradients) by transformers' names -> by ours; query, key and value become one."""
        joined = {name: tensor for name, tensor in weights.items() if name not in {*self.tied, *self.ignored}}
        first = self.parts[0]
        for name in [name for name in joined if first in name]:
            rows = [joined.pop(name.replace(first, part)) for part in self.parts]
            joined[name.replace(first, self.joined)] = torch.cat(rows)
        inverse = {theirs: ours for ours, theirs in self.modules.items()}
        return {_renamed(name, inverse): tensor for name, tensor in joined.items()}

    def theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by our names -> by transformers', each tied one once."""
        split: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            renamed = _renamed(name, self.modules)
            if self.joined in renamed:
                parts = zip(self.parts, tensor.chunk(len(self.parts)), strict=True)
                split |= {renamed.replace(self.joined, part): rows for part, rows in parts}
            else:
                split[renamed] = tensor
        return split


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    found = modules.get(re.sub(r"\d+", "{}", module))
    return f"{found.format(*re.findall(r'[0-9]+', module))}.{leaf}" if found else name


BERT = Layout(
    model_type="bert",
    classes=("BertForPreTraining", "BertForMaskedLM"),
    modules={
        "bert.embeddings.norm": "bert.embeddings.LayerNorm",
        "bert.layers.{}.attention.qkv": "bert.encoder.layer.{}.attention.self.qkv",  # three there: see parts
        "bert.layers.{}.attention.output": "bert.encoder.layer.{}.attention.output.dense",
        "bert.layers.{}.attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
        "bert.layers.{}.intermediate": "bert.encoder.layer.{}.intermediate.dense",
        "bert.layers.{}.output": "bert.encoder.layer.{}.output.dense",
        "bert.layers.{}.output_norm": "bert.encoder.layer.{}.output.LayerNorm",
        "bert.pooler": "bert.pooler.dense",
        "mlm": "cls.predictions",
        "mlm.transform": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "nsp": "cls.seq_relationship",
    },
    joined=".self.qkv.",
    parts=(".self.query.", ".self.key.", ".self.value."),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=frozenset({"bert.embeddings.position_ids"}),  # 0, 1, 2, ... of older versions
    may_lack=("bert.pooler.", "cls.predictions.", "cls.seq_relationship."),
    only={
        "model_type": ("bert",),
        "hidden_act": ("gelu", "gelu_python"),  # one function; gelu_new and others are approximations of it
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
)
