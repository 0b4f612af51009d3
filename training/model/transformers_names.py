"""The names of Cloze's weights <-> the names in transformers' files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TransformersLayout:
    """How transformers stores a model of one architecture."""

    model_type: str
    classes: tuple[str, str]  # transformers' classes: with a head for pairs, and with the masked-LM head only
    #: Cloze's module names -> transformers'; {} is a layer's number. Modules not listed have the same name in both.
    modules: Mapping[str, str]
    #: The part of a name that replaces `split_parts`: modules that are separate in transformers and fused in Cloze.
    fused_part: str
    split_parts: tuple[str, ...]
    tied: Mapping[str, str]  # a second name of a tied weight -> its first name
    ignored: frozenset[str]  # buffers that are not weights
    optional_prefixes: tuple[str, ...]  # prefixes of their names; the weights of each are present completely or not
    #: Keys of config.json that change what is computed -> the values that Cloze supports.
    supported_values: Mapping[str, tuple[str | bool, ...]]

    def from_transformers(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights (or gradients) by transformers' names -> by Cloze's. Query, key and value are fused into one."""
        fused = {name: tensor for name, tensor in weights.items() if name not in {*self.tied, *self.ignored}}
        first = self.split_parts[0]
        for name in [name for name in fused if first in name]:
            parts = [fused.pop(name.replace(first, part)) for part in self.split_parts]
            fused[name.replace(first, self.fused_part)] = torch.cat(parts)
        to_cloze = {transformers: cloze for cloze, transformers in self.modules.items()}
        return {_renamed(name, to_cloze): tensor for name, tensor in fused.items()}

    def to_transformers(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by Cloze's names -> by transformers', each tied weight once."""
        split: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            renamed = _renamed(name, self.modules)
            if self.fused_part in renamed:
                parts = zip(self.split_parts, tensor.chunk(len(self.split_parts)), strict=True)
                split |= {renamed.replace(self.fused_part, part): rows for part, rows in parts}
            else:
                split[renamed] = tensor
        return split


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    renamed = modules.get(re.sub(r"\d+", "{}", module))
    return f"{renamed.format(*re.findall(r'[0-9]+', module))}.{leaf}" if renamed else name


BERT = TransformersLayout(
    model_type="bert",
    classes=("BertForPreTraining", "BertForMaskedLM"),
    modules={
        "bert.embeddings.norm": "bert.embeddings.LayerNorm",
        "bert.layers.{}.attention.qkv": "bert.encoder.layer.{}.attention.self.qkv",  # see split_parts
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
    fused_part=".self.qkv.",
    split_parts=(".self.query.", ".self.key.", ".self.value."),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=frozenset({"bert.embeddings.position_ids"}),  # 0, 1, 2, ...; written by older versions
    optional_prefixes=("bert.pooler.", "cls.predictions.", "cls.seq_relationship."),
    supported_values={
        "model_type": ("bert",),
        "hidden_act": ("gelu", "gelu_python"),  # the same function; gelu_new and others are approximations
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
)
