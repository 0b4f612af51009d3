"""A model -> the content of an ONNX file, which onnxruntime computes without PyTorch."""

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cloze.pipeline.core.errors import UserError
from cloze.training.model.bert import BertForPreTraining

ONNX_FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxscript")  # what torch.onnx.export imports
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # as transformers and Optimum name them


def onnx_bytes(
    model: nn.Module, outputs: Sequence[str], choices: int | None = None, *, with_segments: bool = True
) -> bytes:
    """The ONNX file of a model that takes input_ids, attention_mask and, `with_segments`, token_type_ids: the same
    bytes each time.

    Each input is int64 [batch, sequence], with `choices` [batch, choices, sequence]; batch and sequence are dynamic.
    Raises UserError when the packages of the extra "onnx" are not installed.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--onnx: the package {missing[0]} is not installed; pip install {' '.join(_PACKAGES)}")
    shape = [2, 8] if choices is None else [2, choices, 8]  # of an example; torch.export treats 0 and 1 specially
    inputs = _INPUTS if with_segments else _INPUTS[:2]
    axes = {0: "batch", len(shape) - 1: "sequence"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated functions that PyTorch itself calls
        program = torch.onnx.export(
            model.eval(),
            tuple(torch.ones(shape, dtype=torch.int64) for _ in inputs),  # no tensor twice: it would be one input
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=len(inputs) * (axes,),
            verbose=False,
        )
    assert program is not None
    proto = cast(Any, program.model_proto)
    graph = proto.graph
    for entry in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del entry.metadata_props[:]  # stack traces with the paths of this machine
    return cast(bytes, proto.SerializeToString(deterministic=True))


class _MaskedLM(nn.Module):
    """Predicts the token at every position, as transformers' models for masked-LM do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = cast(BertForPreTraining, model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Three [batch, seq] -> logits [batch, seq, vocab]."""
        hidden, _ = self.model.bert(input_ids, token_type_ids, attention_mask)
        logits = self.model.mlm(hidden.flatten(0, 1), self.model.bert.embeddings.word_embeddings.weight)
        return logits.view(*input_ids.shape, -1)


def pretrained_onnx(model: nn.Module) -> bytes:
    """The ONNX file of a pretrained model: its output `logits` is the prediction of the masked-LM head."""
    return onnx_bytes(_MaskedLM(model), ["logits"])
