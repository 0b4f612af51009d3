"""A model -> the same model with its encoder layers compiled by torch.compile, in place.

Between a layer's matrix products there are dropout, residual sums, LayerNorm and GELU, each of which reads and writes
whole hidden states. Compilation fuses them. All layers share one compiled function; names of parameters stay.
"""

import importlib.util
import shutil
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn

from cloze.training.model.masked_lm_loss import softmax_step


def compile_layers(model: nn.Module) -> None:
    """Compile the encoder layers, which are `bert.layers`, and the softmax of the masked-LM head, if it has one.

    The first step with each new kind of shape compiles for some seconds. A second length or number of rows compiles a
    version for all others.
    """
    for layer in cast(Any, model.get_submodule("bert.layers")):
        layer.compile()
    head = getattr(model, "mlm", None)
    if head is not None and hasattr(head, "softmax"):
        head.softmax = torch.compile(softmax_step)


def without_compilation() -> AbstractContextManager[None]:
    """Compiled layers run as written."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def can_compile(device: torch.device) -> bool:
    """Whether this is a GPU for which layers can be compiled. That takes Triton, and a C compiler that it calls."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
